"""A stack of blocks and the configuration that makes it: the body of every model in the album.

Masks, rotary angles and ALiBi are built here, once a pass, and handed to every layer. Embeddings before
the stack and heads after it belong to the models.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qkv.core.attention import Attention
from qkv.core.block import ACTIVATIONS, Block, FeedForward
from qkv.core.cache import Cache, padding_bias
from qkv.core.position import alibi, rotary
from qkv.errors import ConfigError, unknown

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The shape of a stack. Widths in numbers, `memory_dim` set where the layers cross-attend."""

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    kv_heads: int | None = None
    head_dim: int | None = None
    memory_dim: int | None = None
    activation: str = "gelu"
    gated: bool = False
    bias: bool = True
    attention_bias: bool = True
    out_bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_first: bool = True
    final_norm: bool = True
    causal: bool = False
    position: Literal["none", "rotary", "alibi"] = "none"
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "ffn_dim", "kv_heads", "head_dim", "memory_dim"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1_000_000:
                raise ConfigError(f"{name}={value} is out of range; it must be 1 to 1000000")
        if self.layers > 1_000:
            raise ConfigError(f"layers={self.layers} is out of range; it must be 1 to 1000")
        if self.head_dim is None and self.dim % self.heads:
            raise ConfigError(f"dim={self.dim} is not divisible by heads={self.heads}; set head_dim")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}; choose a divisor")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(unknown("activation", self.activation, ACTIVATIONS))
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps={self.norm_eps} is out of range; it must lie between 0 and 1")
        if self.position == "rotary" and self.head_width % 2:
            raise ConfigError(f"head_dim={self.head_width} is odd; rotary positions turn pairs of numbers")
        if not 0 < self.rotary_base < math.inf:
            raise ConfigError(f"rotary_base={self.rotary_base} is out of range; it must be above 0 and finite")

    @property
    def head_width(self) -> int:
        """K: given, or an equal share of `dim`."""
        return self.dim // self.heads if self.head_dim is None else self.head_dim


class Stack(nn.Module):
    """`layers` blocks and a final norm; x (B, T, D) in and out."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(self._block() for _ in range(config.layers))
        self.norm = self._norm(config.dim) if config.final_norm else None

    def _norm(self, dim: int) -> nn.Module:
        return NORMS[self.config.norm](dim, eps=self.config.norm_eps)

    def _attention(self, memory_dim: int | None) -> Attention:
        c = self.config
        kv_heads = None if memory_dim else c.kv_heads
        return Attention(
            c.dim,
            c.heads,
            kv_heads=kv_heads,
            head_dim=c.head_dim,
            memory_dim=memory_dim,
            bias=c.attention_bias,
            out_bias=c.out_bias,
        )

    def _block(self) -> Block:
        c = self.config
        return Block(
            c.dim,
            self._attention(None),
            FeedForward(c.dim, c.ffn_dim, activation=c.activation, gated=c.gated, bias=c.bias),
            norm=self._norm,
            memory_attention=self._attention(c.memory_dim) if c.memory_dim else None,
            norm_first=c.norm_first,
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x (B, T, D); `mask` (B, S) and `memory_mask` are True at tokens, False at padding; `cache` grows by T."""
        c = self.config
        T, seen = x.shape[-2], cache.length if cache is not None else 0
        S = seen + T
        bias = padding_bias(mask) if mask is not None else None
        turn = None
        if c.position == "rotary":
            turn = rotary(torch.arange(seen, S, device=x.device), c.head_width, base=c.rotary_base)
        elif c.position == "alibi":
            slope = alibi(c.heads, T, S, device=x.device)
            bias = slope if bias is None else slope.masked_fill(~bias, -torch.inf)
        memory_bias = padding_bias(memory_mask) if memory_mask is not None else None
        for i, block in enumerate(self.blocks):
            layer = cache.layers[i] if cache is not None else None
            x = block(x, memory, bias=bias, memory_bias=memory_bias, causal=c.causal, rotary=turn, cache=layer)
        return x if self.norm is None else self.norm(x)
