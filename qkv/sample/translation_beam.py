"""Beam search over many texts at once, for models that read a source and write a target.

"Attention Is All You Need" (1706.03762), section 6.1, with the length penalty of Wu et al. (1609.08144), section 7: a
finished text's log-probability is divided by ((5 + length) / 6) ** a. "power" divides by length ** a, as transformers
does. Candidates, finished texts and the end of the search are transformers': only candidates among the best `beams` may
finish, and a search ends once its likeliest running beam, at its present length, would not beat the worst of `beams`
finished ones.

sample/beam.py is the same search for one prompt at a time over a text engine, which shares pages of a paged cache and
asks through callbacks; here hundreds of short texts go through the decoder together, as tensors. The cache holds the
tokens of all beams and is never reordered: which of them belong to a beam is a mask, so a beam that goes on from
another costs a row of booleans. Texts that are done leave the batch, an eighth of it at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qkv.core.cache import Cache
from qkv.errors import InputError
from qkv.models.packed import PackedLinear, can_pack
from qkv.models.translator import Translator
from qkv.sample.beam import EarlyStopping

NEVER = -1e9  # a score that no text has


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search. `max_tokens` is the longest translation with its end, forced there; None: twice the source and 50
    more, at most the model's context and `longest`. `banned` tokens are never written; with `renormalise` the others'
    probabilities are made to sum to 1 again. `early_stopping` as in beam.py. Raises InputError."""

    beams: int = 4
    length_penalty: float = 0.6
    penalty: Literal["paper", "power"] = "paper"
    max_tokens: int | None = None
    longest: int | None = None
    banned: tuple[int, ...] = ()
    renormalise: bool = False
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 64:
            raise InputError(f"beams={self.beams} is out of range; it must be 1 to 64")
        if not -10 <= self.length_penalty <= 10:
            raise InputError(f"length_penalty={self.length_penalty} is out of range; it must be -10 to 10")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens} is out of range; it must be at least 1")

    def limits(self, mask: Tensor) -> Tensor:
        """How many tokens (B,) each translation may have; the source texts are tokens where `mask` (B, S) is True."""
        if self.max_tokens is None:
            usual = 2 * mask.sum(1) + 50
            return usual if self.longest is None else usual.clamp_max(self.longest)
        return torch.full((len(mask),), self.max_tokens, device=mask.device)

    def divisor(self, length: int) -> float:
        """The number that the log-probability of a text of so many tokens is divided by."""
        base = (5 + length) / 6 if self.penalty == "paper" else length
        return float(base**self.length_penalty)


class TranslationHypothesis(NamedTuple):
    """A translation: its ids without start, with the end; its score is its log-probability, penalised by length."""

    ids: list[int]
    score: float


Choice = tuple[Tensor, Tensor]  # (..., C) log-probabilities of the likeliest next tokens, and these tokens


@torch.inference_mode()
def search_batch(
    model: Translator, source: Tensor, mask: Tensor, search: Search, choose: Callable[[Tensor], Choice]
) -> Iterator[tuple[int, list[TranslationHypothesis]]]:
    """The numbers of the texts of source (B, S), each with its `beams` best translations, soon after it is done.

    `mask` (B, S) is True at tokens; `choose` is `chooser`'s.
    """
    config, N = model.config, search.beams
    beams = _Beams(len(source), N, config.start, search.limits(mask).clamp_max(config.context))
    longest = int(beams.limit.max())
    read = model.remember(model.encode(source, mask))
    cache = Cache(config.decoder.layers, longest * N)
    for length in range(1, longest + 1):
        tokens = beams.tokens[..., -1]  # (B, N)
        states = model.grow(tokens, read, position=length - 1, seen=beams.seen, cache=cache)
        beams.advance(*_ending(choose(states), beams.limit == length, config.end), config.end, search, length)
        if int(beams.done.sum()) * 8 >= len(beams.done):
            yield from beams.results()
            rows = _running(beams.done)
            if not len(rows):
                return
            beams.keep(rows)
            cache.keep(rows)
            read = read.keep(rows)


def _running(done: Tensor) -> Tensor:
    """The rows that are not done, nearly all of them where they were: the last ones fill the gaps."""
    running = (~done).nonzero().flatten()
    rows = torch.arange(len(running), device=done.device)
    rows[done[: len(rows)]] = running[running >= len(rows)]
    return rows


def _ending(choice: Choice, last: Tensor, end: int) -> Choice:
    """The same choice; but where `last` (B,) is True, the end is the one thing that may follow."""
    if not bool(last.any()):
        return choice
    logprobs, tokens = choice[0].clone(), choice[1].clone()
    logprobs[last], tokens[last] = -math.inf, end
    logprobs[last, :, 0] = 0.0
    return logprobs, tokens


