"""The configuration of a decoder and the list of its tensors, read without torch: a server's front, a GGUF file's
reader and the compiled kernels need no more of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from qkv.core.stack_config import RotaryScaling, StackConfig
from qkv.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: its vocabulary, its longest input `context`, and its stack (core/stack_config.py says what those
    fields mean). The defaults are GPT-2's smallest.

    The embeddings: `scaled` multiplies them by the root of `dim`; `embed_dim` is their width where they are narrower,
    widened once and narrowed again before the head; `position_offset` rows of the learned positions are no token's;
    `embed_norm` norms what comes of it all. The head: `tied`, it is the embedding's own matrix; `head_bias`, which only
    a head of its own has, is added to the logits; `logit_cap` bends them to cap * tanh(logits / cap). There is a last
    norm where `norm_first`.
    """

    vocab: int = 50_257
    context: int = 1024
    dim: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int = 3072
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    attention_bias: bool = True
    out_bias: bool = True
    norm: Literal["layer", "rms", "rms_unit_offset"] = "layer"
    norm_eps: float = 1e-5
    norm_first: bool = True
    post_norm: bool = False
    shared_norm: bool = False
    scaled: bool = False
    embed_dim: int | None = None
    embed_norm: bool = False
    qk_norm: bool = False
    parallel: bool = False
    scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    windows: tuple[int | None, ...] = (None,)
    position: Literal["learned", "rotary", "alibi", "none"] = "learned"
    position_offset: int = 0
    rotary_base: float = 10_000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    tied: bool = True
    head_bias: bool = False

    def __post_init__(self) -> None:
        for name, most in (("vocab", 10_000_000), ("context", 1_000_000_000), ("embed_dim", 1_000_000)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ConfigError(f"{name}={value} is out of range; it must be 1 to {most}")
        if self.position == "learned" and self.context > 1_000_000:
            raise ConfigError(f"context={self.context} is out of range; learned positions go to 1000000")
        if self.logit_cap is not None and not 0 < self.logit_cap < math.inf:
            raise ConfigError(f"logit_cap={self.logit_cap} is out of range; it must be above 0 and finite")
        if not 0 <= self.position_offset <= 1_000_000:
            raise ConfigError(f"position_offset={self.position_offset} is out of range; it must be 0 to 1000000")
        if self.position_offset and self.position != "learned":
            raise ConfigError(f"position_offset={self.position_offset} is for learned positions only")
        if self.head_bias and self.tied:
            raise ConfigError("head_bias is for a head of its own; set tied=False")
        self.stack  # noqa: B018  its own checks

    @property
    def stack(self) -> StackConfig:
        """The fields that both have, causal; learned positions are added to the embeddings, outside of it."""
        shared = {field.name: getattr(self, field.name) for field in fields(StackConfig) if hasattr(self, field.name)}
        position = "none" if self.position == "learned" else self.position
        return StackConfig(**shared | {"causal": True, "position": position, "final_norm": self.norm_first})

    @property
    def embed_width(self) -> int:
        """Of the embeddings: `dim` unless given."""
        return self.dim if self.embed_dim is None else self.embed_dim

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a decoder, by its name: matrices first the outputs, then the inputs."""
        return dict(_tensors(self))


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _linear(name: str, rows: int, columns: int, bias: bool) -> _Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(c: DecoderConfig, name: str, width: int) -> _Shapes:
    yield f"{name}.weight", (width,)
    if c.norm == "layer":
        yield f"{name}.bias", (width,)


def _tensors(c: DecoderConfig) -> _Shapes:
    yield "token.weight", (c.vocab, c.embed_width)
    if c.embed_dim is not None:
        yield from _linear("widen", c.dim, c.embed_dim, False)
        yield from _linear("narrow", c.embed_dim, c.dim, False)
    if c.position == "learned":
        yield "position.weight", (c.context + c.position_offset, c.dim)
    if c.embed_norm:
        yield from _norm(c, "norm", c.dim)
    for i in range(c.layers):
        yield from _layer(c, f"stack.blocks.{i}")
    if c.norm_first:
        yield from _norm(c, "stack.norm", c.dim)
    if not c.tied:
        yield from _linear("head", c.vocab, c.embed_width, c.head_bias)


def _layer(c: DecoderConfig, block: str) -> _Shapes:
    width = c.stack.head_width
    q_width, kv_width = c.heads * width, (c.kv_heads or c.heads) * width
    yield from _norm(c, f"{block}.attention_norm", c.dim)
    yield from _linear(f"{block}.attention.q", q_width, c.dim, c.attention_bias)
    yield from _linear(f"{block}.attention.k", kv_width, c.dim, c.attention_bias)
    yield from _linear(f"{block}.attention.v", kv_width, c.dim, c.attention_bias)
    if c.qk_norm:
        yield from _norm(c, f"{block}.attention.q_norm", width)
        yield from _norm(c, f"{block}.attention.k_norm", width)
    yield from _linear(f"{block}.attention.out", c.dim, q_width, c.out_bias)
    if not c.shared_norm:
        yield from _norm(c, f"{block}.ffn_norm", c.dim)
    if c.gated:
        yield from _linear(f"{block}.ffn.gate", c.ffn_dim, c.dim, c.bias)
    yield from _linear(f"{block}.ffn.up", c.ffn_dim, c.dim, c.bias)
    yield from _linear(f"{block}.ffn.down", c.dim, c.ffn_dim, c.bias)
    if c.post_norm:
        yield from _norm(c, f"{block}.attention_post_norm", c.dim)
        yield from _norm(c, f"{block}.ffn_post_norm", c.dim)
