"""What a published generation_config.json rules out, forces or biases, token by token, beside `Sampling`.

transformers calls these logits processors, and the fields have the names that its files give them. What was read and
written counts as one text, as there: the prompt's n-grams are not written again either. Numpy only.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
NEVER = np.float32(-np.inf)


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """The defaults rule nothing."""

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # ids, and what their last one gets after the others
    no_repeat_ngram_size: int = 0  # no run of so many tokens comes twice; 0: any may
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # no such run comes at all
    min_length: int = 0  # no end before so many tokens, the prompt's counted
    min_new_tokens: int = 0  # the prompt's not counted
    forced_bos_token_id: int | None = None  # follows a prompt of one token
    forced_eos_token_id: tuple[int, ...] = ()  # one of these is the last of as many tokens as may be
    exponential_decay_length_penalty: tuple[int, float] | None = None  # an end grows likelier from here on, so fast
    suppress_tokens: tuple[int, ...] = ()  # never come
    begin_suppress_tokens: tuple[int, ...] = ()  # do not come first
    renormalize_logits: bool = False  # what is left is a distribution again; it changes beams only

    @property
    def ids(self) -> set[int]:
        """Every id that a model must have. Those that never come may well be missing."""
        runs = [*(run for run, _ in self.sequence_bias), *self.bad_words_ids, self.forced_eos_token_id]
        first = [] if self.forced_bos_token_id is None else [self.forced_bos_token_id]
        return {token for run in runs for token in run} | set(first)


class Ruling:
    """The rules applied to one text in the making.

    `prompt` counts `written` tokens that belong to the text already; `left` more may come; `stops` are its ends.
    """

    def __init__(
        self, rules: TokenRules, prompt: Sequence[int], *, written: int, left: int | None, stops: Collection[int]
    ) -> None:
        self.rules = rules
        self._ids = [int(token) for token in prompt]
        self._start = len(prompt) - written
        self._limit = None if left is None else len(prompt) + left
        self._stops = sorted(stops)
        self._next: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)  # by the tokens before it
        self._bad = [run for run in rules.bad_words_ids if not (len(run) == 1 and run[0] in stops)]
        for end in range(rules.no_repeat_ngram_size, len(prompt) + 1):
            self._remember(end)

    def bias(self, scores: Scores) -> None:
        """Adds what runs of tokens are biased by, in place."""
        for bias, token in self._completed(self.rules.sequence_bias):
            scores[token] += np.float32(bias)

    def restrict(self, scores: Scores) -> None:
        """Rules tokens out, in place, as transformers orders it."""
        rules, length = self.rules, len(self._ids)
        if rules.no_repeat_ngram_size and length >= rules.no_repeat_ngram_size:
            scores[self._next.get(self._last(rules.no_repeat_ngram_size - 1), [])] = NEVER
        scores[[token for _, token in self._completed((run, 0.0) for run in self._bad)]] = NEVER
        if length < rules.min_length or length - self._start < rules.min_new_tokens:
            scores[self._stops] = NEVER
        if length == 1 and rules.forced_bos_token_id is not None:
            _force(scores, [rules.forced_bos_token_id])
        if self._limit is not None and length == self._limit - 1 and rules.forced_eos_token_id:
            _force(scores, rules.forced_eos_token_id)
        if rules.exponential_decay_length_penalty is not None:
            self._decay(scores, *rules.exponential_decay_length_penalty)
        scores[[token for token in rules.suppress_tokens if token < len(scores)]] = NEVER
        first = self._start + (self._start == 1 and rules.forced_bos_token_id is not None)
        if length == first:
            scores[[token for token in rules.begin_suppress_tokens if token < len(scores)]] = NEVER

    def count(self, token: int) -> None:
        self._ids.append(token)
        if 0 < self.rules.no_repeat_ngram_size <= len(self._ids):
            self._remember(len(self._ids))

    def _remember(self, end: int) -> None:
        """The run of tokens that ends before `end`."""
        size = self.rules.no_repeat_ngram_size
        if size:
            self._next[tuple(self._ids[end - size : end - 1])].append(self._ids[end - 1])

    def _completed(self, runs: Iterable[tuple[tuple[int, ...], float]]) -> list[tuple[float, int]]:
        """Value and last token of the runs whose other tokens have just come."""
        return [(value, run[-1]) for run, value in runs if self._last(len(run) - 1) == run[:-1]]

    def _last(self, count: int) -> tuple[int, ...]:
        return tuple(self._ids[max(0, len(self._ids) - count) :])

    def _decay(self, scores: Scores, start: int, factor: float) -> None:
        beyond = len(self._ids) - self._start - start
        if beyond > 0:
            for token in self._stops:
                if math.isfinite(scores[token]):
                    scores[token] += abs(scores[token]) * np.float32(factor**beyond - 1)


def _force(scores: Scores, tokens: Sequence[int]) -> None:
    scores[:] = NEVER
    scores[list(tokens)] = 0.0