class _Beams:
    """The running and the finished beams of B texts, N each; `limit` (B,) is how many tokens each text may have."""

    def __init__(self, B: int, N: int, start: int, limit: Tensor) -> None:
        device = limit.device
        self.limit, self.number = limit, torch.arange(B)
        self.tokens = torch.full((B, N, 1), start, device=device)  # (B, N, T)
        self.logprob = torch.full((B, N), NEVER, device=device)
        self.logprob[:, 0] = 0.0  # all are the same as yet: one goes on
        self.seen = torch.eye(N, dtype=torch.bool, device=device).repeat(B, 1, 1)  # (B, N, T * N)
        self.finished: list[list[TranslationHypothesis]] = [[] for _ in range(B)]
        self.done = torch.zeros(B, dtype=torch.bool, device=device)

    def advance(self, logprobs: Tensor, tokens: Tensor, end: int, search: Search, length: int) -> None:
        """Goes on by one of the `tokens` (B, N, C), whose `logprobs` are given."""
        N, C = tokens.shape[1:]
        total = (logprobs + self.logprob[..., None]).flatten(1)  # (B, N * C)
        top, place = total.topk(min(2 * N, N * C))
        parent, token = place // C, tokens.flatten(1).gather(1, place)
        ended = token == end
        for row, candidate in (ended[:, :N] & (top[:, :N] > NEVER / 2) & ~self.done[:, None]).nonzero().tolist():
            ids = [*self.tokens[row, parent[row, candidate], 1:].tolist(), end]
            self.finished[row].append(TranslationHypothesis(ids, float(top[row, candidate]) / search.divisor(length)))
            self.finished[row] = sorted(self.finished[row], key=lambda found: -found.score)[:N]
        chosen = top.masked_fill(ended, -math.inf).topk(N).indices  # (B, N) among the candidates
        self.logprob, parent, token = (x.gather(1, chosen) for x in (top, parent, token))
        before = self.tokens.gather(1, parent[..., None].expand(-1, -1, self.tokens.shape[-1]))
        self.tokens = torch.cat((before, token[..., None]), dim=-1)
        seen = self.seen.gather(1, parent[..., None].expand(-1, -1, self.seen.shape[-1]))
        own = torch.eye(N, dtype=torch.bool, device=seen.device).expand(len(seen), N, N)
        self.seen = torch.cat((seen, own), dim=-1)
        worst = [found[-1].score if len(found) == N else NEVER for found in self.finished]
        hopes = search.early_stopping == "never" and search.length_penalty > 0
        lengths = self.limit.tolist() if hopes else [length] * len(worst)
        best = self.logprob.amax(1) / torch.tensor([search.divisor(each) for each in lengths], device=tokens.device)
        self.done |= (best <= torch.tensor(worst, device=best.device)) | (self.limit == length)
        if search.early_stopping is True:
            self.done |= torch.tensor([len(found) == N for found in self.finished], device=best.device)

    def results(self) -> Iterator[tuple[int, list[TranslationHypothesis]]]:
        """Of the texts that are done."""
        for row in self.done.nonzero().flatten().tolist():
            yield int(self.number[row]), self.finished[row]

    def keep(self, rows: Tensor) -> None:
        self.number, self.limit = self.number[rows.cpu()], self.limit[rows]
        self.tokens, self.logprob, self.seen = self.tokens[rows], self.logprob[rows], self.seen[rows]
        self.finished = [self.finished[row] for row in rows.tolist()]
        self.done = self.done[rows]


CHUNK = 1 << 20  # logits at once: these stay in the processor's cache


def chooser(model: Translator, search: Search) -> Callable[[Tensor], Choice]:
    """From states (B, N, D) to the 2N tokens that are the likeliest after each, N the number of beams.

    No product is wider than the one with the vocabulary, so on a CPU its weights are laid out once for all steps.
    """
    weight, bias = model.output
    narrowed = torch.is_autocast_enabled(weight.device.type)
    packed = not narrowed and can_pack(weight.device, weight.dtype)
    head = PackedLinear(weight, bias) if packed else model.logits
    banned = list(search.banned)
    rows, count = max(1, CHUNK // len(weight)), min(2 * search.beams, len(weight))

    def choose(states: Tensor) -> Choice:
        best, tokens = [], []
        for some in states.flatten(0, 1).split(rows):
            scores = head(some).float()
            if search.renormalise:
                scores[:, banned] = -math.inf
            logprobs = scores.log_softmax(-1)
            logprobs[:, banned] = -math.inf
            found = likeliest(logprobs, count)
            best.append(found[0])
            tokens.append(found[1])
        shape = (*states.shape[:-1], count)
        return torch.cat(best).view(shape), torch.cat(tokens).view(shape)

    return choose


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


WIDTH = 16  # texts are padded to a multiple of it


def search_texts(
    model: Translator, texts: Sequence[Sequence[int]], search: Search, *, tokens: int = 16_384
) -> Iterator[tuple[int, list[TranslationHypothesis]]]:
    """The translations of texts (ids with their end), the number of each before it, in batches of at most `tokens`,
    padding and beams counted.

    A text is padded to what its own length says, and goes with texts of that width: attention over another number of
    keys, though masked, has other bits.
    """
    choose = chooser(model, search)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for width, group in itertools.groupby(order, key=lambda i: _width(len(texts[i]), model.config.context)):
        rest, most = list(group), max(1, tokens // (width * search.beams))
        for rows in (rest[i : i + most] for i in range(0, len(rest), most)):
            source, mask = _padded([texts[i] for i in rows], width, model.config.pad)
            device = model.token.weight.device
            for row, found in search_batch(model, source.to(device), mask.to(device), search, choose):
                yield rows[row], found


def _width(length: int, context: int) -> int:
    """At most the context, which has an error of its own for what is longer."""
    return max(length, min(-(-length // WIDTH) * WIDTH, context))


def _padded(texts: Sequence[Sequence[int]], width: int, pad: int) -> tuple[Tensor, Tensor]:
    """Texts (B, S) of ids, and where they are tokens."""
    source = torch.full((len(texts), width), pad)
    for row, text in zip(source, texts):
        row[: len(text)] = torch.tensor(text)
    return source, torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
