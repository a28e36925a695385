"""Beam search over many texts at once, for models that read a source and write a target.

"Attention Is All You Need" (1706.03762), section 6.1, with the length penalty of Wu et al. (1609.08144), section 7: a
finished text's log-probability is divided by ((5 + length) / 6) ** a. "power" divides by length ** a, as transformers
does. Candidates, finished texts and the end of the search are transformers': only candidates among the best `beams` may
finish, and a search ends once its likeliest running beam, at its present length, would not beat the worst of `beams`
finished ones.

sample/beam.py is the same search for one prompt at a time over a text engine, which shares pages of a paged cache and
asks through callbacks; here hundreds of short texts go through the decoder together, as tensors. The cache holds the
tokens of all beams and is never reordered: which of them belong to a beam is a mask, so a beam that goes on from
another costs a row of booleans. Texts that are done leave the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qkv.core.cache import Cache
from qkv.errors import InputError
from qkv.models.translator import Translator

NEVER = -1e9  # a score that no text has


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search. `max_tokens` is the longest translation with its end, forced there; None: twice the source and 50
    more, at most the model's context. `banned` tokens are never written. Raises InputError."""

    beams: int = 4
    length_penalty: float = 0.6
    penalty: Literal["paper", "power"] = "paper"
    max_tokens: int | None = None
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 64:
            raise InputError(f"beams={self.beams} is out of range; it must be 1 to 64")
        if not -10 <= self.length_penalty <= 10:
            raise InputError(f"length_penalty={self.length_penalty} is out of range; it must be -10 to 10")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens} is out of range; it must be at least 1")

    def divisor(self, length: int) -> float:
        """What the log-probability of a text of so many tokens is divided by."""
        base = (5 + length) / 6 if self.penalty == "paper" else length
        return float(base**self.length_penalty)


class Found(NamedTuple):
    """A translation: its ids without start, with the end; its score is its log-probability, penalised by length."""

    ids: list[int]
    score: float


@torch.inference_mode()
def search_batch(model: Translator, source: Tensor, mask: Tensor, search: Search) -> Iterator[tuple[int, list[Found]]]:
    """The numbers of the texts of source (B, S), each with its `beams` best translations, as soon as it is done.

    `mask` (B, S) is True at tokens.
    """
    config, N = model.config, search.beams
    longest = search.max_tokens or 2 * int(mask.sum(1).max()) + 50
    longest = min(longest, config.context)
    read = model.remember(model.encode(source, mask))
    cache = Cache(config.decoder.layers, longest * N)
    B, device = len(source), source.device
    beams = _Beams(B, N, config.start, device)
    for length in range(1, longest + 1):
        tokens = beams.tokens[..., -1]  # (B, N)
        states = model.grow(tokens, read, position=length - 1, seen=beams.seen, cache=cache)
        logprobs = model.logits(states).float().log_softmax(-1)  # (B, N, V)
        logprobs[..., list(search.banned)] = -math.inf
        if length == longest:
            logprobs[:] = -math.inf
            logprobs[..., config.end] = 0.0
        done = beams.advance(logprobs, config.end, search, length)
        if length == longest:
            done[:] = True
        if done.any():
            for row in done.nonzero().flatten().tolist():
                yield beams.result(row)
            rows = (~done).nonzero().flatten()
            if not len(rows):
                return
            beams.keep(rows)
            cache.keep(rows)
            read = read.keep(rows)


