"""One layer of a Transformer: attention, then a feed-forward network, each with a residual and a norm.

1706.03762, section 3.1. The same class is a layer of CLIP, of a U-Net's transformer, of an encoder or a
decoder; what differs comes in as modules and a few booleans.

    norm_first                      not norm_first (the 2017 paper)      parallel
    x = x + attention(norm(x))      x = norm(x + attention(x))           x = x + attention(norm(x)) + ffn(norm(x))
    x = x + memory_attention(...)   x = norm(x + memory_attention(...))
    x = x + ffn(norm(x))            x = norm(x + ffn(x))

A `post_norm` (Gemma 2) stands between a layer and its residual: x = x + norm(attention(norm(x))). With `shared_norm`
both norms of a parallel block are one (GPT-J, Falcon, Phi).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from qkv.core.activation import ACTIVATIONS
from qkv.core.attention import Attention, KeyValues, Memory, Rotary
from qkv.core.dropout import dropout
from qkv.errors import ConfigError, unknown


class FeedForward(nn.Module):
    """down(activation(up(x))), section 3.3; `gated`: down(activation(gate(x)) * up(x)), 2002.05202."""

    def __init__(self, dim: int, ffn_dim: int, *, activation: str = "gelu", gated: bool = False, bias: bool = True):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(unknown("activation", activation, ACTIVATIONS))
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(dim, ffn_dim, bias=bias) if gated else None
        self.up = nn.Linear(dim, ffn_dim, bias=bias)
        self.down = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer; `norm` makes a norm module of a width. With `parallel`, attention and ffn read the same input
    and are added together (GPT-J, NeoX). `dropout` is the share of each layer's output that is zeroed before it is
    added (section 5.4), in training only. `post_norm` and `shared_norm` are told above."""

    def __init__(
        self,
        dim: int,
        attention: Attention,
        ffn: FeedForward,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        memory_attention: Attention | None = None,
        norm_first: bool = True,
        parallel: bool = False,
        post_norm: bool = False,
        shared_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first, self.parallel, self.dropout = norm_first, parallel, dropout
        self.attention_norm, self.attention = norm(dim), attention
        self.memory_norm = norm(dim) if memory_attention is not None else None
        self.memory_attention = memory_attention
        self.ffn_norm, self.ffn = None if shared_norm else norm(dim), ffn
        self.attention_post_norm = norm(dim) if post_norm else None
        self.ffn_post_norm = norm(dim) if post_norm else None

    def forward(
        self,
        x: Tensor,
        memory: Memory | None = None,
        *,
        bias: Tensor | None = None,
        memory_bias: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """x (B, T, D), memory (B, S, M) for the cross-attention; returns (B, T, D)."""

        def look(x: Tensor) -> Tensor:
            return self.attention(x, bias=bias, causal=causal, rotary=rotary, cache=cache)

        if self.parallel:
            normed = self.attention_norm(x)
            other = normed if self.ffn_norm is None else self.ffn_norm(x)
            return x + self._drop(look(normed)) + self._drop(self.ffn(other))
        x = self._residual(x, look, self.attention_norm, self.attention_post_norm)
        if self.memory_attention is not None and self.memory_norm is not None:
            x = self._residual(x, partial(self.memory_attention, memory=memory, bias=memory_bias), self.memory_norm)
        assert self.ffn_norm is not None
        return self._residual(x, self.ffn, self.ffn_norm, self.ffn_post_norm)

    def _residual(
        self, x: Tensor, layer: Callable[[Tensor], Tensor], norm: nn.Module, post_norm: nn.Module | None = None
    ) -> Tensor:
        if not self.norm_first:
            return norm(x + self._drop(layer(x)))
        new = layer(norm(x))
        return x + self._drop(new if post_norm is None else post_norm(new))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, training=self.training)
