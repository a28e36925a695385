"""A picture to start from, and a mask of what of it is drawn anew: checked, fitted to the model, and as numbers.

White of the mask is replaced, black is kept. Sizes and values are those of diffusers' image processors: Lanczos, and
grey from one half up is white.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qkv.errors import InputError, quoted, shorten
from qkv.models.vae import VAE
from qkv.pictures.files import MAX_PIXELS, open_picture, upright
from qkv.sample.denoise import Keep

HALF = 128  # of 255: grey that counts as white


def as_image(given: Any) -> Any:
    """The picture in a file, where one is named. InputError."""
    if not isinstance(given, str | Path):
        return given
    opened = open_picture(given)
    if opened.animated:
        raise InputError(f"{shorten(str(given), 200)} holds several pictures; give one of them")
    return opened.image


def checked(name: str, image: object) -> Image.Image:
    """The image in RGB, as a person would see it. InputError."""
    if not isinstance(image, Image.Image):
        raise InputError(f"{name}={quoted(image)} is not a Pillow image")
    if not 1 <= image.width * image.height <= MAX_PIXELS:
        most = f"{MAX_PIXELS // 1_000_000} million"
        raise InputError(f"{name} has {image.width} x {image.height} pixels; it must have 1 to {most}")
    try:
        image.load()  # Pillow reads a file when its pixels are asked for
        return upright(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name} cannot be read: {shorten(str(error))}") from error


def checked_mask(mask: object, size: tuple[int, int]) -> Image.Image:
    """The mask in grey, of a picture of that size. InputError."""
    grey = checked("mask", mask).convert("L")
    if grey.size != size:
        given, needed = ("{}x{}".format(*each) for each in (grey.size, size))
        raise InputError(f"the mask has {given} pixels, its picture {needed}; give them one size")
    if not np.any(np.asarray(grey) >= HALF):
        raise InputError("the mask has no white, so nothing would be drawn; white is what is replaced")
    return grey


def digest(image: Image.Image | None) -> str | None:
    """What tells an image from another: its size and pixels, hashed."""
    if image is None:
        return None
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()[:16]


def pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The image at that size, (1, 3, Y, X) in [-1, 1]."""
    fitted = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    return 2 * torch.from_numpy(fitted / np.float32(255)).permute(2, 0, 1)[None] - 1


def white(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, 1, Y, X), True where the mask at that size is white."""
    return torch.from_numpy(np.asarray(mask.resize(size, Image.Resampling.LANCZOS)) >= HALF)[None, None]


class Spread(NamedTuple):
    """What the autoencoder makes of a picture: a distribution of latents, each (1, C, y, x)."""

    mean: Tensor
    log_variance: Tensor


class Initial(NamedTuple):
    """A picture for the sampler; with `mask` (1, 1, y, x) True where it is drawn anew. `rest` is what the mask keeps,
    for a network that reads it."""

    vae: VAE
    picture: Spread
    mask: Tensor | None = None
    rest: Spread | None = None

    def begin(self, first: int, noise: Callable[[], Tensor]) -> "Beginning":
        """Where the walk begins, at row `first` of its schedule. Random numbers come in the order of diffusers'
        pipelines, which also draw some for a `rest` that nothing reads."""
        clean = None if self.rest and not first else self._latent(self.picture, noise())
        x = noise()
        start = None if clean is None or (self.mask is not None and not first) else (clean, first)
        if self.mask is None:
            return Beginning(x, start)
        more = noise()
        if self.rest:
            rest = self._latent(self.rest, more)
            return Beginning(x, start, seen=torch.cat([self.mask.to(rest), rest], dim=1))
        assert clean is not None
        return Beginning(x, start, Keep(clean, self.mask, x))

    def _latent(self, spread: Spread, noise: Tensor) -> Tensor:
        return self.vae.latent(*spread, noise)


class Beginning(NamedTuple):
    """What `sample` is given, and what an inpainting U-Net sees beside the latent."""

    x: Tensor
    start: tuple[Tensor, int] | None = None
    keep: Keep | None = None
    seen: Tensor | None = None
