"""The KL autoencoder: pictures <-> latents, eight times smaller a side.

Latent diffusion (2112.10752), section 3.1 and appendix G; published as diffusers' `AutoencoderKL`. The
discriminator and the perceptual loss of its training are left out: training lives in train/objectives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.attention import Attention
from qkv.errors import ConfigError
from qkv.models.residual import Downsample, Residual, Upsample, to_pixels, to_tokens


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """`dims` is the width at each resolution, each half the size of the one before; `layers` residual blocks each.

    Latents are multiplied by `scaling` after `shift` was taken off, so that the U-Net sees unit variance.
    """

    channels: int = 3
    latent_channels: int = 4
    dims: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    norm_eps: float = 1e-6
    scaling: float = 0.18215
    shift: float = 0.0
    latent_convs: bool = True
    middle_attention: bool = True
    sample_size: int = 512

    def __post_init__(self) -> None:
        check_convolutional(self.dims, self.layers, self.groups, self.norm_eps, self.sample_size)
        for name in ("channels", "latent_channels"):
            if not 0 < getattr(self, name) <= 1024:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to 1024")
        if not 0 < self.scaling < math.inf:
            raise ConfigError(f"scaling={self.scaling} is out of range; it must be above 0 and finite")
        if not math.isfinite(self.shift):
            raise ConfigError(f"shift={self.shift} is not a finite number")

    @property
    def factor(self) -> int:
        """How many pixels a side make one latent."""
        return int(2 ** (len(self.dims) - 1))


def check_convolutional(dims: Sequence[int], layers: int, groups: int, norm_eps: float, sample_size: int) -> None:
    """ConfigError where the widths, depth, norms or size of a convolutional network cannot be."""
    if not 0 < len(dims) <= 16:
        raise ConfigError(f"dims has {len(dims)} widths; a network has 1 to 16 resolutions")
    if not 0 < layers <= 100:
        raise ConfigError(f"layers={layers} is out of range; it must be 1 to 100")
    for dim in dims:
        if not 0 < dim <= 65_536:
            raise ConfigError(f"dim={dim} is out of range; it must be 1 to 65536")
        if groups < 1 or dim % groups:
            raise ConfigError(f"dim={dim} is not divisible by groups={groups}; choose a divisor")
    if not 0 < norm_eps < 1:
        raise ConfigError(f"norm_eps={norm_eps} is out of range; it must lie between 0 and 1")
    if not 0 < sample_size <= 65_536:
        raise ConfigError(f"sample_size={sample_size} is out of range; it must be 1 to 65536")


class PixelAttention(nn.Module):
    """One head of self-attention over all pixels."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=config.norm_eps)
        self.attention = Attention(channels, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, Y, X) -> (B, C, Y, X)."""
        return x + to_pixels(self.attention(to_tokens(self.norm(x))), like=x)


class VAEMiddle(nn.Module):
    """Residual, attention, residual: the narrowest place of encoder and decoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dim = config.dims[-1]
        self.residuals = nn.ModuleList(_residual(dim, dim, config) for _ in range(2))
        self.attention = PixelAttention(dim, config) if config.middle_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, Y, X) -> (B, C, Y, X)."""
        x = self.residuals[0](x)
        x = x if self.attention is None else self.attention(x)
        return self.residuals[1](x)


class VAELevel(nn.Module):
    """The residual blocks of one resolution, then the way to the next one (or none at the last)."""

    def __init__(self, residuals: list[Residual], resample: nn.Module | None) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(residuals)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, Y, X) -> (B, O, Y', X'), half or twice the size where there is a way on."""
        for residual in self.residuals:
            x = residual(x)
        return x if self.resample is None else self.resample(x)


class VAEEncoder(nn.Module):
    """(B, 3, Y, X) -> (B, 2L, y, x): mean and log-variance of the latent."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = config.dims
        self.enter = nn.Conv2d(config.channels, dims[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for i, dim in enumerate(dims):
            before = dims[max(i - 1, 0)]
            residuals = [_residual(before if j == 0 else dim, dim, config) for j in range(config.layers)]
            self.levels.append(VAELevel(residuals, Downsample(dim, symmetric=False) if i < len(dims) - 1 else None))
        self.middle = VAEMiddle(config)
        self.norm = nn.GroupNorm(config.groups, dims[-1], eps=config.norm_eps)
        self.leave = nn.Conv2d(dims[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for level in self.levels:
            x = level(x)
        return self.leave(F.silu(self.norm(self.middle(x))))


class VAEDecoder(nn.Module):
    """(B, L, y, x) -> (B, 3, Y, X)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = config.dims[::-1]
        self.enter = nn.Conv2d(config.latent_channels, dims[0], 3, padding=1)
        self.middle = VAEMiddle(config)
        self.levels = nn.ModuleList()
        for i, dim in enumerate(dims):
            before = dims[max(i - 1, 0)]
            residuals = [_residual(before if j == 0 else dim, dim, config) for j in range(config.layers + 1)]
            self.levels.append(VAELevel(residuals, Upsample(dim) if i < len(dims) - 1 else None))
        self.norm = nn.GroupNorm(config.groups, dims[-1], eps=config.norm_eps)
        self.leave = nn.Conv2d(dims[-1], config.channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.middle(self.enter(latent))
        for level in self.levels:
            x = level(x)
        return self.leave(F.silu(self.norm(x)))


def _residual(channels: int, out_channels: int, config: VAEConfig) -> Residual:
    return Residual(channels, out_channels, groups=config.groups, eps=config.norm_eps)


class VAE(nn.Module):
    """`encode` a picture in [-1, 1] to a scaled latent, `decode` one back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = VAEEncoder(config), VAEDecoder(config)
        two, one = 2 * config.latent_channels, config.latent_channels
        self.after_encoder = nn.Conv2d(two, two, 1) if config.latent_convs else nn.Identity()
        self.before_decoder = nn.Conv2d(one, one, 1) if config.latent_convs else nn.Identity()

    def distribution(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (B, L, y, x), of the unscaled latent of pictures (B, 3, Y, X) in [-1, 1]."""
        mean, log_variance = self.after_encoder(self.encoder(pictures)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scaled latent (B, L, y, x): its mean, or with unit `noise` a sample."""
        return self.latent(*self.distribution(pictures), noise)

    def latent(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scaled latent (B, L, y, x) of a distribution: its mean, or with unit `noise` a sample."""
        if noise is not None:
            mean = mean + torch.exp(0.5 * log_variance) * noise
        return (mean - self.config.shift) * self.config.scaling

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, 3, Y, X), about in [-1, 1], of a scaled latent (B, L, y, x)."""
        return self.decoder(self.before_decoder(latent / self.config.scaling + self.config.shift))
