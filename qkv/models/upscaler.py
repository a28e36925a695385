"""Upscalers: a picture -> the same with more pixels, for what a decoder drew or any other picture.

The two shapes that Real-ESRGAN publishes (2107.10833): `Compact`, a row of convolutions at the picture's own size
(SRVGGNetCompact; ours is one, too), and `RRDB`, residual dense blocks (ESRGAN, 1809.00219, section 3.1). Both read and
give pictures in [0, 1]. Their modules have the published names, so that no table stands between. Left out: ESRGAN's own
spelling of the same network, and the discriminators.
"""

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.errors import ConfigError

SLOPE = 0.2  # of RRDB's leaky rectifiers
SHARE = 0.2  # of a residual that is added


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """`layers` convolutions of width `dim` between the first and the last; `scale` times as many pixels a side."""

    dim: int = 64
    layers: int = 16
    scale: int = 4

    def __post_init__(self) -> None:
        check_range(self, dim=1024, layers=256, scale=16)


@dataclass(frozen=True, kw_only=True)
class RRDBConfig:
    """`layers` blocks of three dense blocks, whose convolutions widen `dim` by `growth` each. Scales below 4 read
    squares of pixels as channels, 2 x 2 or 4 x 4."""

    dim: int = 64
    layers: int = 23
    growth: int = 32
    scale: int = 4

    def __post_init__(self) -> None:
        check_range(self, dim=1024, layers=256, growth=1024, scale=4)
        if self.scale == 3:
            raise ConfigError("scale=3 is none of 1, 2 and 4, which this network knows")


def check_range(config: object, **most: int) -> None:
    """ConfigError unless every field is from 1 to `most`."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if not 1 <= value <= most[field.name]:
            raise ConfigError(f"{field.name}={value} is out of range; it must be 1 to {most[field.name]}")


def _conv(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


class Compact(nn.Module):
    """Convolutions and learnt rectifiers, one pixel shuffle (1609.05158), and the picture itself added in large."""

    unit = 1  # what width and height must be multiples of

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        dims = [3, *[config.dim] * (config.layers + 1)]
        bent = [module for pair in pairwise(dims) for module in (_conv(*pair), nn.PReLU(config.dim))]
        self.body = nn.Sequential(*bent, _conv(config.dim, 3 * config.scale**2))

    @property
    def reach(self) -> int:
        """How many pixels away one may lie that an output pixel depends on."""
        return self.config.layers + 2

    @property
    def numbers(self) -> int:
        """About how many numbers are held at once for a pixel of the input."""
        return 5 * self.config.dim + 12 * self.config.scale**2

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, y, x) -> (B, 3, Y, X) in float32."""
        more = F.pixel_shuffle(self.body(x.to(next(self.parameters()).dtype)), self.config.scale)
        return more.float() + F.interpolate(x.float(), scale_factor=float(self.config.scale), mode="nearest")


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads all before it."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        widths = [config.dim + i * config.growth for i in range(5)]
        self.conv1, self.conv2, self.conv3, self.conv4 = (_conv(width, config.growth) for width in widths[:4])
        self.conv5 = _conv(widths[4], config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, y, x), as is what it gives."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, _bend(conv(seen))), 1)
        return x + SHARE * self.conv5(seen)


class DenseBlocks(nn.Module):
    """Three dense blocks within a residual."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(config) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, y, x), as is what it gives."""
        return x + SHARE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDB(nn.Module):
    """Dense blocks at the size of what is read, then twice the size twice by nearest neighbours and convolutions."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_first = _conv(3 * self.unit**2, config.dim)
        self.body = nn.Sequential(*(DenseBlocks(config) for _ in range(config.layers)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (_conv(config.dim, config.dim) for _ in range(4))
        self.conv_last = _conv(config.dim, 3)

    @property
    def unit(self) -> int:
        """What width and height must be multiples of: the side of the squares that are read as one."""
        return 4 // self.config.scale

    @property
    def reach(self) -> int:
        """As `Compact`'s; beyond a dozen pixels little is left of it, since each block adds a fifth of its own."""
        return (15 * self.config.layers + 4) * self.unit

    @property
    def numbers(self) -> int:
        """As `Compact`'s: at the end the features of 16 pixels stand for one that was read."""
        return 5 * 16 * self.config.dim // self.unit**2

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, y, x) -> (B, 3, Y, X) in float32."""
        first = self.conv_first(F.pixel_unshuffle(x.to(self.conv_first.weight.dtype), self.unit))
        seen = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            seen = _bend(conv(F.interpolate(seen, scale_factor=2.0, mode="nearest")))
        return self.conv_last(_bend(self.conv_hr(seen))).float()


def _bend(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


Upscaler = Compact | RRDB
