"""A runner of paper: its pages hold the tokens themselves, and its logits follow from what is read there, so that a
wrong table, a stale page or a lost row shows at once."""

from collections.abc import Sequence

import numpy as np
import pytest

from qkv.engine.runner import Chunk
from qkv.sample.tokens import Sampling, TokenSampler


class PaperRunner:
    """`order`: how many tokens back the next one depends on; None: all of them."""

    def __init__(
        self, *, pages: int = 64, page: int = 4, context: int = 96, vocab: int = 23, order: int | None = None
    ) -> None:
        self.vocab, self.context, self.page, self.pages, self.page_bytes = vocab, context, page, pages, 1000
        self.order = order
        self.paper = np.full((pages, page), -1)
        self.steps: list[list[Chunk]] = []

    def step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        self.steps.append([chunk._replace(ids=list(chunk.ids), table=list(chunk.table)) for chunk in chunks])
        for chunk in chunks:
            assert chunk.start + len(chunk.ids) <= self.context
            for row, token in enumerate(chunk.ids, chunk.start):
                self.paper[chunk.table[row // self.page], row % self.page] = token
        return [self._logits(chunk) for chunk in chunks if chunk.wanted]

    def _logits(self, chunk: Chunk) -> np.ndarray:
        read = self.paper[list(chunk.table)].ravel()
        stop = chunk.start + len(chunk.ids)
        return np.stack([self.row(read[: i + 1]) for i in range(stop - chunk.wanted, stop)])

    def row(self, ids: Sequence[int]) -> np.ndarray:
        """The logits (V,) after `ids`."""
        seen = [int(token) for token in ids][-self.order if self.order else 0 :]
        assert min(seen) >= 0, "a row that nobody wrote"
        return np.random.default_rng(seen).standard_normal(self.vocab).astype(np.float32) * 3

    def alone(self, prompt: Sequence[int], tokens: int, sampling: Sampling, stops: frozenset[int] = frozenset()):
        """What a plain loop draws."""
        sampler, ids = TokenSampler(sampling, prompt, self.vocab), list(prompt)
        while len(ids) < len(prompt) + tokens and not (len(ids) > len(prompt) and ids[-1] in stops):
            ids.append(sampler.next(self.row(ids)).id)
        return ids[len(prompt) :]


@pytest.fixture(scope="session")
def paper() -> type[PaperRunner]:
    return PaperRunner
