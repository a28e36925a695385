"""Logits -> the next token of one sequence: greedy or drawn, with the filters and penalties that the field knows.

Top-k (Fan et al. 2018, 1805.04833), top-p (Holtzman et al. 2020, 1904.09751, section 3.1), min-p (Nguyen et al. 2024,
2407.01082), the repetition penalty (Keskar et al. 2019, 1909.05858, section 4.1: over prompt and answer), OpenAI's
presence and frequency penalties (over the answer only) and its logit bias. They are applied in transformers' order:
bias, penalties, rules (rules.py), constraint, temperature, top-k, top-p, min-p.

One uniform number a token is taken from a Philox generator that belongs to the sequence alone, and is looked up in the
cumulated probabilities in float64, tokens in the order of their ids: neither a neighbour in the batch nor a last bit of
a logit changes what is drawn. Numpy only. Left out: typical, eta and mirostat sampling, and temperatures that change.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qkv.config import plain
from qkv.errors import CheckpointError, InputError, quoted
from qkv.sample.rules import Ruling, TokenRules

MAX_TEMPERATURE = 100.0
MAX_BIASES = 1024  # tokens of one request
MAX_SEED = 2**64 - 1  # torch.Generator's too, and what other tools write
_FAR = 50.0  # exp(-50) times any vocabulary is below the last bit of a float64: such a token is never drawn
_FIRST_GUESS = 256  # tokens that top-p looks at before it looks at more

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults choose the likeliest one. Raises InputError."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # the k likeliest tokens; 0: all
    top_p: float = 1.0  # the fewest tokens with this much probability together
    min_p: float = 0.0  # tokens with at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # divides the logits of what was read or written
    presence_penalty: float = 0.0  # taken once from the logits of what was written
    frequency_penalty: float = 0.0  # taken from them as often as it was written
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id
    seed: int | None = None  # None: drawn by lot
    rules: TokenRules = field(default_factory=TokenRules)  # of the model's generation_config.json

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        whole("top_k", self.top_k, 0, 2**31)
        number("top_p", self.top_p, 0.0, 1.0, above=True)
        number("min_p", self.min_p, 0.0, 1.0)
        number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_BIASES:
            raise InputError(f"logit_bias={quoted(self.logit_bias)} is no table of at most {MAX_BIASES} token ids")
        for token, bias in self.logit_bias.items():
            whole("logit_bias: token id", token, 0, 2**31)
            number(f"logit_bias[{token}]", bias, -100.0, 100.0)
        if self.seed is not None:
            whole("seed", self.seed, 0, MAX_SEED)

    @property
    def plain(self) -> bool:
        """Nothing but the model's own logits decides on the scores."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties == (1.0, 0.0, 0.0) and not self.logit_bias and self.rules == TokenRules()

    def check_vocab(self, vocab: int) -> None:
        """InputError if a token that is named is not one of `vocab`."""
        for token in self.logit_bias:
            whole("logit_bias: token id", token, 0, vocab - 1)
        for token in self.rules.ids:
            whole("generation_config.json: token id", token, 0, vocab - 1)


def whole(name: str, value: object, low: int, high: int) -> None:
    """InputError unless `value` is a whole number in low..high."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name}={quoted(value)} is not a whole number in {low}..{high}")


def number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """InputError unless `value` is a number in low..high, or with `above` in it but not `low` itself."""
    value = plain(value)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN does not
    if not fits or (above and value == low):
        limits = f"above {low:g} and at most {high:g}" if above else f"in {low:g}..{high:g}"
        raise InputError(f"{name}={quoted(value)} is not a number {limits}")


class Constraint(Protocol):
    """A rule for the next token, such as a grammar; one object a sequence."""

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """(V,) of the tokens that may come now, or None: all."""

    def accept(self, token: int) -> None:
        """`token` has come."""


class Choice(NamedTuple):
    """A token, and if asked for its log-probability and the likeliest tokens with theirs (of the raw logits)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class TokenSampler:
    """Chooses the tokens of one sequence, one call of `next` a token.

    `vocab` is the length of the logits. With `logprobs`, choices say their log-probability and that of so many
    likeliest tokens; with `ranked`, these are what bias, penalties and rules make of the log-probabilities, as beam
    search ranks them. The last `written` tokens of `prompt` belong to the text already, `left` more may come, `stops`
    are its ends: rules and penalties go by them. To check drafted tokens, call `next` with each row of logits in turn
    and stop at the first choice that is not the draft's: what is drawn is what it would have been without drafts.
    Raises InputError.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        vocab: int,
        *,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
        ranked: bool = False,
        written: int = 0,
        left: int | None = None,
        stops: Collection[int] = (),
    ) -> None:
        sampling.check_vocab(vocab)
        self.sampling, self._constraint, self._logprobs, self._ranked = sampling, constraint, logprobs, ranked
        self._random = None if sampling.temperature == 0 else np.random.Generator(np.random.Philox(sampling.seed))
        self._scorer = None
        if not sampling.plain:
            ends = [token for token in stops if token < vocab]  # a tokenizer may have more than its model
            ruling = Ruling(sampling.rules, prompt, written=written, left=left, stops=ends)
            self._scorer = _Scorer(sampling, prompt, vocab, written, ruling)

    def next(self, logits: npt.NDArray[np.float32]) -> Choice:
        """The next token after `logits` (V,), which are left as they are.

        Raises CheckpointError if they are not numbers, InputError if bias and constraint leave no token.
        """
        if self._ranked:
            return self._rank(log_softmax(logits))
        scores = logits if self._scorer is None else self._scorer(logits)
        if self._constraint is not None and (allowed := self._constraint.allowed()) is not None:
            scores = self._constrained(logits, scores, allowed)
        best = int(scores.argmax())
        _check_best(float(scores[best]))
        token = best if self._random is None else draw(scores, self.sampling, self._random.random())
        if self._scorer is not None:
            self._scorer.count(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._logprobs is None:
            return Choice(token)
        chances = log_softmax(logits)
        return Choice(token, float(chances[token]), likeliest(chances, self._logprobs))

    def _constrained(self, logits: Floats, scores: Floats, allowed: npt.NDArray[np.bool_]) -> Floats:
        """What the constraint leaves. What was asked now goes before the model's own rules: where both leave nothing,
        these are passed over."""
        left = np.where(allowed, scores, np.float32(-np.inf))
        if self._scorer is not None and left.max() == -np.inf:
            left = np.where(allowed, self._scorer(logits, ruled=False), np.float32(-np.inf))
        return left

    def _rank(self, chances: Floats) -> Choice:
        """Beam search's step: the scores are what the rules make of log-probabilities, as transformers has it."""
        _check_best(float(chances.max()))
        scores = chances if self._scorer is None else self._scorer(chances)
        if self.sampling.rules.renormalize_logits:
            scores = log_softmax(scores)
        top = [(token, score) for token, score in likeliest(scores, self._logprobs or 1) if score > -math.inf]
        return Choice(int(scores.argmax()), float(scores.max()), tuple(top))


