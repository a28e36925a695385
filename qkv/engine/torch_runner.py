"""Any `Decoder` behind the engine's `Runner`, in plain PyTorch: a fixed number of rows at a time.

The promise (runner.py) is that a token's numbers never depend on what else is computed. In PyTorch they do: a product
of 3 rows differs in its last bits from one of 16, so does attention over padded keys. Here every product has one shape,
`page` rows, whoever they belong to, and attention has one that follows from the place alone: the `page` queries of one
page of one sequence, each at the row where it lies, over the keys of the pages up to that one. A row's numbers then
cannot know how many of its neighbours were real.

Rows of several sequences share a pass if a product gives every one of its rows the same bits for the same numbers,
which no library promises: it is tried when the decoder is loaded, and where it is not so, a pass is one page of one
sequence with each row at its place. Attention is never shared: 16 sequences look 16 times.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from qkv import device as devices
from qkv.core.attention import Attention, Rotary, attend, rotate
from qkv.core.position import Places, last_places
from qkv.core.stack import Stack, shape_scores, visible
from qkv.engine.pool import free_memory, pool_bytes
from qkv.engine.runner import Chunk
from qkv.errors import ConfigError
from qkv.models.decoder import Decoder

HEAD_ROWS = 16  # logits are for few rows mostly, and heads are large; again one shape
NARROW_PAGE, PAGE = 64, 32  # in 16 bits and in 32: where more rows read a prompt no faster, and cost one token little


class _Tile(NamedTuple):
    """Neighbours of one sequence in one page that go through the decoder now."""

    ids: Sequence[int]
    offset: int  # of the first within its page
    table: Sequence[int]  # the sequence's pages up to this one
    slot: int  # the first one's row in the pass
    wanted: int  # how many logits, of the last ones

    @property
    def slots(self) -> slice:
        return slice(self.slot, self.slot + len(self.ids))

    @property
    def rows(self) -> slice:
        return slice(self.offset, self.offset + len(self.ids))


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


class TorchRunner:
    """`decoder` with a pool of pages in `memory` bytes (None: a share of what is free), laid out as it is used, on the
    decoder's own device.

    `page` is rows a page and a pass. `context` is the decoder's, down to a whole page. `shared`: whether sequences
    share a pass (None: if that changes no bit). Raises ConfigError if `memory` holds no page.
    """

    def __init__(
        self, decoder: Decoder, *, memory: int | None = None, page: int | None = None, shared: bool | None = None
    ) -> None:
        config, weight = decoder.config, decoder.token.weight
        self.decoder = decoder.eval()
        self.vocab = config.vocab
        self.page = min(page or (NARROW_PAGE if weight.element_size() == 2 else PAGE), config.context)
        self.context = config.context - config.context % self.page
        kv_heads = config.kv_heads or config.heads
        row = (kv_heads, config.stack.head_width)
        self.page_bytes = 2 * config.layers * self.page * row[0] * row[1] * weight.element_size()
        if memory is None:
            memory = pool_bytes(self.page_bytes, self.page, self.context, _free(weight.device))
        self.pages = memory // self.page_bytes
        if self.pages < 1:
            raise ConfigError(f"memory={memory} bytes hold no page of keys and values; one takes {self.page_bytes}")
        shape = (config.layers, 2, self.pages, self.page, *row)
        try:
            self._pool = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        except RuntimeError as error:
            raise ConfigError(f"there is no room for memory={memory} bytes of keys and values; give less") from error
        self.weight_bytes = sum(weights.nbytes for weights in decoder.parameters())
        self._threads: int | None = None
        self._pass = _Pass(decoder.stack)
        self._blocks = [_tiled(block, self._pass) for block in decoder.stack.blocks]
        self.shared = True
        self.shared = self._rows_are_alike() if shared is None else shared

    @torch.inference_mode()
    def _rows_are_alike(self) -> bool:
        """Whether one token gets the same bits in every row of a pass and of a head."""
        states = self._states([_Tile([0], 0, [0], slot, 1) for slot in range(self.page)])
        logits = self.decoder.logits(states[:1].expand(HEAD_ROWS, -1).contiguous())
        return torch.equal(states, states[:1].expand_as(states)) and torch.equal(logits, logits[:1].expand_as(logits))

    def use(self, threads: int | None) -> None:
        """Runner.use."""
        self._threads = threads

    def step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Runner.step."""
        with devices.threads(self._threads):
            return self._step(chunks)

    @torch.inference_mode()
    def _step(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        states, places = [], list[int]()  # of the rows that logits are wanted of
        for tiles in self._passes(chunks):
            found = self._states(tiles)
            for tile in tiles:
                first = len(tile.ids) - tile.wanted
                states.append(found[tile.slot + first : tile.slot + len(tile.ids)])
                places += range(tile.offset + first, tile.offset + len(tile.ids))
        wanted = [chunk.wanted for chunk in chunks if chunk.wanted]
        return [found.numpy() for found in self._logits(torch.cat(states), places).split(wanted)] if wanted else []

    def _passes(self, chunks: Sequence[Chunk]) -> Iterator[list[_Tile]]:
        """The chunks, cut at the ends of pages and of passes; a sequence's rows come in their order."""
        tiles, free = list[_Tile](), self.page
        for chunk in chunks:
            start, stop = chunk.start, chunk.start + len(chunk.ids)
            while start < stop:
                page, offset = divmod(start, self.page)
                if free == 0 or (tiles and not self.shared):
                    yield tiles
                    tiles, free = [], self.page
                end = min(stop, start + self.page - offset, start + free if self.shared else stop)
                ids = chunk.ids[start - chunk.start : end - chunk.start]
                slot = self.page - free if self.shared else offset
                wanted = min(max(end - (stop - chunk.wanted), 0), end - start)
                tiles.append(_Tile(ids, offset, chunk.table[: page + 1], slot, wanted))
                free -= end - start
                start = end
        if tiles:
            yield tiles

    def _states(self, tiles: Sequence[_Tile]) -> Tensor:
        """One pass: the states (page, D), of which the tiles' slots mean something."""
        decoder, device = self.decoder, self._pool.device
        ids = torch.zeros(1, self.page, dtype=torch.long)
        positions = torch.zeros(1, self.page, dtype=torch.long)
        for tile in tiles:
            start = (len(tile.table) - 1) * self.page + tile.offset
            ids[0, tile.slots] = torch.tensor(tile.ids)
            positions[0, tile.slots] = torch.arange(start, start + len(tile.ids))
        ids, positions = ids.to(device), positions.to(device)
        x = decoder.embed(ids, positions)  # (1, page, D)
        self._pass.begin(tiles, self.page, positions[0], x.dtype)
        for block, window, pool in zip(self._blocks, decoder.config.stack.layer_windows, self._pool):
            self._pass.turn_to(pool, window)
            x = block(x)
        norm = decoder.stack.norm
        return (x if norm is None else norm(x))[0]

    def _logits(self, states: Tensor, places: Sequence[int]) -> Tensor:
        """(rows, V) of states (rows, D) that stand at `places` of their pages: HEAD_ROWS at a time."""
        found, first = [], 0
        while first < len(states):
            slot = 0 if self.shared else places[first] % HEAD_ROWS
            count = 1
            while first + count < len(states) and slot + count < HEAD_ROWS:
                if not self.shared and places[first + count] != places[first] + count:
                    break
                count += 1
            block = states.new_zeros(HEAD_ROWS, states.shape[-1])
            block[slot : slot + count] = states[first : first + count]
            found.append(self.decoder.logits(block)[slot : slot + count].float().cpu())
            first += count
        return torch.cat(found)


class _Pass:
    """The arguments of one pass beside its rows: which rows are whose, and where they may look."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.turn: Rotary | None = None

    def begin(self, tiles: Sequence[_Tile], page: int, positions: Tensor, dtype: torch.dtype) -> None:
        device, windows = positions.device, set(self._stack.config.windows)
        self.tiles, self.page = tiles, page
        self.tables = [torch.tensor(tile.table, device=device) for tile in tiles]
        self.turn = self._stack.position.rotary(Places(positions, positions))
        sizes = {len(tile.table) for tile in tiles}
        self._biases = {
            (pages, window): self._bias(pages, window, dtype, device) for pages in sizes for window in windows
        }

    def turn_to(self, pool: Tensor, window: int | None) -> None:
        """The next layer's keys and values (2, pages, page, G, K), and how far back it looks."""
        self.keys, self.values = pool
        self._window = window

    def bias(self, tile: _Tile) -> Tensor:
        return self._biases[len(tile.table), self._window]

    def _bias(self, pages: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Of the last page's queries over all keys (T, S), causality and all: bool, or with ALiBi float (H, T, S)."""
        places = last_places(self.page, pages * self.page, device=device)
        scores = self._stack.position.bias(places)
        bias = shape_scores(None if scores is None else scores.to(dtype), visible(places, causal=True, window=window))
        assert bias is not None
        return bias


class _TiledAttention(nn.Module):
    """An `Attention` whose products are of all rows of a pass, and whose looks are of one page each."""

    def __init__(self, attention: Attention, here: _Pass) -> None:
        super().__init__()
        self.attention, self._here = attention, here

    def forward(self, x: Tensor, **unused: object) -> Tensor:
        """x (1, R, D) -> (1, R, D)."""
        own, here = self.attention, self._here
        q = own.q(x).unflatten(-1, (own.heads, -1)).transpose(1, 2)  # (1, H, R, K)
        q = q if own.q_norm is None else own.q_norm(q)
        k, v = own.keys_values(x)  # (1, G, R, K)
        if here.turn is not None:
            q, k = rotate(q, here.turn), rotate(k, here.turn)
        for tile in here.tiles:
            for pool, new in ((here.keys, k), (here.values, v)):
                page = pool[tile.table[-1]]  # (page, G, K), a view
                page[tile.rows] = new[0, :, tile.slots].transpose(0, 1)
                page[tile.rows.stop :] = 0  # masked, but what lay there may be NaN, and 0 * NaN is NaN
        mixed = torch.zeros_like(q)
        for tile, table in zip(here.tiles, here.tables):
            mixed[:, :, tile.slots] = self._look(q[:, :, tile.slots], tile, table)
        return cast(Tensor, own.out(mixed.transpose(1, 2).flatten(2)))

    def _look(self, q: Tensor, tile: _Tile, table: Tensor) -> Tensor:
        """q (1, H, rows, K) of a tile, each at its row of the page -> (1, H, rows, K)."""
        here = self._here
        placed = q.new_zeros(*q.shape[:2], here.page, q.shape[-1])
        placed[:, :, tile.rows] = q
        k, v = (pool[table].flatten(0, 1).transpose(0, 1)[None] for pool in (here.keys, here.values))  # (1, G, S, K)
        own = self.attention
        return attend(placed, k, v, bias=here.bias(tile), scale=own.scale, cap=own.cap)[:, :, tile.rows]


def _tiled(block: nn.Module, here: _Pass) -> nn.Module:
    """The block with its own weights and another attention."""
    found = copy.copy(block)
    found._modules = dict(block._modules) | {"attention": _TiledAttention(cast(Attention, block.attention), here)}
    return found
