"""The conditional U-Net of Stable Diffusion: a noisy latent, a time and a text become the predicted noise.

Latent diffusion (2112.10752), section 3.3; published as diffusers' `UNet2DConditionModel` (SD 1.x, 2.x and
our small emblem). At every resolution residual blocks mix neighbours and, where `attention` says so, a
small Transformer from core/ looks at itself and at the text (the memory).

    latent ─ enter ─ down ─ down ─ down ─┐
                      └skips─┐           middle
    noise ─ leave ─── up ─── up ─── up ──┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.attention import Attention, Memory
from qkv.core.position import sinusoidal
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError
from qkv.models.residual import Downsample, Residual, Upsample, to_pixels, to_tokens
from qkv.models.vae import check_convolutional


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """One entry of `dims`, `attention` and `heads` for each resolution, largest first; the defaults are SD 1.x.

    `linear_projection` only says how the published file spells the transformers' two projections. `summary_heads` are
    those of a `TextSummary` beside the time, 0 where there is none; `scaled` makes both multiply as well as add.
    """

    channels: int = 4
    out_channels: int = 4
    dims: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers: int = 2
    transformer_layers: int = 1
    memory_dim: int = 768
    groups: int = 32
    norm_eps: float = 1e-5
    linear_projection: bool = False
    summary_heads: int = 0
    scaled: bool = False
    sample_size: int = 64

    def __post_init__(self) -> None:
        check_convolutional(self.dims, self.layers, self.groups, self.norm_eps, self.sample_size)
        for name in ("attention", "heads"):
            if len(getattr(self, name)) != len(self.dims):
                raise ConfigError(f"{name} has {len(getattr(self, name))} entries; dims has {len(self.dims)}")
        for dim, heads in zip(self.dims, self.heads):
            if heads < 1 or dim % heads:
                raise ConfigError(f"dim={dim} is not divisible by heads={heads}; choose a divisor")
        bounds = {"channels": 65_536, "out_channels": 65_536, "memory_dim": 65_536, "transformer_layers": 100}
        for name, most in bounds.items():
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to {most}")
        if self.summary_heads < 0 or (self.summary_heads and self.memory_dim % self.summary_heads):
            raise ConfigError(
                f"memory_dim={self.memory_dim} is not divisible by summary_heads={self.summary_heads}; "
                "choose a divisor, or 0 for none"
            )
        if len(self.dims) * self.layers * self.transformer_layers > 1_000:
            raise ConfigError(
                f"layers={self.layers} with transformer_layers={self.transformer_layers} is out of range; "
                f"over {len(self.dims)} resolutions they must make at most 1000"
            )

    @property
    def time_dim(self) -> int:
        return 4 * self.dims[0]


class TextSummary(nn.Module):
    """The whole text as one vector beside the time: its mean looks at its tokens (DeepFloyd IF's attention pooling;
    CLIP, 2103.00020, section 2.4, has it for pictures). Every residual block then knows what is to be drawn."""

    def __init__(self, memory_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(memory_dim)
        self.position = nn.Parameter(torch.empty(1, memory_dim).normal_(std=memory_dim**-0.5))  # the mean's own
        self.attention = Attention(memory_dim, heads, out_dim=dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, memory: Tensor) -> Tensor:
        """memory (B, S, M) -> (B, E)."""
        tokens = self.norm1(memory)
        mean = tokens.mean(1, keepdim=True) + self.position.to(tokens.dtype)
        return self.norm2(self.attention(mean, torch.cat((mean, tokens), dim=1))[:, 0])


class Reading(NamedTuple):
    """What a U-Net reads of a text (B, S, M), at all times the same: its summary (B, E), if there is one, and for each
    level, down to up, each transformer, each layer of it the keys and values."""

    summary: Tensor | None
    levels: list[list[Sequence[Memory]]]


class PixelTransformer(nn.Module):
    """A stack over the pixels of one resolution, with cross-attention to the text, around a residual."""

    def __init__(self, dim: int, heads: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, dim, eps=1e-6)
        self.enter = nn.Linear(dim, dim)
        self.stack = Stack(
            StackConfig(
                dim=dim,
                layers=config.transformer_layers,
                heads=heads,
                ffn_dim=4 * dim,
                memory_dim=config.memory_dim,
                gated=True,
                attention_bias=False,
                final_norm=False,
            )
        )
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Sequence[Memory]) -> Tensor:
        """x (B, C, Y, X), `memory` as the stack remembers the text -> (B, C, Y, X)."""
        tokens = self.enter(to_tokens(self.norm(x)))  # (B, YX, C)
        return x + to_pixels(self.leave(self.stack(tokens, memory)), like=x)


class UNetLevel(nn.Module):
    """One resolution: residual blocks, each followed by a transformer where there is attention, then resampling."""

    def __init__(self, residuals: list[Residual], transformers: list[PixelTransformer], resample: nn.Module | None):
        super().__init__()
        self.residuals = nn.ModuleList(residuals)
        self.transformers = nn.ModuleList(transformers)
        self.resample = resample

    def remember(self, memory: Tensor) -> list[Sequence[Memory]]:
        """The keys and values of memory (B, S, M), for each transformer."""
        return [cast(PixelTransformer, transformer).stack.remember(memory) for transformer in self.transformers]

    def layer(self, i: int, x: Tensor, time: Tensor, memory: list[Sequence[Memory]]) -> Tensor:
        """Residual block i and its transformer: x (B, C, Y, X), time (B, E), memory for each -> (B, O, Y, X)."""
        x = self.residuals[i](x, time)
        return self.transformers[i](x, memory[i]) if i < len(self.transformers) else x


class Down(UNetLevel):
    def forward(self, x: Tensor, time: Tensor, memory: list[Sequence[Memory]]) -> list[Tensor]:
        """Every layer's output, for the way up; the last one goes on."""
        outputs = []
        for i in range(len(self.residuals)):
            x = self.layer(i, x, time, memory)
            outputs.append(x)
        return outputs if self.resample is None else [*outputs, self.resample(x)]