def _check_best(score: float) -> None:
    if math.isnan(score) or score == math.inf:
        raise CheckpointError("the model's logits are not numbers: its weights are broken, or the dtype is too narrow")
    if score == -math.inf:
        given = "logit_bias, the schema, the regex or the model's generation_config.json"
        raise InputError(f"no token is left that may come next; loosen {given}")


class _Scorer:
    """Bias, penalties and rules, with what they have to remember."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int, written: int, ruling: Ruling) -> None:
        self._sampling, self._ruling = sampling, ruling
        read = np.asarray(prompt, dtype=np.int64)
        self._seen = np.zeros(vocab, dtype=bool)
        self._seen[read] = True
        self._written = np.bincount(read[len(read) - written :], minlength=vocab)
        self._biased = np.fromiter(sampling.logit_bias, dtype=np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), dtype=np.float32)

    def __call__(self, logits: Floats, *, ruled: bool = True) -> npt.NDArray[np.float32]:
        scores = logits.astype(np.float32)
        scores[self._biased] += self._bias
        self._ruling.bias(scores)
        if self._sampling.repetition_penalty != 1:
            seen = np.flatnonzero(self._seen)
            penalty = np.float32(self._sampling.repetition_penalty)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        written = np.flatnonzero(self._written)
        scores[written] -= self._sampling.presence_penalty + self._sampling.frequency_penalty * self._written[written]
        if ruled:
            self._ruling.restrict(scores)
        return scores

    def count(self, token: int) -> None:
        self._ruling.count(token)
        self._seen[token] = True
        self._written[token] += 1


def draw(scores: Floats, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), falls on among those that the filters keep of `scores` (V,)."""
    ids, weights = keep(scores, sampling)
    heights = np.cumsum(weights)
    place = int(np.searchsorted(heights, uniform * heights[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])  # the product may round up to the whole height


def keep(scores: Floats, sampling: Sampling) -> tuple[Ids, npt.NDArray[np.float64]]:
    """The ids, in order, that temperature, top-k, top-p and min-p leave of `scores` (V,), and their weights.

    A weight is a probability times a constant; the likeliest token has 1.
    """
    best = scores.max()
    ids = np.flatnonzero(scores >= max(_largest(scores, sampling.top_k), best - _FAR * sampling.temperature))
    exponents = (scores[ids] - best).astype(np.float64) / sampling.temperature
    weights = np.exp(exponents.astype(np.float32)).astype(np.float64)
    if sampling.top_p < 1:
        inside = np.sort(_nucleus(weights, sampling.top_p))
        ids, weights = ids[inside], weights[inside]
    if sampling.min_p:
        inside = np.flatnonzero(weights >= sampling.min_p)
        ids, weights = ids[inside], weights[inside]
    return ids, weights


def _largest(values: Floats, count: int) -> float:
    """The value of rank `count`; -inf if every value is to be kept."""
    if not 0 < count < len(values):
        return -math.inf
    return float(np.partition(values, -count)[-count])


def _nucleus(weights: npt.NDArray[np.float64], share: float) -> Ids:
    """The indices of the fewest weights that have `share` of the sum together."""
    goal, count = share * weights.sum(), _FIRST_GUESS
    while True:  # only the largest are sorted: all 49,152 of a vocabulary would take milliseconds
        largest = np.flatnonzero(weights >= _largest(weights, count))
        order = largest[np.argsort(-weights[largest], kind="stable")]
        heights = np.cumsum(weights[order])
        if heights[-1] >= goal or len(order) == len(weights):
            return order[: int(np.searchsorted(heights, goal)) + 1]
        count *= 8


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities, of the shape of `logits` (..., V)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(logits.dtype)


def likeliest(chances: Floats, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` largest of the log-probabilities (V,) with their ids, the largest first, equal ones by id."""
    if count == 0:
        return ()
    largest = np.flatnonzero(chances >= _largest(chances, count))
    order = largest[np.argsort(-chances[largest], kind="stable")][:count]
    return tuple((int(token), float(chances[token])) for token in order)
