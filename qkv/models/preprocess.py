"""Pictures as a tower reads them: resized, cut out of its middle, rescaled, normalised.

As transformers' image processors with Pillow do it (2103.00020 says only the size), to a grey level. Of a very long
picture only what the cut keeps is computed, so that one pixel by a million costs no more than another. Left out: cuts
at random, which are for training, and other colour spaces.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from qkv.errors import ConfigError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]  # in Pillow's numbers' order
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI's CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)
LARGEST = 4096  # pixels a side
# Pixels of a resized picture. Beyond, its middle is resized alone: nearly the same, but Pillow chooses by the shape
# which way it goes first, and rounds in between.
MOST = LARGEST * LARGEST


class Span(NamedTuple):
    """On one axis: which numbers of the resized picture are kept, and where the first of them goes."""

    start: int
    length: int
    to: int


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """`resize`: the shorter side's pixels, or (Y, X), or None for none. `crop`: (Y, X) out of the middle, black where
    the picture ends before. Then values * `factor`, less `mean`, over `std`, a channel each."""

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: Resample = "bicubic"
    factor: float = 1 / 255
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            sides = getattr(self, name)
            for side in sides if isinstance(sides, tuple) else () if sides is None else (sides,):
                if not 1 <= side <= LARGEST:
                    raise ConfigError(f"{name}={sides} is out of range; a side has 1 to {LARGEST} pixels")
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ConfigError("pictures would keep a shape of their own; set crop, or resize to a height and width")
        if 0 in self.std:
            raise ConfigError(f"std={self.std} holds 0; pictures cannot be divided by it")

    @property
    def size(self) -> tuple[int, int]:
        """(Y, X) of what comes out."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.resize, tuple)
        return self.resize

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """An RGB image as (3, Y, X)."""
        pixels = np.asarray(self.cut(image), np.float32)  # (Y, X, 3)
        mean, std = (np.asarray(each, np.float32) for each in (self.mean, self.std))
        scaled = (pixels * np.float32(self.factor) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def cut(self, image: Image.Image) -> Image.Image:
        """The image at the size that comes out, its values as they are."""
        height, width = self._resized(image.height, image.width)
        y, x = (_span(side, kept) for side, kept in zip((height, width), self.size))
        left, top, right, bottom = x.start, y.start, x.start + x.length, y.start + y.length
        resample = Image.Resampling[self.resample.upper()]
        if height * width <= MOST:
            kept = image.resize((width, height), resample).crop((left, top, right, bottom))
        else:
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
            kept = image.resize((x.length, y.length), resample, box=box)
        if kept.size == self.size[::-1]:
            return kept
        canvas = Image.new("RGB", self.size[::-1])
        canvas.paste(kept, (x.to, y.to))
        return canvas

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        if width <= height:
            return self.resize * height // width, self.resize
        return self.resize, self.resize * width // height


def _span(side: int, kept: int) -> Span:
    if side >= kept:
        return Span((side - kept) // 2, kept, 0)
    return Span(0, side, math.ceil((kept - side) / 2))
