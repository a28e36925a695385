"""Attention: the one place where queries look at keys.

"Attention Is All You Need" (1706.03762), section 3.2. `attend` is equation 1 with everything that came
later entering as a value: a bias tensor (padding, ALiBi, windows), grouped key/value heads, a cache's
longer keys. Fast kernels live behind `attend` only; callers cannot tell which one ran. Dropout on the
weights is left out on purpose: none of the models here is better for it.
"""

import itertools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.errors import ConfigError

Rotary = tuple[Tensor, Tensor]
Memory = Tensor | tuple[Tensor, Tensor]  # what cross-attention reads (B, S, M), or the keys and values made of it


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v: eq. 1, section 3.2.1.

    q is (B, H, T, K), k and v are (B, G, S, K); G divides H, and each group of H/G query heads shares one
    key/value head. `bias` broadcasts to (B, H, T, S): bool (True: may look) or float (added to the scores).
    `causal` aligns the last query with the last key, so it is right with and without a cache. `scale` is
    1/sqrt(K) unless given. `cap` bends the scores, before the bias, to cap * tanh(scores / cap): Gemma 2 (2408.00118),
    section 2. A row that may look nowhere gives zeros. Returns (B, H, T, K), or v's width for K.
    """
    T, S = q.shape[-2], k.shape[-2]
    causal = causal and T > 1  # a single query is the last one: it may look at every key
    narrow_on_cpu = q.device.type == "cpu" and q.dtype is torch.bfloat16
    if narrow_on_cpu and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        weights = attention_weights(q, k, bias=bias, causal=causal, scale=scale, cap=cap)
        return weights @ _per_head(v, q.shape[1])
    if cap is not None:
        return _by_chunks(q, k, v, _causal_bias(bias, T, S, q.device) if causal else bias, scale, cap)
    if causal and T == S and bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    if causal:
        bias = _causal_bias(bias, T, S, q.device)
    if bias is not None and bias.dtype is not torch.bool:
        bias = bias.to(q.dtype)
    if narrow_on_cpu and bias is None and T * S >= LONG:
        return _by_chunks(q, k, v, None, scale, None)
    if min(FEW, S) > T and q.device.type == "cpu" and not torch.is_grad_enabled():
        spare = (0, 0, 0, FEW - T)
        q, bias = F.pad(q, spare), bias if bias is None or bias.shape[-2] == 1 else F.pad(bias, spare)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=True)[..., :T, :]


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """The weights that `attend` mixes the values with, by the plain formula: (B, H, T, S), rows sum to 1 or 0."""
    k = _per_head(k, q.shape[1])  # (B, H, S, K)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT  # (B, H, T, S)
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    if causal:
        bias = _causal_bias(bias, q.shape[-2], k.shape[-2], q.device)
    if bias is None:
        return _softmax(scores)
    scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype is torch.bool else scores + bias.to(scores.dtype)
    nowhere = (scores == -torch.inf).all(-1, keepdim=True)  # softmax would make NaN of such a row and of its gradient
    return _softmax(scores.masked_fill(nowhere, 0)).masked_fill(nowhere, 0)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """(B, G, S, K) -> (B, H, S, K); not copied where each query head has its own."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _causal_bias(bias: Tensor | None, T: int, S: int, device: torch.device) -> Tensor:
    past = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    if bias is None:
        return past
    return bias & past if bias.dtype is torch.bool else bias.masked_fill(~past, -torch.inf)


# The bits of fewer queries than these, over more keys, hang on where in memory a thread's scores begin, and so on the
# other sequences. 4 is measured for AVX2; 16 rows of anything end where AVX-512's 64 bytes do (docs/log.md).
FEW = 16 if torch.cpu._is_avx512_supported() else 4

# Where PyTorch's CPU kernel is slow in bf16: its backward pass, and many scores without a bias (docs/log.md). None of
# its kernels caps scores.
LONG = 1 << 14  # scores of a head
SCORES = 1 << 20  # at once, for a thread: these stay in its core's own cache


