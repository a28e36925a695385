"""Keys and values of earlier tokens, kept so that each new token costs one row of attention.

Memory is laid out once for the longest input; a layer's `extend` writes the new rows in place and gives
a view of all rows up to now.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from qkv.core.attention import KeyValues
from qkv.errors import InputError


class StackCache(Protocol):
    """What a `Stack` asks of a cache: how many tokens it holds, and the keys and values of each layer."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[KeyValues]: ...


class LayerCache:
    """The keys and values of one attention layer: up to `context` rows of (B, G, S, K), laid out at first use."""

    def __init__(self, context: int) -> None:
        self.context, self.length = context, 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, G, T, K) rows; returns all (B, G, S, K). InputError beyond the context."""
        start, stop = self.length, self.length + k.shape[-2]
        if stop > self.context:
            raise InputError(f"the input has {stop} tokens; this cache holds at most {self.context}")
        if self._k is None or self._v is None:
            self._k, self._v = (x.new_empty((*x.shape[:-2], self.context, x.shape[-1])) for x in (k, v))
        self._k[..., start:stop, :], self._v[..., start:stop, :] = k, v
        self.length = stop
        return self._k[..., :stop, :], self._v[..., :stop, :]

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch, in this order. In place: rows that stay where they are cost nothing."""
        if self._k is not None and self._v is not None:
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
            for x in (self._k, self._v):
                x[moved, ..., : self.length, :] = x[rows[moved], ..., : self.length, :]
            self._k, self._v = self._k[: len(rows)], self._v[: len(rows)]


class Cache:
    """One `LayerCache` a layer of a `Stack`; `length` tokens were seen."""

    def __init__(self, layers: int, context: int) -> None:
        self.layers = [LayerCache(context) for _ in range(layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows (B') of the batch only, in this order."""
        for layer in self.layers:
            layer.keep(rows)


def padding_bias(mask: Tensor) -> Tensor:
    """A mask of padding (B, S), or of each query's own (B, T, S), True where one may look, as a bias for `attend`:
    (B, 1, 1, S) or (B, 1, T, S)."""
    mask = mask.to(torch.bool)
    return mask[:, None] if mask.dim() == 3 else mask[:, None, None, :]
