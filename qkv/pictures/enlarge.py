"""A picture through an upscaling network, tile by tile, so that it needs little memory and can be stopped.

Tiles overlap by what the network looks at, and only their middle is kept: the result is that of the whole picture at
once. Where a network looks further than a quarter of a tile (RRDB, whose far pixels hardly count), it gets a quarter.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from qkv.errors import CheckpointError, InputError
from qkv.models.upscaler import Upscaler
from qkv.pictures.files import MAX_PIXELS

BUDGET = 48 << 20  # bytes that a tile's numbers may take; convolutions need some more for themselves


class Enlarged(NamedTuple):
    """`done` of `total` tiles; `image` is whole after the last."""

    done: int
    total: int
    image: Image.Image


class Tile(NamedTuple):
    """Left, upper, right, lower of what is kept and of what is read, in pixels of the picture."""

    kept: tuple[int, int, int, int]
    read: tuple[int, int, int, int]


@torch.inference_mode()
def enlarge(network: Upscaler, image: Image.Image) -> Iterator[Enlarged]:
    """An image in RGB or RGBA, `network.config.scale` times as large a side; its alpha goes the same way.

    Raises InputError if the result would have too many pixels, CheckpointError if the network gives NaN or infinity.
    """
    scale = network.config.scale
    width, height = image.width * scale, image.height * scale
    if width * height > MAX_PIXELS:
        most = f"{MAX_PIXELS // 1_000_000} million"
        raise InputError(f"{image.width}x{image.height} would become {width}x{height}; at most {most} pixels are made")
    large = Image.new(image.mode, (width, height))
    tiles = list(cut(image.size, network))
    for number, tile in enumerate(tiles, 1):
        pixels = _run(network, np.asarray(image.crop(tile.read)))
        left, upper = (scale * (kept - read) for kept, read in zip(tile.kept[:2], tile.read[:2]))
        right, lower = (scale * (kept - read) for kept, read in zip(tile.kept[2:], tile.read[:2]))
        large.paste(Image.fromarray(pixels[upper:lower, left:right]), (scale * tile.kept[0], scale * tile.kept[1]))
        yield Enlarged(number, len(tiles), large)


def cut(size: tuple[int, int], network: Upscaler) -> Iterator[Tile]:
    """The tiles of a picture, row by row."""
    side = max(16 * network.unit, math.isqrt(BUDGET // (4 * network.numbers)))
    if size[0] * size[1] <= side * side:
        yield Tile((0, 0, *size), (0, 0, *size))
        return
    overlap = _up(min(network.reach, side // 4), network.unit)
    columns, rows = (list(_spans(length, side - 2 * overlap, overlap, network.unit)) for length in size)
    for top, bottom, above, below in rows:
        for left, right, before, behind in columns:
            yield Tile((left, top, right, bottom), (before, above, behind, below))


def _spans(length: int, most: int, overlap: int, unit: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of the parts of a side, none longer than `most`, and of what is read for each."""
    count = math.ceil(length / most)
    step = _up(math.ceil(length / count), unit)
    for start in range(0, length, step):
        end = min(start + step, length)
        yield start, end, max(0, start - overlap), min(length, end + overlap)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _run(network: Upscaler, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 (y, x, 3 or 4) -> (Y, X, 3 or 4). Sides that do not fit the network go on with their last pixels."""
    height, width, channels = pixels.shape
    missing = [(0, _up(length, network.unit) - length) for length in (height, width)]
    full = torch.from_numpy(np.pad(pixels, [*missing, (0, 0)], mode="edge"))
    parts = [full[..., :3]]
    if channels == 4:
        parts.append(full[..., 3:].expand(-1, -1, 3))  # as a grey picture
    colours, *alpha = (
        _whole(network, part)[: height * network.config.scale, : width * network.config.scale] for part in parts
    )
    return np.concatenate([colours, *(grey.mean(-1, keepdims=True).round().astype(np.uint8) for grey in alpha)], -1)


def _whole(network: Upscaler, pixels: Tensor) -> npt.NDArray[np.uint8]:
    parameter = next(network.parameters())
    x = pixels.permute(2, 0, 1)[None].to(parameter.device).float() / 255
    large = network(x.contiguous(memory_format=torch.channels_last))[0]
    if not bool(large.isfinite().all()):
        raise CheckpointError("the upscaler gave NaN or infinity; its weights are broken, or it needs dtype float32")
    return (large.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