def _by_chunks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None, cap: float | None) -> Tensor:
    """The plain formula over a few heads, or a few rows of one, at a time."""
    B, H, T, _ = q.shape
    S = k.shape[-2]
    if bias is not None:
        bias = bias.expand(B, H, T, S)
        if B > 1:  # flat, it would have to be copied
            rows_of = [(q[i : i + 1], k[i : i + 1], v[i : i + 1], bias[i : i + 1]) for i in range(B)]
            return torch.cat([_by_chunks(*each, scale, cap) for each in rows_of])
    q, k, v = (x.flatten(0, 1)[None] for x in (q, _per_head(k, H), _per_head(v, H)))  # (1, B * H, T or S, K)
    out = v.new_empty((1, B * H, T, v.shape[-1]))
    rows = max(1, SCORES * torch.get_num_threads() // S)
    heads = max(1, rows // T)
    for h, t in itertools.product(range(0, B * H, heads), range(0, T, rows)):
        some, here = slice(h, h + heads), (slice(None), slice(h, h + heads), slice(t, t + rows))
        part = None if bias is None else bias[here]
        out[here] = attention_weights(q[here], k[:, some], bias=part, scale=scale, cap=cap) @ v[:, some]
    return out.unflatten(1, (B, H))[0]


# Who receives the weights of which `Attention`: set by record() for its own thread or coroutine, seen by no other.
Watched = Mapping[nn.Module, Callable[[Tensor], None]]
watched: ContextVar[Watched] = ContextVar("watched", default=MappingProxyType({}))


class KeyValues(Protocol):
    """What `Attention` asks of one layer's cache (core/cache.py)."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new (B, G, T, K) keys and values, gives all (B, G, S, K) up to now."""


class Attention(nn.Module):
    """Multi-head attention, section 3.2.2: project, `attend`, project back. Self- and cross-attention are one.

    `dim` is the width of the queries' input, and of the output unless `out_dim` is given; `memory_dim` is the width of
    the memory that keys and values are read from (default: `dim`). `kv_heads` below `heads` is grouped attention, 1 is
    multi-query attention. `value_dim` is the width of a head's values, `head_dim` unless given. `q_norm` and `k_norm`
    are modules over the head width; `scale` and `cap` are `attend`'s. Raises ConfigError where the widths do not fit.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        memory_dim: int | None = None,
        out_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        scale: float | None = None,
        cap: float | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ConfigError(f"kv_heads={kv_heads} does not divide heads={heads}; choose a divisor")
        if head_dim is None:
            if dim % heads:
                raise ConfigError(f"dim={dim} is not divisible by heads={heads}; set head_dim")
            head_dim = dim // heads
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale, self.cap = scale, cap
        memory_dim = dim if memory_dim is None else memory_dim
        self.q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k = nn.Linear(memory_dim, kv_heads * head_dim, bias=bias)
        value_dim = head_dim if value_dim is None else value_dim
        self.v = nn.Linear(memory_dim, kv_heads * value_dim, bias=bias)
        self.out = nn.Linear(heads * value_dim, dim if out_dim is None else out_dim, bias=out_bias)
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(
        self,
        x: Tensor,
        memory: Memory | None = None,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """x (B, T, D) looks at memory (B, S, M), or at itself; returns (B, T, D), or `out_dim` for D.

        `memory` may also be what `keys_values` made of it, once for many calls. `rotary` turns queries and new keys by
        their positions (core/position.py); `cache` holds earlier keys.
        """
        q = _split(self.q(x), self.heads)  # (B, H, T, K)
        q = q if self.q_norm is None else self.q_norm(q)
        k, v = memory if isinstance(memory, tuple) else self.keys_values(x if memory is None else memory)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.extend(k, v)
        if (see := watched.get().get(self)) is not None:
            see(attention_weights(q, k, bias=bias, causal=causal, scale=self.scale, cap=self.cap))
        mixed = attend(q, k, v, bias=bias, causal=causal, scale=self.scale, cap=self.cap)  # (B, H, T, K)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of memory (B, S, M), each (B, G, S, K)."""
        k, v = _split(self.k(memory), self.kv_heads), _split(self.v(memory), self.kv_heads)
        return (k if self.k_norm is None else self.k_norm(k)), v


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """RoFormer (2104.09864), eq. 34, in the half-split order of published checkpoints.

    x is (B, H, T, K); `rotary` is (cos, sin), each (T, R) or (B, 1, T, R) with R <= K: the first R numbers turn.
    """
    cos, sin = rotary
    R = cos.shape[-1]
    turned, rest = x[..., :R], x[..., R:]
    left, right = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-right, left), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1).to(x.dtype) if rest.shape[-1] else turned.to(x.dtype)
