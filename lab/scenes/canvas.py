"""A canvas to paint places on, in units of its side, with the colours of the time of day and of the weather.

Place: what `places` paints with. Pillow draws the shapes unsmoothed; a scene is drawn at twice the side that is kept.
"""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

SKIES: dict[str, tuple[Colour, Colour]] = {  # top, horizon
    "day": ((96, 172, 240), (196, 228, 250)),
    "sunset": ((92, 84, 150), (255, 168, 96)),
    "night": ((10, 14, 44), (38, 48, 96)),
    "rain": ((104, 116, 132), (168, 178, 188)),
    "snow": ((168, 184, 204), (216, 224, 234)),
    "fog": ((190, 196, 202), (214, 218, 220)),
}
LIGHTS: dict[str, tuple[float, float, float]] = {  # how the ground, and what stands on it, is lit
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.86, 0.76),
    "night": (0.38, 0.43, 0.62),
    "rain": (0.78, 0.82, 0.86),
    "snow": (0.94, 0.96, 1.0),
    "fog": (0.9, 0.92, 0.93),
}


class Canvas:
    """A square picture of `size` pixels that is painted in units of its side; `condition` decides the colours."""

    def __init__(self, size: int, condition: str, rng: Random) -> None:
        self.size, self.condition, self.rng = size, condition, rng
        self.image = Image.new("RGB", (size, size), "white")
        self.draw = ImageDraw.Draw(self.image)

    def lit(self, colour: Colour, spread: int = 10) -> Colour:
        """`colour` as the condition lights it, a little off by chance."""
        off = self.rng.randint(-spread, spread)
        light = LIGHTS.get(self.condition, (1.0, 1.0, 1.0))
        red, green, blue = (max(0, min(255, round((value + off) * share))) for value, share in zip(colour, light))
        return red, green, blue

    def gradient(self, top: Colour, bottom: Colour, y0: float = 0.0, y1: float = 1.0) -> None:
        """A vertical run of colours from y0 to y1, over the whole width."""
        rows = np.linspace(0, 1, max(1, round(self.size * y1) - round(self.size * y0)))[:, None]
        column = np.asarray(top) * (1 - rows) + np.asarray(bottom) * rows
        band = np.repeat(column[:, None], self.size, axis=1).astype(np.uint8)
        self.image.paste(Image.fromarray(band), (0, round(self.size * y0)))

    def sky(self) -> None:
        top, low = SKIES[self.condition]
        self.gradient(jitter(top, self.rng), jitter(low, self.rng), 0, 0.85)
        if self.condition == "night":
            self.stars(40, 0.6)

    def stars(self, count: int, down: float = 1.0) -> None:
        for _ in range(count):
            x, y, r = self.rng.random(), self.rng.random() * down, self.rng.choice((0.002, 0.003, 0.005))
            self.ellipse(x, y, r, r, (235, 238, 255))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.size
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        s = self.size
        self.draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=colour)

    def hills(self, y: float, rise: float, colour: Colour, waves: float = 2.0) -> None:
        """Ground from a wavy line about `y` down to the bottom."""
        a, b, k = self.rng.random() * 6.3, self.rng.random() * 6.3, waves * self.rng.uniform(0.7, 1.3)
        xs = [i / 32 for i in range(33)]
        tops = [y - rise * (0.6 * math.sin(k * 3 * x + a) + 0.4 * math.sin(k * 7 * x + b)) for x in xs]
        self.polygon([*zip(xs, tops), (1.0, 1.0), (0.0, 1.0)], colour)

    def speckle(self, count: int, y0: float, colours: list[Colour], r: float = 0.008) -> None:
        """Small flat spots on the ground below y0, larger in front."""
        for _ in range(count):
            y = self.rng.uniform(y0, 1)
            near = 0.5 + (y - y0) / (1 - y0)
            self.ellipse(self.rng.random(), y, 2 * r * near, 0.7 * r * near, self.rng.choice(colours))


def jitter(colour: Colour, rng: Random, spread: int = 12) -> Colour:
    red, green, blue = (max(0, min(255, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def times(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(value * factor) for value in colour)
    return red, green, blue
