"""What the engine asks of a model: token ids in, logits out, keys and values kept in numbered pages.

PagedAttention (2309.06180), section 4.2: the pool is cut into pages of `page` rows (keys and values of every
layer), and a sequence's table says in which pages its rows lie. The engine alone knows who owns a page
(cache.py); a runner only reads and writes where the tables point. `TorchRunner` (torch_runner.py) runs any
`Decoder`, `NativeRunner` (native_runner.py) the compiled kernels; this file imports neither.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Chunk(NamedTuple):
    """A run of one sequence's tokens: their keys and values are written, and logits of the last ones returned."""

    ids: Sequence[int]  # the tokens to read now, at least one
    start: int  # the position of the first; rows before it were written by earlier steps
    table: Sequence[int]  # the sequence's pages: row r lies in table[r // page], at r % page
    wanted: int = 0  # how many logits: those after each of the last `wanted` tokens


class Runner(Protocol):
    """A model with its pool of pages. One thread at a time calls `step`."""

    @property
    def vocab(self) -> int:
        """V: how many logits a row has."""

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""

    @property
    def page(self) -> int:
        """Rows a page."""

    @property
    def pages(self) -> int:
        """Pages in the pool; their numbers are 0 to pages - 1."""

    @property
    def page_bytes(self) -> int:
        """Memory that one page takes: page * layers * 2 * kv_heads * head_dim * bytes a number."""

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""

    def use(self, threads: int | None) -> None:
        """From the next step on, computes on so many threads of the processor; None: as it was made."""

    def step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Reads every chunk; returns float32 logits (wanted, V) for each chunk that wants some, in their order.

        Chunks of one step belong to different sequences; their tables may share full pages that lie before
        every `start`. The promise that everything above stands on: a token's logits, keys and values depend, to
        the last bit, on the tokens up to it and on nothing else: not on the other chunks of the step, not on how
        its sequence was cut into chunks, not on which pages it lies in.
        """