class _Beams:
    """The running and the finished beams of B texts, N each."""

    def __init__(self, B: int, N: int, start: int, device: torch.device) -> None:
        self.number = torch.arange(B)
        self.tokens = torch.full((B, N, 1), start, device=device)  # (B, N, T)
        self.logprob = torch.full((B, N), NEVER, device=device)
        self.logprob[:, 0] = 0.0  # all are the same as yet: one goes on
        self.seen = torch.eye(N, dtype=torch.bool, device=device).repeat(B, 1, 1)  # (B, N, T * N)
        self.finished: list[list[Found]] = [[] for _ in range(B)]

    def advance(self, logprobs: Tensor, end: int, search: Search, length: int) -> Tensor:
        """Goes on by a token, `logprobs` (B, N, V) of which are given; True (B,) for the texts that are done."""
        B, N, V = logprobs.shape
        top, place = likeliest(logprobs.add_(self.logprob[..., None]).flatten(1), 2 * N)  # (B, 2N)
        parent, token = place // V, place % V
        ended = token == end
        for row, candidate in (ended[:, :N] & (top[:, :N] > NEVER / 2)).nonzero().tolist():
            ids = [*self.tokens[row, parent[row, candidate], 1:].tolist(), end]
            self.finished[row].append(Found(ids, float(top[row, candidate]) / search.divisor(length)))
            self.finished[row] = sorted(self.finished[row], key=lambda found: -found.score)[:N]
        chosen = top.masked_fill(ended, -math.inf).topk(N).indices  # (B, N) among the 2N
        self.logprob, parent, token = (x.gather(1, chosen) for x in (top, parent, token))
        before = self.tokens.gather(1, parent[..., None].expand(-1, -1, self.tokens.shape[-1]))
        self.tokens = torch.cat((before, token[..., None]), dim=-1)
        seen = self.seen.gather(1, parent[..., None].expand(-1, -1, self.seen.shape[-1]))
        self.seen = torch.cat((seen, torch.eye(N, dtype=torch.bool, device=seen.device).expand(B, N, N)), dim=-1)
        worst = [found[-1].score if len(found) == N else NEVER for found in self.finished]
        best = self.logprob.amax(1) / search.divisor(length)
        return best <= torch.tensor(worst, device=best.device)

    def result(self, row: int) -> tuple[int, list[Found]]:
        return int(self.number[row]), self.finished[row]

    def keep(self, rows: Tensor) -> None:
        self.number = self.number[rows.cpu()]
        self.tokens, self.logprob, self.seen = self.tokens[rows], self.logprob[rows], self.seen[rows]
        self.finished = [self.finished[row] for row in rows.tolist()]


BLOCK = 64


def likeliest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of scores (B, W) by way of the blocks that hold them: the `count` best lie in the `count` blocks with the
    best heads (or in the rest behind the blocks), and a maximum is much faster than a selection."""
    whole = scores.shape[-1] // BLOCK * BLOCK
    if whole < 4 * BLOCK * count:
        best, place = scores.topk(count)
        return best, place
    blocks = scores[:, :whole].unflatten(-1, (-1, BLOCK))  # (B, W / 64, 64)
    first = blocks.amax(-1).topk(count).indices  # (B, count)
    places = (first[..., None] * BLOCK + torch.arange(BLOCK, device=first.device)).flatten(1)
    rest = torch.arange(whole, scores.shape[-1], device=first.device).expand(len(scores), -1)
    places = torch.cat((places, rest), dim=-1)
    best, chosen = scores.gather(1, places).topk(count)
    return best, places.gather(1, chosen)


def search_texts(
    model: Translator, texts: Sequence[Sequence[int]], search: Search, *, tokens: int = 16_384
) -> Iterator[tuple[int, list[Found]]]:
    """The translations of texts (ids with their end), the number of each before it, in batches of texts of about one
    length: at most `tokens` of them, padding and beams counted."""
    device = model.token.weight.device
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    start = 0
    while start < len(order):
        width = len(texts[order[start]])
        rows = order[start : start + max(1, tokens // (width * search.beams))]
        source = torch.full((len(rows), width), model.config.pad)
        for row, i in enumerate(rows):
            source[row, : len(texts[i])] = torch.tensor(texts[i])
        mask = torch.arange(width) < torch.tensor([len(texts[i]) for i in rows])[:, None]
        for row, found in search_batch(model, source.to(device), mask.to(device), search):
            yield rows[row], found
        start += len(rows)
