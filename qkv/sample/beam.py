"""Beam search: the likeliest whole texts that a search of bounded width finds.

Graves (2012, 1211.3711); the length penalty and the end of the search are transformers': a finished text's score is its
log-probability over its length to the power of `length_penalty`, only candidates among the best `beams` may finish, and
the search ends once no running beam, at its present length, would beat the worst of `beams` finished ones.

What the model says is asked of `likeliest`, so this file knows neither engine nor logits, nor the penalties and rules
that go into them. Left out: groups of diverse beams, and sampling beams.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, NamedTuple

from qkv.sample.tokens import number, whole

MAX_BEAMS = 16
EarlyStopping = bool | Literal["never"]
Continuations = Sequence[tuple[int, float]]  # token ids with their log-probability


class Hypothesis(NamedTuple):
    """A text under way or finished."""

    ids: tuple[int, ...]  # without the prompt, with the token that ended it
    logprob: float  # the sum over its tokens
    ended: bool = False  # by a token that ends texts, not by their number

    def score(self, length_penalty: float) -> float:
        return self.logprob / len(self.ids) ** length_penalty


def check_beams(beams: int, length_penalty: float) -> None:
    """Raises InputError."""
    whole("beams", beams, 1, MAX_BEAMS)
    number("length_penalty", length_penalty, -10.0, 10.0)


def beam_search(
    likeliest: Callable[[Sequence[tuple[int, ...]], int], Sequence[Continuations]],
    *,
    beams: int,
    ends: Collection[int],
    max_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> Iterator[list[Hypothesis]]:
    """After each step, the best texts found so far, the best first; the last ones are the result.

    `likeliest(texts, count)` gives for each of the texts (ids after the prompt) the `count` likeliest next tokens, or
    fewer if no more may come. `early_stopping`: True ends with `beams` finished texts, "never" lets a running beam hope
    for the best length that it may reach.
    """
    running, finished = [Hypothesis((), 0.0)], list[Hypothesis]()
    count = (1 + max(1, len(ends))) * beams  # so that `beams` are left to go on if the others end
    for length in range(1, max_tokens + 1):
        rows = likeliest([beam.ids for beam in running], count)
        candidates = [
            Hypothesis((*beam.ids, token), beam.logprob + logprob, token in ends)
            for beam, row in zip(running, rows)
            for token, logprob in row
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate.logprob)[:count]
        full = length == max_tokens
        finished += [candidate for candidate in candidates[:beams] if candidate.ended or full]
        finished = sorted(finished, key=lambda text: -text.score(length_penalty))[:beams]
        running = [candidate for candidate in candidates if not candidate.ended][:beams]
        yield finished or running
        if not running or (len(finished) == beams and early_stopping is True):
            return
        hoped = max_tokens if early_stopping == "never" and length_penalty > 0 else length
        if len(finished) == beams and running[0].logprob / hoped**length_penalty <= finished[-1].score(length_penalty):
            return
