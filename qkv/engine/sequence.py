"""One answer in the making: its tokens, its pages, its sampler, and what is reported of every token.

An `EngineRequest` for `n` answers becomes n sequences that meet again in the prefix cache. The engine works on ids;
text, stop strings and half characters are the business of `tasks`.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from qkv.engine.cache import Key, page_key
from qkv.engine.lookup import Lookup
from qkv.errors import CheckpointError, InputError
from qkv.sample.tokens import Constraint, Sampling, TokenSampler, likeliest, log_softmax, whole

MAX_ANSWERS = 128  # OpenAI's limit
MAX_TOP = 256  # what beam search may ask for; a person is given less

Finish = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to continue, and how. With a seed, answer i is drawn with seed + i; answer 0 alone reports the `score`d
    tokens. Raises InputError."""

    prompt: Ids[int]  # at least one token
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()  # tokens that end an answer; they are reported
    n: int = 1
    logprobs: int | None = None  # report log-probabilities, and so many of the likeliest tokens' beside the chosen one
    score: int = 0  # first report so many of the prompt's last tokens, with log-probabilities
    constraint: Callable[[], Constraint] | None = None  # makes one for each answer
    guess: bool = True  # prompt lookup; changes the speed only
    ranked: bool = False  # the likeliest tokens are those of a beam: with penalties and rules (sample/tokens.py)
    written: int = 0  # so many of the prompt's tokens are the text's own, written before
    room: int | None = None  # tokens that may still come in all, where max_tokens are but some of them

    def __post_init__(self) -> None:
        whole("n", self.n, 1, MAX_ANSWERS)
        whole("max_tokens", self.max_tokens, 1, 2**31)
        if self.logprobs is not None:
            whole("logprobs", self.logprobs, 0, MAX_TOP)
        if len(self.prompt) == 0:
            raise InputError("the prompt has no tokens; it needs at least one, such as the model's first token (BOS)")
        whole("score", self.score, 0, len(self.prompt) - 1)

    def check(self, vocab: int, context: int) -> None:
        """InputError unless a model of `vocab` tokens and this longest input can take it."""
        if len(self.prompt) + self.max_tokens > context:
            raise InputError(
                f"{len(self.prompt)} prompt tokens and max_tokens={self.max_tokens} are "
                f"{len(self.prompt) + self.max_tokens} tokens; this model reads at most {context}"
            )
        if min(self.prompt) < 0 or max(self.prompt) >= vocab:
            raise InputError(f"the prompt holds token {max(self.prompt)}; this model's tokens are 0 to {vocab - 1}")

    def sampler(self, answer: int, vocab: int) -> TokenSampler:
        """The sampler that draws the tokens of one answer."""
        sampling = self.sampling
        if answer and sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + answer)
        constraint = None if self.constraint is None else self.constraint()
        return TokenSampler(
            sampling,
            self.prompt,
            vocab,
            constraint=constraint,
            logprobs=self.logprobs,
            ranked=self.ranked,
            written=self.written,
            left=self.max_tokens if self.room is None else self.room,
            stops=self.stops,
        )


class Event(NamedTuple):
    """One new token of an answer, 0 to n - 1; the answer's last event says why it is the last."""

    answer: int
    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    finish: Finish | None


class Sequence:
    """The engine's side of one answer; only the engine's thread changes it, but for `cancelled`.

    `ids` are prompt and answer, `filled` how many of them have keys and values in `table`'s pages, `guess` the tokens
    that go through the model behind the last one on trial. `emit` takes every event.
    """

    threads: int | None = None  # that its steps should be computed on

    def __init__(
        self, request: EngineRequest, answer: int, sampler: TokenSampler, emit: Callable[[Event], None]
    ) -> None:
        self.answer, self.ids = answer, [int(token) for token in request.prompt]
        self.limit = len(self.ids) + request.max_tokens  # tokens in the end
        self.judged = len(self.ids) - (request.score if answer == 0 else 0) - 1  # logits are wanted from this row on
        self.filled = 0
        self.table: list[int] = []
        self.guess: list[int] = []
        self.lookup = Lookup() if request.guess else None
        self.finish: Finish | None = None
        self.cancelled = False
        self._sampler, self._stops, self._emit = sampler, request.stops, emit
        self._top = request.logprobs or 0
        self._keys: list[Key] = []

    def key(self, number: int, page: int) -> Key:
        """The key of this sequence's full page `number` (cache.py)."""
        for first in range(len(self._keys) * page, (number + 1) * page, page):
            self._keys.append(page_key(self._keys[-1] if self._keys else b"", self.ids[first : first + page]))
        return self._keys[number]

    def advance(self, logits: np.ndarray, stop: int) -> int:
        """Takes the logits (rows, V) of the rows before `stop`: reports the prompt's tokens among those that they
        foretell, then draws the next one and one after each guess, up to the first that was not guessed so.

        Returns how many tokens are new; keys and values are there for all but the last of them.
        """
        first = stop - len(logits)
        known = self.ids[first + 1 :]
        for row, token in zip(logits, known):
            self._score(row, token)
        before = len(self.ids)
        for row, guess in zip(logits[len(known) :], [*self.guess, None]):
            if self._draw(row) != guess or self.finish:
                break
        new = self.ids[before:]
        if self.guess and self.lookup is not None:
            self.lookup.learn(len(self.guess), sum(a == b for a, b in zip(self.guess, new)))
        return len(new)

    def _score(self, row: np.ndarray, token: int) -> None:
        chances = log_softmax(row)
        logprob = float(chances[token])
        if math.isnan(logprob):
            raise CheckpointError(
                "the model's logits are not numbers: its weights are broken, or the dtype is too narrow"
            )
        self._emit(Event(self.answer, token, logprob, likeliest(chances, self._top), None))

    def _draw(self, row: np.ndarray) -> int:
        token, logprob, top = self._sampler.next(row)
        self.ids.append(token)
        if token in self._stops:
            self.finish = "stop"
        elif len(self.ids) == self.limit:
            self.finish = "length"
        self._emit(Event(self.answer, token, logprob, top, self.finish))
        return token
