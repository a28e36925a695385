"""The convolutional parts that a U-Net and an autoencoder share: residual block, resampling, attention over pixels.

DDPM (2006.11239), appendix B, in the form of latent diffusion (2112.10752). Pictures are (B, C, Y, X).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, around a residual; the time enters between them.

    It is added before the second norm or, where `scaled`, scales and shifts what comes out of it (2105.05233, section
    3).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_dim: int | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.scaled = scaled
        self.time = nn.Linear(time_dim, out_channels * (1 + scaled)) if time_dim is not None else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C, Y, X), time (B, E) -> (B, O, Y, X)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        told = self.time(F.silu(time))[:, :, None, None] if self.time is not None and time is not None else None
        if told is None:
            hidden = self.norm2(hidden)
        elif self.scaled:
            scale, shift = told.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + told)
        hidden = self.conv2(F.silu(hidden))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2. The autoencoder pads right and below only."""

    def __init__(self, channels: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, Y, X) -> (B, C, Y/2, X/2), rounded up if symmetric, else down."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size (or `size` (Y, X), where the way down had an odd one) by nearest neighbours, then a 3x3 one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x (B, C, Y, X) -> (B, C, 2Y, 2X), or of `size`."""
        return self.conv(F.interpolate(x, size=size, scale_factor=2.0 if size is None else None, mode="nearest"))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, Y, X) -> (B, YX, C); a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_pixels(x: Tensor, like: Tensor) -> Tensor:
    """(B, YX, C) -> (B, C, Y, X), the size of `like`."""
    return x.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)
