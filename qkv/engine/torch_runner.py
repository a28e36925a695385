"""Any `Decoder` behind the engine's `Runner`, in plain PyTorch: a page of a sequence at a time.

The promise (runner.py) is that a token's numbers never depend on what else is computed. In PyTorch they do: a product
of 3 rows differs in its last bits from one of 16, so does attention over padded keys. Here every pass of the decoder
has one shape that follows from the place alone: the `page` rows of one page of one sequence, each at the row where it
will lie, over the keys of the pages up to that one; rows that are not asked for now hold token 0. A row's numbers then
cannot know how many of its neighbours were real. The price is that 16 sequences cost 16 passes: this runner is for
models without compiled kernels, and what those are tested against (native_runner.py batches).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qkv.engine.runner import Chunk
from qkv.errors import ConfigError
from qkv.models.decoder import Decoder

MEMORY = 1 << 30
HEAD_ROWS = 16  # logits are for one row mostly, and heads are large; again one shape, each row at its place
NARROW_PAGE, PAGE = 64, 32  # in 16 bits and in 32: where more rows read a prompt no faster, and cost one token little


class TorchRunner:
    """`decoder` with a pool of pages in `memory` bytes, laid out as it is used, on the decoder's own device.

    `page` is rows a page and a pass. `context` is the decoder's, down to a whole page. Raises ConfigError if `memory`
    holds no page.
    """

    def __init__(self, decoder: Decoder, *, memory: int = MEMORY, page: int | None = None) -> None:
        config, weight = decoder.config, decoder.token.weight
        self.decoder = decoder.eval()
        self.vocab = config.vocab
        self.page = min(page or (NARROW_PAGE if weight.element_size() == 2 else PAGE), config.context)
        self.context = config.context - config.context % self.page
        kv_heads = config.kv_heads or config.heads
        row = (kv_heads, config.stack.head_width)
        self.page_bytes = 2 * config.layers * self.page * row[0] * row[1] * weight.element_size()
        self.pages = memory // self.page_bytes
        if self.pages < 1:
            raise ConfigError(f"memory={memory} bytes hold no page of keys and values; one takes {self.page_bytes}")
        shape = (config.layers, 2, self.pages, self.page, *row)
        try:
            self._cache = _PagedCache(torch.empty(shape, dtype=weight.dtype, device=weight.device))
        except RuntimeError as error:
            raise ConfigError(f"there is no room for memory={memory} bytes of keys and values; give less") from error

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        found = [self._read(chunk) for chunk in chunks]
        return [torch.cat(logits).float().cpu().numpy() for logits in found if logits]

    def _read(self, chunk: Chunk) -> list[Tensor]:
        """One pass for each page that the chunk touches; the logits of its last `wanted` rows, page by page."""
        stop, found = chunk.start + len(chunk.ids), []
        for first in range(chunk.start - chunk.start % self.page, stop, self.page):
            begin, end = max(first, chunk.start), min(first + self.page, stop)
            states = self._pass(chunk.ids[begin - chunk.start : end - chunk.start], begin, chunk.table)
            begin = max(begin, stop - chunk.wanted)
            for block in range(begin - begin % HEAD_ROWS, end, HEAD_ROWS) if begin < end else ():
                logits = self.decoder.logits(states[block - first : block - first + HEAD_ROWS])
                found.append(logits[max(begin - block, 0) : end - block])
        return found

    def _pass(self, ids: Sequence[int], start: int, table: Sequence[int]) -> Tensor:
        """The states (page, D) of the page in which `ids` stand from position `start` on."""
        page, offset = divmod(start, self.page)
        rows = slice(offset, offset + len(ids))
        padded = torch.zeros(1, self.page, dtype=torch.long)
        padded[0, rows] = torch.tensor(ids)
        self._cache.turn_to(table[: page + 1], rows)
        return self.decoder.states(padded.to(self._cache.device), cache=self._cache)[0]


class _PagedCache:
    """The pool (layers, 2, pages, page, G, K) as the `StackCache` of one sequence after the other."""

    def __init__(self, pool: Tensor) -> None:
        self.device, self.page = pool.device, pool.shape[3]
        self.layers = [_PagedLayer(self, keys, values) for keys, values in pool]

    def turn_to(self, table: Sequence[int], rows: slice) -> None:
        """The next pass is about the last page of `table`, of which `rows` are new."""
        self.table, self.rows = torch.tensor(table, device=self.device), rows
        self.last, self.length = table[-1], (len(table) - 1) * self.page


class _PagedLayer:
    def __init__(self, cache: _PagedCache, keys: Tensor, values: Tensor) -> None:
        self._cache, self._keys, self._values = cache, keys, values

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self._write(self._keys, k), self._write(self._values, v)

    def _write(self, pool: Tensor, new: Tensor) -> Tensor:
        """Puts the new rows of `new` (1, G, page, K) into the pool; returns those of all pages (1, G, S, K)."""
        cache, page = self._cache, pool[self._cache.last]  # (page, G, K), a view
        page[cache.rows] = new[0].transpose(0, 1)[cache.rows]
        page[cache.rows.stop :] = 0  # masked, but what lay there may be NaN, and 0 * NaN is NaN
        return pool[cache.table].flatten(0, 1).transpose(0, 1)[None]
