"""The configuration of an encoder-decoder, read without torch, and the paper's own: every row of its Table 3 by name.

"Attention Is All You Need" (1706.03762), sections 3, 5.4 and 6.2. The paper does not say which vocabulary is behind its
counts of parameters. With 41,100 symbols that both languages and the output share, the ten rows of base shape that have
a count give its 65, 58, 60, 36, 50, 80, 28, 168, 53 and 90 million; "big" gives its 213 with 36,000. Rows of (A), (D)
and (E) have base's count, or that of the row they vary.
Left out: the rows' other label smoothing, which belongs to training.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from qkv.core.stack_config import StackConfig
from qkv.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig:
    """An encoder and a decoder over one vocabulary; the defaults are the paper's base model. Fields that are not told
    here are those of core/stack_config.py, in both stacks.

    `start`, `end` and `pad` are token ids: what the decoder reads first, what closes a text on either side, and what
    fills up a batch. `decoder_layers`: as many as `layers` unless given. `value_dim`: the width of a head's values, its
    keys' unless given. `scaled`: embeddings are multiplied by the root of `dim` (section 3.4). `context` is the longest
    text on either side. `dropout` (section 5.4) acts in training only. The head: `tied`, it is the embedding's own
    matrix; `head_scaled`, what it reads is divided by the root of `dim`; `head_bias` is added to the logits.
    """

    vocab: int = 37_000
    start: int = 1
    end: int = 0
    pad: int = 1
    context: int = 1024
    dim: int = 512
    layers: int = 6
    decoder_layers: int | None = None
    heads: int = 8
    head_dim: int | None = None
    value_dim: int | None = None
    ffn_dim: int = 2048
    activation: str = "relu"
    gated: bool = False
    bias: bool = True
    attention_bias: bool = True
    out_bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_first: bool = False
    scale: float | None = None
    position: Literal["sinusoidal", "learned", "relative"] = "sinusoidal"
    relative_buckets: int = 32
    relative_farthest: int = 128
    scaled: bool = True
    tied: bool = True
    head_scaled: bool = False
    head_bias: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, most in (("vocab", 10_000_000), ("context", 1_000_000)):
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to {most}")
        for name in ("start", "end", "pad"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ConfigError(f"{name}={getattr(self, name)} is no token; vocab={self.vocab}")
        if self.end in (self.start, self.pad):
            raise ConfigError(f"end={self.end} is start or pad too; a text could not end")
        if self.position == "sinusoidal" and self.dim % 2:
            raise ConfigError(f"dim={self.dim} is odd; sinusoidal positions need an even one")
        self.encoder, self.decoder  # noqa: B018  their own checks

    @property
    def encoder(self) -> StackConfig:
        return self._stack()

    @property
    def decoder(self) -> StackConfig:
        layers = self.layers if self.decoder_layers is None else self.decoder_layers
        return self._stack(layers=layers, memory_dim=self.dim, causal=True)

    def _stack(self, **side: Any) -> StackConfig:
        """The fields that both have, and those of one `side`; other positions are added to the embeddings, outside."""
        shared = {each.name: getattr(self, each.name) for each in fields(StackConfig) if hasattr(self, each.name)}
        position = "relative" if self.position == "relative" else "none"
        return StackConfig(**shared | {"position": position, "final_norm": self.norm_first} | side)


_BASE = TranslatorConfig(vocab=41_100)

PRESETS = {
    "transformer-base": _BASE,
    # (A): more or fewer heads, as much work.
    "transformer-a-1-head": replace(_BASE, heads=1),
    "transformer-a-4-heads": replace(_BASE, heads=4),
    "transformer-a-16-heads": replace(_BASE, heads=16),
    "transformer-a-32-heads": replace(_BASE, heads=32),
    # (B): narrower keys; the values stay as wide.
    "transformer-b-keys-16": replace(_BASE, head_dim=16, value_dim=64),
    "transformer-b-keys-32": replace(_BASE, head_dim=32, value_dim=64),
    # (C): smaller and larger models.
    "transformer-c-2-layers": replace(_BASE, layers=2),
    "transformer-c-4-layers": replace(_BASE, layers=4),
    "transformer-c-8-layers": replace(_BASE, layers=8),
    "transformer-c-dim-256": replace(_BASE, dim=256),
    "transformer-c-dim-1024": replace(_BASE, dim=1024),
    "transformer-c-ffn-1024": replace(_BASE, ffn_dim=1024),
    "transformer-c-ffn-4096": replace(_BASE, ffn_dim=4096),
    # (D): dropout.
    "transformer-d-dropout-0": replace(_BASE, dropout=0.0),
    "transformer-d-dropout-0.2": replace(_BASE, dropout=0.2),
    # (E): trained positions in place of sines.
    "transformer-e-learned": replace(_BASE, position="learned"),
    "transformer-big": replace(_BASE, vocab=36_000, dim=1024, heads=16, ffn_dim=4096, dropout=0.3),
}
