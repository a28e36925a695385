"""A stack of blocks: the body of every model in the album, made by its configuration.

Masks, windows, rotary angles and ALiBi are built here, once a pass, and handed to every layer. Embeddings before
the stack and heads after it belong to the models.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qkv.core.attention import Attention, Memory, Rotary
from qkv.core.block import Block, FeedForward
from qkv.core.cache import StackCache, padding_bias
from qkv.core.position import alibi, rotary, token_positions
from qkv.core.stack_config import StackConfig

__all__ = ["Stack", "StackConfig"]

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


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
        return Attention(
            c.dim,
            c.heads,
            kv_heads=None if memory_dim else c.kv_heads,
            head_dim=c.head_dim,
            value_dim=c.value_dim,
            memory_dim=memory_dim,
            bias=c.attention_bias,
            out_bias=c.out_bias,
            scale=c.scale,
            q_norm=self._norm(c.head_width) if c.qk_norm else None,
            k_norm=self._norm(c.head_width) if c.qk_norm else None,
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
            parallel=c.parallel,
            dropout=c.dropout,
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor | Sequence[Memory] | None = None,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: StackCache | None = None,
    ) -> Tensor:
        """x (B, T, D); `mask` (B, S) and `memory_mask` are True at tokens, False at padding; `cache` grows by T.

        A `mask` (B, T, S) says it for each query. `memory` may also be what `remember` made of it.
        """
        c = self.config
        S = x.shape[-2] + (cache.length if cache is not None else 0)
        turn = self._turn(x, S, mask) if c.position == "rotary" else None
        biases = {window: self._bias(x, S, mask, window) for window in set(c.windows)}
        memory_bias = padding_bias(memory_mask) if memory_mask is not None else None
        for i, (block, window) in enumerate(zip(self.blocks, c.layer_windows)):
            bias = biases[window]
            layer = cache.layers[i] if cache is not None else None
            causal = c.causal and bias is None  # a bias has it in already
            read = memory if memory is None or isinstance(memory, Tensor) else memory[i]
            x = block(x, read, bias=bias, memory_bias=memory_bias, causal=causal, rotary=turn, cache=layer)
        return x if self.norm is None else self.norm(x)

    def remember(self, memory: Tensor) -> list[Memory]:
        """Memory (B, S, M) as each layer's keys and values, for many calls."""
        attentions = [cast(Block, block).memory_attention for block in self.blocks]
        return [attention.keys_values(memory) for attention in attentions if attention is not None]

    def _turn(self, x: Tensor, S: int, mask: Tensor | None) -> Rotary:
        c = self.config
        if mask is None:
            positions = torch.arange(S - x.shape[-2], S, device=x.device)  # (T,)
        else:
            positions = token_positions(mask, x.shape[-2])[:, None]  # (B, 1, T)
        return rotary(positions, c.rotary_width, base=c.rotary_base, scaling=c.rotary_scaling)

    def _bias(self, x: Tensor, S: int, mask: Tensor | None, window: int | None) -> Tensor | None:
        """All that shapes a layer's scores, causality too, as one bias; None where that is causality alone."""
        c, T = self.config, x.shape[-2]
        seen = None if mask is None else padding_bias(mask)  # (B, 1, 1, S)
        if window is not None and window < S:
            near = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T - window + 1)
            seen = near if seen is None else seen & near
        if c.causal and T > 1 and (T < S or seen is not None or c.position == "alibi"):
            past = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
            seen = past if seen is None else seen & past
        if c.position != "alibi":
            return seen
        slope = alibi(c.heads, T, S, device=x.device).to(x.dtype)  # (H, T, S)
        return slope if seen is None else slope.masked_fill(~seen, -torch.inf)
