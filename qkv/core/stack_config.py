"""The shape of a stack, as numbers: checked in full before anything is built, and read without torch.

A field stands here only because a published checkpoint needs it; what families call it is the business of `weights`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from qkv.errors import ConfigError, unknown

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")  # their functions: core/activation.py


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Rotary positions stretched for a longer context (The Llama 3 Herd of Models, 2407.21783, section 3.2, and its
    published code): pairs that turn less than `low` times within the `context` of pre-training turn `factor` times
    slower, those that turn more than `high` times stay, and between them it fades."""

    factor: float
    low: float
    high: float
    context: int

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"factor={self.factor} of the rotary scaling is out of range; it must be at least 1")
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(f"low={self.low} and high={self.high} of the rotary scaling must be 0 < low < high")
        if not 0 < self.context <= 1_000_000_000:
            raise ConfigError(f"context={self.context} of the rotary scaling is out of range")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The shape of a stack. Widths in numbers, `memory_dim` set where the layers cross-attend.

    `value_dim`: the width of a head's values, its keys' unless given. `dropout`: of every layer's output, in training.
    `windows`: how many keys back a query looks, itself included, layer by layer and then again from the first; None is
    all of them. `rotary_dim`: how many numbers of each head turn, all unless given. `qk_norm`: queries and keys are
    normed head by head. `scale`: of the scores, 1/sqrt(head_dim) unless given; `score_cap` is the `cap` of `attend`.
    `post_norm` and `shared_norm`: core/block.py. `relative_buckets`, `relative_farthest`: core/position.py.
    """

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    memory_dim: int | None = None
    activation: str = "gelu"
    gated: bool = False
    bias: bool = True
    attention_bias: bool = True
    out_bias: bool = True
    norm: Literal["layer", "rms", "rms_unit_offset"] = "layer"
    norm_eps: float = 1e-5
    norm_first: bool = True
    post_norm: bool = False
    shared_norm: bool = False
    final_norm: bool = True
    qk_norm: bool = False
    parallel: bool = False
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None
    score_cap: float | None = None
    windows: tuple[int | None, ...] = (None,)
    position: Literal["none", "rotary", "alibi", "relative"] = "none"
    rotary_base: float = 10_000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    relative_buckets: int = 32
    relative_farthest: int = 128

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "ffn_dim", "kv_heads", "head_dim", "value_dim", "memory_dim"):
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
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is out of range; it must be from 0 to below 1")
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps={self.norm_eps} is out of range; it must lie between 0 and 1")
        for name in ("scale", "score_cap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value} is out of range; it must be above 0 and finite")
        self._check_norms()
        self._check_windows()
        if self.position == "rotary":
            self._check_rotary()
        if self.position == "relative":
            self._check_relative()

    def _check_norms(self) -> None:
        if self.parallel and not self.norm_first:
            raise ConfigError("norm_first=False does not go with parallel; what comes after two layers has no norm")
        if self.post_norm and (self.parallel or not self.norm_first):
            raise ConfigError("post_norm goes with norm_first, and not with parallel")
        if self.shared_norm and not self.parallel:
            raise ConfigError("shared_norm is for parallel layers; set parallel")

    def _check_windows(self) -> None:
        if not 0 < len(self.windows) <= self.layers:
            raise ConfigError(f"windows has {len(self.windows)} entries; it needs 1 to layers={self.layers}")
        for window in self.windows:
            if window is not None and not 0 < window <= 1_000_000_000:
                raise ConfigError(f"windows has {window}; a window is 1 to 1000000000 keys, or none")
            if window is not None and not self.causal:
                raise ConfigError(f"windows has {window}, but only a causal stack has windows; set causal")

    def _check_rotary(self) -> None:
        if self.head_width % 2:
            raise ConfigError(f"head_dim={self.head_width} is odd; rotary positions turn pairs of numbers")
        if not 0 < self.rotary_width <= self.head_width or self.rotary_width % 2:
            raise ConfigError(
                f"rotary_dim={self.rotary_width} must be even and at most the head's width, {self.head_width}"
            )
        if not 0 < self.rotary_base < math.inf:
            raise ConfigError(f"rotary_base={self.rotary_base} is out of range; it must be above 0 and finite")

    def _check_relative(self) -> None:
        if not 4 <= self.relative_buckets <= 100_000:
            raise ConfigError(f"relative_buckets={self.relative_buckets} is out of range; it must be 4 to 100000")
        if not self.relative_buckets < self.relative_farthest <= 1_000_000_000:
            raise ConfigError(
                f"relative_farthest={self.relative_farthest} is out of range; it must be above relative_buckets"
            )

    @property
    def head_width(self) -> int:
        """K: given, or an equal share of `dim`."""
        return self.dim // self.heads if self.head_dim is None else self.head_dim

    @property
    def rotary_width(self) -> int:
        """R: how many numbers of a head turn."""
        return self.head_width if self.rotary_dim is None else self.rotary_dim

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """`windows`, one a layer."""
        return tuple(self.windows[i % len(self.windows)] for i in range(self.layers))
