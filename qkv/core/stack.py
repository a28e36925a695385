"""A stack of blocks: the body of every model in the album, made by its configuration.

Masks, windows, rotary angles and biases are built here, once a pass, of where its tokens stand, and handed to every
layer. Embeddings before the stack and heads after it belong to the models.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qkv.core.attention import Attention, Memory
from qkv.core.block import Block, FeedForward
from qkv.core.cache import StackCache, padding_bias
from qkv.core.norm import NORMS
from qkv.core.position import POSITIONS, Places, last_places
from qkv.core.stack_config import StackConfig

__all__ = ["Stack", "StackConfig"]


class Stack(nn.Module):
    """`layers` blocks and a final norm; x (B, T, D) in and out. `position` makes what attention sees of positions."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(self._block() for _ in range(config.layers))
        self.norm = self._norm(config.dim) if config.final_norm else None
        self.position = POSITIONS[config.position](config)

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
            cap=c.score_cap,
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
            post_norm=c.post_norm,
            shared_norm=c.shared_norm,
            dropout=c.dropout,
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor | Sequence[Memory] | None = None,
        *,
        places: Places | None = None,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: StackCache | None = None,
    ) -> Tensor:
        """x (B, T, D); `mask` (B, S) and `memory_mask` are True at tokens, False at padding; `cache` grows by T.

        `places`: where the tokens stand; after those in the cache, one by one, unless given. With it, `mask` may be
        (B, T, S): what each query may look at. `memory` may also be what `remember` made of it.
        """
        c = self.config
        if places is None:
            S = x.shape[-2] + (cache.length if cache is not None else 0)
            places = last_places(x.shape[-2], S, mask=mask, device=x.device)
        turn, scores = self.position.rotary(places), self.position.bias(places)
        scores = None if scores is None else scores.to(x.dtype)
        biases = {window: self._bias(places, scores, mask, window) for window in set(c.windows)}
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

    def _bias(self, places: Places, scores: Tensor | None, mask: Tensor | None, window: int | None) -> Tensor | None:
        """All that shapes a layer's scores, causality too, as one bias; None where that is causality alone."""
        T, S = len(places.queries), len(places.keys)
        narrow = window is not None and window < S
        plain = scores is None and mask is None and not narrow and T == S
        causal = self.config.causal and not (places.in_order and (plain or T == 1))
        return shape_scores(scores, visible(places, causal=causal, window=window if narrow else None, mask=mask))


def visible(places: Places, *, causal: bool, window: int | None = None, mask: Tensor | None = None) -> Tensor | None:
    """Where each query may look, True or False, (T, S) or (B, 1, T or 1, S); None: everywhere."""
    seen = None if mask is None else padding_bias(mask)
    if window is not None:
        near = places.distance > -window
        seen = near if seen is None else seen & near
    if causal:
        past = places.distance <= 0
        seen = past if seen is None else seen & past
    return seen


def shape_scores(scores: Tensor | None, seen: Tensor | None) -> Tensor | None:
    """One bias for `attend`: the numbers added to the scores (H, T, S), and where a query may look."""
    if scores is None or seen is None:
        return seen if scores is None else scores
    return scores.masked_fill(~seen, -torch.inf)