class UNetMiddle(UNetLevel):
    def forward(self, x: Tensor, time: Tensor, memory: list[Sequence[Memory]]) -> Tensor:
        return self.layer(1, self.layer(0, x, time, memory), time, memory)


class Up(UNetLevel):
    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, memory: list[Sequence[Memory]]) -> Tensor:
        """Takes its skips off the end of the list."""
        for i in range(len(self.residuals)):
            x = self.layer(i, torch.cat((x, skips.pop()), dim=1), time, memory)
        return x if self.resample is None else self.resample(x, skips[-1].shape[-2:])


class UNet(nn.Module):
    """Predicts (epsilon or v, as it was trained) from a noisy latent."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        dims, last = c.dims, len(c.dims) - 1
        self.time = nn.Sequential(nn.Linear(dims[0], c.time_dim), nn.SiLU(), nn.Linear(c.time_dim, c.time_dim))
        self.summary = TextSummary(c.memory_dim, c.time_dim, c.summary_heads) if c.summary_heads else None
        self.enter = nn.Conv2d(c.channels, dims[0], 3, padding=1)

        skips = [dims[0]]  # the widths that the way up takes back, last first
        self.down = nn.ModuleList()
        for i, dim in enumerate(dims):
            residuals = [self._residual(dims[max(i - 1, 0)] if j == 0 else dim, dim) for j in range(c.layers)]
            resample = Downsample(dim, symmetric=True) if i < last else None
            self.down.append(Down(residuals, self._transformers(i, c.layers), resample))
            skips += [dim] * (c.layers + (i < last))

        middle = [self._residual(dims[-1], dims[-1]) for _ in range(2)]
        self.middle = UNetMiddle(middle, [PixelTransformer(dims[-1], c.heads[-1], c)], None)

        self.up = nn.ModuleList()
        below = dims[-1]
        for i, dim in reversed(list(enumerate(dims))):
            residuals = []
            for _ in range(c.layers + 1):
                residuals.append(self._residual(below + skips.pop(), dim))
                below = dim
            self.up.append(Up(residuals, self._transformers(i, c.layers + 1), Upsample(dim) if i else None))

        self.norm = nn.GroupNorm(c.groups, dims[0], eps=c.norm_eps)
        self.leave = nn.Conv2d(dims[0], c.out_channels, 3, padding=1)

    def _residual(self, channels: int, out_channels: int) -> Residual:
        c = self.config
        return Residual(channels, out_channels, groups=c.groups, eps=c.norm_eps, time_dim=c.time_dim, scaled=c.scaled)

    def _transformers(self, i: int, layers: int) -> list[PixelTransformer]:
        c = self.config
        return [PixelTransformer(c.dims[i], c.heads[i], c) for _ in range(layers)] if c.attention[i] else []

    def remember(self, memory: Tensor) -> Reading:
        """The reading of memory (B, S, M), for many calls."""
        summary = None if self.summary is None else self.summary(memory)
        return Reading(summary, [level.remember(memory) for level in (*self.down, self.middle, *self.up)])

    def forward(self, latent: Tensor, time: Tensor, memory: Tensor | Reading) -> Tensor:
        """latent (B, C, y, x), time (B,) in training steps, memory (B, S, M) the text, or what `remember` made of it
        -> (B, C, y, x)."""
        summary, levels = memory if isinstance(memory, Reading) else self.remember(memory)
        embedding = sinusoidal(time, self.config.dims[0], interleaved=False, cos_first=True)
        time = self.time(embedding.to(latent.dtype))  # (B, E)
        if summary is not None:
            time = time + summary

        skips, read = [self.enter(latent)], iter(levels)
        for level in self.down:
            skips += level(skips[-1], time, next(read))
        x = self.middle(skips[-1], time, next(read))
        for level in self.up:
            x = level(x, skips, time, next(read))
        return self.leave(F.silu(self.norm(x)))
