"""Ways of painting: filters over a finished picture, each with its word.

Place: the last step of rendering. They need numpy and Pillow alone and work on a small picture, so that one costs a
few milliseconds; what counts is that each is told from the others at 128 pixels.
"""

import math
from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Numbers = npt.NDArray[np.float32]


def paint(image: Image.Image, painting: str, rng: Random) -> Image.Image:
    """`image` (RGB) painted in the way of that name; "" leaves it. Raises KeyError for a name not in PAINTINGS."""
    return PAINTINGS[painting](image, rng) if painting else image


def _noise(rng: Random, shape: tuple[int, ...]) -> Numbers:
    return np.random.default_rng(rng.getrandbits(64)).standard_normal(shape).astype(np.float32)


def _photo(image: Image.Image, rng: Random) -> Image.Image:
    """Soft light from one side, a blurred edge of the field, a dark rim, grain."""
    size = image.width
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    far = np.clip((np.hypot(xs, ys + 0.02) - 0.3) / 0.25, 0, 1)
    mask = Image.fromarray((255 * far).astype(np.uint8))
    image = Image.composite(image.filter(ImageFilter.GaussianBlur(size / 70)), image, mask)
    pixels = np.asarray(image).astype(np.float32)
    side = rng.choice((-1, 1))
    light = 1.04 + 0.22 * (side * xs - ys) - 0.5 * np.clip(xs**2 + ys**2 - 0.12, 0, 1)
    warm = np.array([1.03, 1.0, 0.95], np.float32)
    grain = 4.0 * _noise(rng, (size, size, 1))
    return _image(pixels * light[..., None] * warm + grain)


def _oil(image: Image.Image, rng: Random) -> Image.Image:
    """Thick brush strokes, each in the colour under it, along the edges of the picture."""
    size = image.width
    pixels = np.asarray(image)
    grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(size / 64))).astype(np.float32)
    gy, gx = (np.asarray(part) for part in np.gradient(grey))
    out = image.filter(ImageFilter.GaussianBlur(size / 50))
    draw = ImageDraw.Draw(out)
    field = rng.random() * 3.1
    for long, wide, count in ((0.08, 0.03, 320), (0.042, 0.014, 2400)):
        for _ in range(count):
            x, y = rng.randrange(size), rng.randrange(size)
            dx, dy = float(gx[y, x]), float(gy[y, x])
            if abs(dx) + abs(dy) < 1.2:
                dx, dy = math.cos(field + 2 * x / size), math.sin(field + 2 * y / size)
            norm = max(1e-6, math.hypot(dx, dy))
            a, b = -dy / norm * long * size / 2, dx / norm * long * size / 2
            shade = rng.randint(-14, 14)
            colour = tuple(max(0, min(255, int(value) + shade)) for value in pixels[y, x])
            draw.line((x - a, y - b, x + a, y + b), fill=colour, width=max(1, round(wide * size)))
    return ImageEnhance.Color(out).enhance(1.25)


def _watercolour(image: Image.Image, rng: Random) -> Image.Image:
    """Pale flat washes that dry darker at their edges, on rough paper."""
    size = image.width
    soft = image.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.5))
    pixels = np.asarray(soft).astype(np.float32)
    coarse = Image.fromarray((128 + 28 * _noise(rng, (10, 10))).clip(0, 255).astype(np.uint8))
    blotch = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC)).astype(np.float32)[..., None] - 128
    rim = np.asarray(soft.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.GaussianBlur(0.7)))
    washed = 255 - 0.72 * (255 - pixels) + 0.4 * blotch
    paper = 3.5 * _noise(rng, (size, size, 1))
    return _image(washed - 0.6 * rim.astype(np.float32)[..., None] + paper)


def _pencil(image: Image.Image, rng: Random) -> Image.Image:
    """Grey lines on white paper with hatching in the dark parts."""
    grey = image.convert("L")
    light = ImageChops.invert(grey).filter(ImageFilter.GaussianBlur(image.width / 40))
    base, top = np.asarray(grey).astype(np.float32), np.asarray(light).astype(np.float32)
    dodge = np.minimum(255, base * 255 / np.maximum(1, 255 - top))
    ys, xs = np.mgrid[0 : image.height, 0 : image.width]
    hatch = ((xs + ys) % 4 < 2) & (base < 130)
    lines = 0.62 * dodge + 0.38 * base - 34 * hatch - 0.3 * np.clip(235 - dodge, 0, 120) + 5 * _noise(rng, base.shape)
    return Image.fromarray(lines.clip(0, 255).astype(np.uint8)).convert("RGB")


def _pixel(image: Image.Image, rng: Random) -> Image.Image:
    """Large square pixels of few colours."""
    side = 32 if image.width <= 128 else image.width // 8
    small = image.resize((side, side), Image.Resampling.BOX)
    few = small.quantize(24, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return few.resize(image.size, Image.Resampling.NEAREST)


def _comic(image: Image.Image, rng: Random) -> Image.Image:
    """Few strong colours, black outlines, dots in the half-tones."""
    size = image.width
    flat = ImageOps.posterize(ImageEnhance.Color(image.filter(ImageFilter.MedianFilter(3))).enhance(1.5), 2 + 1)
    pixels = np.asarray(flat).astype(np.float32) * 1.12
    grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(0.5))).astype(np.float32)
    gy, gx = np.gradient(grey)
    edge = np.clip((np.hypot(gx, gy) - 24) / 18, 0, 0.9)[..., None]
    ys, xs = np.mgrid[0:size, 0:size]
    dots = (np.hypot((xs + 3 * ((ys // 5) % 2)) % 5 - 2, ys % 5 - 2) < 1.3) & (grey > 60) & (grey < 150)
    return _image(pixels * (1 - edge) - 34 * dots[..., None] * (1 - edge))


def _sepia(image: Image.Image, rng: Random) -> Image.Image:
    """An old photograph: brown, faded, dark at the corners."""
    grey = np.asarray(image.convert("L")).astype(np.float32)[..., None] / 255
    ys, xs = np.mgrid[0 : image.height, 0 : image.width].astype(np.float32) / image.width - 0.5
    rim = 1 - 0.9 * np.clip(xs**2 + ys**2 - 0.16, 0, 1)[..., None]
    tone = np.array([34, 18, 4], np.float32) + grey * np.array([218, 208, 176], np.float32)
    return _image(tone * rim + 3 * _noise(rng, (*grey.shape[:2], 1)))


def _image(pixels: Numbers) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PAINTINGS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "photo": _photo,
    "oil": _oil,
    "watercolour": _watercolour,
    "pencil": _pencil,
    "pixel": _pixel,
    "comic": _comic,
    "sepia": _sepia,
}
