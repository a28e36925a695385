"""The configuration of a decoder, read without torch: a server's front and a GGUF file's reader need no more of it."""

from dataclasses import dataclass, fields
from typing import Literal

from qkv.core.stack_config import RotaryScaling, StackConfig
from qkv.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: its vocabulary, its longest input `context`, and its stack (core/stack_config.py says what those
    fields mean). The defaults are GPT-2's smallest. `embed_norm` norms the embeddings; `tied`: the head that gives the
    logits is the embedding's own matrix."""

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
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_first: bool = True
    embed_norm: bool = False
    qk_norm: bool = False
    parallel: bool = False
    scale: float | None = None
    windows: tuple[int | None, ...] = (None,)
    position: Literal["learned", "rotary", "alibi", "none"] = "learned"
    rotary_base: float = 10_000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        for name, most in (("vocab", 10_000_000), ("context", 1_000_000_000)):
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to {most}")
        if self.position == "learned" and self.context > 1_000_000:
            raise ConfigError(f"context={self.context} is out of range; learned positions go to 1000000")
        self.stack  # noqa: B018  its own checks

    @property
    def stack(self) -> StackConfig:
        """The fields that both have, causal; learned positions are added to the embeddings, outside of it."""
        shared = {field.name: getattr(self, field.name) for field in fields(StackConfig) if hasattr(self, field.name)}
        position = "none" if self.position == "learned" else self.position
        return StackConfig(**shared | {"causal": True, "position": position})
