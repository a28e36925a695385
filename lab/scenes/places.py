"""Places, drawn by program: what lies behind the things, by day, at night, in rain, snow and fog.

Place: between a scene's facts and its layers. A painter fills the background of one place on a square canvas; what
grows or stands there out of sprites (trees, cacti, corals) is listed beside it and pasted by `layout`. Every painter
draws with shapes of its own luck, so that no two beaches are one picture. Left out: perspective, shadows of clouds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lab.scenes.canvas import SKIES, Canvas, Colour, jitter, times

EARTH = ("day", "sunset", "night", "rain", "snow", "fog")
WARM = ("day", "sunset", "night", "rain", "fog")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where things may be: `ground` is the range of heights (0 top, 1 bottom) that feet stand on.

    `conditions` are the times of day and kinds of weather that it has; `plants` the sprites of its own, `sides` those
    that stand at the sides, and `floats` says that what swims may lie in it.
    """

    paint: Callable[["Canvas"], None]
    ground: tuple[float, float] = (0.78, 0.94)
    conditions: tuple[str, ...] = EARTH
    plants: tuple[str, ...] = ()
    sky: bool = True  # clouds, sun and moon are pasted there
    weightless: bool = False  # things float anywhere
    floats: bool = False


PLAIN: dict[str, Colour] = {  # a plain ground's condition is its colour
    "white": (248, 248, 248),
    "blue": (132, 186, 236),
    "pink": (250, 196, 212),
    "yellow": (252, 228, 136),
    "green": (168, 218, 160),
    "purple": (200, 178, 238),
    "orange": (255, 196, 130),
    "teal": (126, 204, 196),
    "red": (234, 104, 96),
    "black": (52, 52, 62),
    "grey": (186, 186, 194),
    "brown": (176, 134, 100),
}


def _plain(c: Canvas) -> None:
    colour = jitter(PLAIN[c.condition], c.rng, 8)
    if c.rng.random() < 0.5:
        c.image.paste(colour, (0, 0, c.size, c.size))
    else:
        darker = times(colour, 0.84)
        c.gradient(*((colour, darker) if c.rng.random() < 0.6 else (darker, colour)))


def _beach(c: Canvas) -> None:
    c.sky()
    c.gradient(c.lit((36, 140, 190)), c.lit((90, 196, 214)), 0.48, 0.74)
    for _ in range(8):
        x, y = c.rng.random(), c.rng.uniform(0.5, 0.68)
        c.box(x, y, x + c.rng.uniform(0.03, 0.1), y + 0.006, c.lit((150, 215, 230)))
    c.hills(0.7, 0.02, c.lit((240, 246, 246)))
    c.hills(0.72, 0.02, c.lit((238, 216, 160)))
    c.speckle(14, 0.78, [c.lit((222, 196, 138)), c.lit((250, 234, 190))], 0.006)


def _sea(c: Canvas) -> None:
    c.sky()
    c.gradient(c.lit((28, 104, 176)), c.lit((16, 66, 130)), 0.55, 1)
    for i in range(5):
        y = 0.58 + 0.09 * i
        c.hills(y, 0.008 + 0.004 * i, c.lit((30 - 3 * i, 112 - 9 * i, 186 - 11 * i), 6), 4)
    for _ in range(12):
        y = c.rng.uniform(0.57, 0.97)
        x, width = c.rng.random(), 0.02 + (y - 0.5) * c.rng.uniform(0.04, 0.2)
        c.box(x, y, x + width, y + 0.007, c.lit((120, 180, 226)))


def _underwater(c: Canvas) -> None:
    night = c.condition == "night"
    c.gradient(*(((16, 60, 120), (4, 14, 46)) if night else ((64, 176, 224), (10, 60, 132))))
    if not night:
        for _ in range(4):
            x, w = c.rng.random(), c.rng.uniform(0.03, 0.08)
            ray = Image.new("L", c.image.size)
            points = [(x, 0), (x + w, 0), (x + 3 * w - 0.1, 0.8), (x + w - 0.14, 0.8)]
            ImageDraw.Draw(ray).polygon([(px * c.size, py * c.size) for px, py in points], fill=26)
            c.image.paste((200, 240, 255), (0, 0), ray)
    c.hills(0.88, 0.03, c.lit((196, 176, 122)))
    for _ in range(7):
        x, foot = c.rng.random(), c.rng.uniform(0.9, 1)
        sway, height = c.rng.uniform(-0.05, 0.05), c.rng.uniform(0.1, 0.25)
        green = c.lit((34, 128, 84), 20)
        c.polygon([(x - 0.012, foot), (x + sway, foot - height), (x + 0.012, foot)], green)
    for _ in range(c.rng.randint(4, 14)):
        r = c.rng.uniform(0.004, 0.014)
        c.ellipse(c.rng.random(), c.rng.random() * 0.85, r, r, (190, 226, 246))


def _meadow(c: Canvas) -> None:
    c.sky()
    c.hills(0.6, 0.04, c.lit((128, 186, 100)))
    c.hills(0.7, 0.025, c.lit((108, 178, 74)))
    c.speckle(26, 0.74, [c.lit((92, 160, 62)), c.lit((134, 200, 96))])
    if c.condition != "snow":
        flowers = [c.lit(f) for f in ((250, 224, 90), (246, 246, 250), (240, 120, 150), (190, 130, 230))]
        c.speckle(14, 0.76, flowers, 0.006)
    else:
        c.hills(0.74, 0.02, c.lit((238, 242, 248)))


def _forest(c: Canvas) -> None:
    c.sky()
    for y, colour in ((0.42, (86, 136, 96)), (0.5, (60, 116, 74))):  # far woods, tree by tree
        for i in range(18):
            x, tall = i / 17 + c.rng.uniform(-0.03, 0.03), c.rng.uniform(0.12, 0.22)
            shade = c.lit(colour, 12)
            if c.rng.random() < 0.6:
                c.polygon([(x - 0.06, y + 0.2), (x, y - tall + 0.1), (x + 0.06, y + 0.2)], shade)
            else:
                c.ellipse(x, y + 0.06, 0.06, tall / 1.6, shade)
    c.hills(0.66, 0.02, c.lit((238, 242, 248) if c.condition == "snow" else (92, 146, 66)))
    c.speckle(24, 0.7, [c.lit((78, 128, 56)), c.lit((112, 166, 84))])


def _mountains(c: Canvas) -> None:
    c.sky()
    for y, colour in ((0.62, (130, 142, 170)), (0.7, (96, 106, 128))):
        for _ in range(3):
            x, half, top = c.rng.random(), c.rng.uniform(0.22, 0.4), c.rng.uniform(0.14, 0.4)
            c.polygon([(x - half, y), (x, top), (x + half, y)], c.lit(colour))
            cut = 0.3 * (y - top)
            share = cut / (y - top)
            crown = [(x - half * share, top + cut), (x, top), (x + half * share, top + cut)]
            teeth = [(x + half * share * k, top + cut * (1 if i % 2 else 0.72)) for i, k in enumerate((0.5, 0, -0.5))]
            c.polygon([*crown, *teeth], c.lit((244, 248, 252)))
    c.hills(0.66, 0.02, c.lit((226, 232, 240) if c.condition == "snow" else (104, 150, 92)))
    c.speckle(16, 0.72, [c.lit((130, 134, 128)), c.lit((84, 130, 76))])


def _desert(c: Canvas) -> None:
    c.sky()
    c.hills(0.56, 0.04, c.lit((226, 180, 112)))
    c.hills(0.66, 0.04, c.lit((236, 196, 128)))
    c.hills(0.76, 0.03, c.lit((228, 182, 110)))
    c.speckle(12, 0.76, [c.lit((206, 158, 92)), c.lit((244, 212, 154))])


def _snow(c: Canvas) -> None:
    c.sky()
    c.hills(0.58, 0.05, c.lit((206, 220, 238)))
    c.hills(0.68, 0.03, c.lit((230, 238, 248)))
    c.hills(0.78, 0.02, c.lit((246, 249, 253), 4))
    c.speckle(10, 0.78, [c.lit((222, 232, 244))], 0.012)


def _tower(c: Canvas, x: float, top: float, width: float, foot: float, colour: Colour) -> None:
    """A house with windows, lit ones at night."""
    c.box(x, top, x + width, foot, colour)
    dark = (colour[0] * 2 // 3, colour[1] * 2 // 3, colour[2] * 3 // 4)
    shine = (255, 222, 120) if c.condition in ("night", "sunset") else (208, 228, 240)
    columns = max(2, round(width / 0.04))
    for i in range(columns):
        for j in range(int((foot - top) / 0.055)):
            px, py = x + (i + 0.3) * width / columns, top + 0.025 + j * 0.055
            c.box(px, py, px + 0.4 * width / columns, py + 0.026, shine if c.rng.random() < 0.62 else dark)
    if c.rng.random() < 0.25:
        c.box(x + width / 2 - 0.004, top - 0.06, x + width / 2 + 0.004, top, colour)


HOUSES = [(112, 122, 142), (140, 128, 132), (96, 110, 132), (168, 140, 120), (122, 136, 140), (150, 96, 84)]


def _city(c: Canvas) -> None:
    c.sky()
    for low, far in ((0.18, True), (0.34, False)):
        x = c.rng.uniform(-0.08, 0)
        while x < 1:
            width = c.rng.uniform(0.09, 0.2)
            colour = c.lit(c.rng.choice(HOUSES))
            if far:
                haze = SKIES[c.condition][1]
                colour = (colour[0] // 2 + haze[0] // 2, colour[1] // 2 + haze[1] // 2, colour[2] // 2 + haze[2] // 2)
            _tower(c, x, c.rng.uniform(low, low + 0.24), width, 0.76, colour)
            x += width + c.rng.choice((0.0, 0.0, 0.02))
    c.box(0, 0.74, 1, 1, c.lit((150, 150, 152)))
    c.box(0, 0.79, 1, 1, c.lit((84, 86, 92)))
    for i in range(5):
        c.box(0.05 + i * 0.22, 0.9, 0.15 + i * 0.22, 0.912, c.lit((236, 232, 214)))


WALLS = [(240, 214, 170), (226, 160, 130), (186, 206, 222), (244, 236, 220), (170, 196, 160)]


def _street(c: Canvas) -> None:
    """Small houses with roofs and doors along a road."""
    c.sky()
    x = c.rng.uniform(-0.1, 0)
    while x < 1:
        width, top = c.rng.uniform(0.2, 0.3), c.rng.uniform(0.34, 0.46)
        wall = c.lit(c.rng.choice(WALLS))
        roof = c.lit(c.rng.choice([(176, 70, 56), (110, 86, 80), (80, 96, 120)]))
        c.box(x, top, x + width, 0.76, wall)
        c.polygon([(x - 0.02, top), (x + width / 2, top - 0.15), (x + width + 0.02, top)], roof)
        shine = (255, 222, 120) if c.condition in ("night", "sunset") else c.lit((150, 200, 230))
        for px in (0.14, 0.62):
            c.box(x + px * width, top + 0.05, x + (px + 0.24) * width, top + 0.13, shine)
        c.box(x + 0.4 * width, 0.6, x + 0.62 * width, 0.76, c.lit((120, 72, 48)))
        x += width + c.rng.uniform(0.02, 0.06)
    c.box(0, 0.75, 1, 1, c.lit((186, 184, 180)))
    c.box(0, 0.8, 1, 1, c.lit((96, 98, 104)))
    for i in range(5):
        c.box(0.05 + i * 0.22, 0.905, 0.15 + i * 0.22, 0.917, c.lit((240, 236, 220)))


def _room(c: Canvas) -> None:
    wall = jitter(c.rng.choice([(238, 222, 196), (198, 218, 226), (214, 226, 200), (236, 206, 206)]), c.rng, 8)
    floor = jitter(c.rng.choice([(176, 126, 84), (150, 104, 72), (196, 160, 122), (140, 140, 150)]), c.rng, 8)
    dim = 0.55 if c.condition == "night" else 1.0
    wall, floor = times(wall, dim), times(floor, dim)
    c.image.paste(wall, (0, 0, c.size, c.size))
    x, top, low = c.rng.choice((0.08, 0.34, 0.6)), SKIES[c.condition][0], SKIES[c.condition][1]
    frame = times((250, 248, 244), dim)
    c.box(x - 0.02, 0.1, x + 0.34, 0.48, frame)
    c.box(x, 0.12, x + 0.32, 0.46, low)
    c.box(x, 0.12, x + 0.32, 0.26, top)
    if c.condition in ("rain", "snow"):
        for _ in range(24):
            px, py = x + c.rng.random() * 0.31, 0.12 + c.rng.random() * 0.3
            c.box(px, py, px + 0.006, py + (0.03 if c.condition == "rain" else 0.008), (236, 242, 250))
    c.box(x + 0.15, 0.12, x + 0.17, 0.46, frame)
    c.box(x, 0.28, x + 0.32, 0.3, frame)
    c.box(0, 0.7, 1, 0.73, frame)
    c.box(0, 0.72, 1, 1, floor)
    for i in range(1, 5):
        y = 0.72 + 0.28 * (i / 5) ** 1.4
        c.box(0, y, 1, y + 0.005, times(floor, 0.87))


def _stage(c: Canvas) -> None:
    red = jitter(c.rng.choice([(150, 24, 36), (96, 24, 96), (24, 44, 110)]), c.rng, 10)
    dark = times(red, 0.25)
    c.image.paste(dark, (0, 0, c.size, c.size))
    beam = Image.new("L", c.image.size)
    x = c.rng.uniform(0.4, 0.6)
    cone = [(x - 0.04, 0), (x + 0.04, 0), (x + 0.34, 0.9), (x - 0.34, 0.9)]
    ImageDraw.Draw(beam).polygon([(px * c.size, py * c.size) for px, py in cone], fill=90)
    c.image.paste((255, 244, 200), (0, 0), beam)
    c.box(0, 0.76, 1, 1, (112, 74, 50))
    c.ellipse(x, 0.88, 0.36, 0.08, (206, 162, 112))
    for side in (0, 1):
        for i in range(4):
            fold = 0.18 - 0.045 * i
            shade = times(red, 1 - 0.2 * (i % 2))
            c.box(0 if side == 0 else 1 - fold, 0, fold if side == 0 else 1, 0.8, shade)
    for i in range(8):
        c.ellipse(i / 7, 0.0, 0.09, 0.1, times(red, 0.8 + 0.2 * (i % 2)))


def _space(c: Canvas) -> None:
    c.gradient(jitter((12, 8, 36), c.rng), jitter((30, 14, 60), c.rng))
    glow = Image.new("L", (32, 32))
    pixels: npt.NDArray[np.float64] = np.zeros((32, 32))
    ys, xs = np.mgrid[0:32, 0:32] / 32
    for _ in range(2):
        x, y, r = c.rng.random(), c.rng.random(), c.rng.uniform(0.15, 0.4)
        pixels += 70 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / r**2)
    glow = Image.fromarray(pixels.clip(0, 110).astype(np.uint8)).resize(c.image.size, Image.Resampling.BICUBIC)
    c.image.paste(c.rng.choice([(150, 60, 170), (50, 110, 190), (190, 80, 110)]), (0, 0), glow)
    c.stars(70)


def _moon(c: Canvas) -> None:
    c.image.paste((8, 8, 18), (0, 0, c.size, c.size))
    c.stars(50, 0.6)
    _craters(c, (176, 176, 180), (142, 142, 148), (206, 206, 210))
    if c.rng.random() < 0.5:  # the earth
        x, y = c.rng.uniform(0.1, 0.9), c.rng.uniform(0.1, 0.25)
        c.ellipse(x, y, 0.07, 0.07, (60, 130, 210))
        c.ellipse(x - 0.02, y - 0.02, 0.03, 0.024, (90, 170, 96))
        c.ellipse(x + 0.03, y + 0.025, 0.02, 0.016, (90, 170, 96))


def _mars(c: Canvas) -> None:
    skies = {
        "day": ((196, 128, 92), (234, 186, 146)),
        "sunset": ((120, 84, 90), (150, 150, 176)),
        "night": ((22, 10, 20), (70, 34, 34)),
        "sandstorm": ((188, 120, 72), (196, 128, 80)),
    }
    c.gradient(*skies[c.condition], 0, 0.8)
    if c.condition == "night":
        c.stars(40, 0.5)
    c.hills(0.6, 0.05, c.lit((164, 78, 48)))
    _craters(c, (190, 92, 54), (150, 66, 38), (210, 116, 74))
    c.speckle(10, 0.75, [c.lit((128, 54, 32)), c.lit((112, 48, 30))], 0.012)


def _craters(c: Canvas, ground: Colour, dark: Colour, light: Colour) -> None:
    c.hills(0.68, 0.03, c.lit(ground))
    for _ in range(7):
        y = c.rng.uniform(0.74, 0.98)
        x, r = c.rng.random(), c.rng.uniform(0.03, 0.07) * (0.5 + 2 * (y - 0.7))
        c.ellipse(x, y + 0.006, 1.1 * r, 0.44 * r, c.lit(light, 4))
        c.ellipse(x, y, r, 0.36 * r, c.lit(dark, 4))


PLACES: dict[str, Place] = {
    "plain": Place(paint=_plain, ground=(0.86, 0.94), conditions=tuple(PLAIN), sky=False),
    "beach": Place(paint=_beach, plants=("1F334", "1F41A", "26F1"), conditions=WARM),
    "sea": Place(paint=_sea, ground=(0.7, 0.9), floats=True, conditions=WARM),
    "underwater": Place(
        paint=_underwater, plants=("1FAB8",), conditions=("day", "night"), sky=False, weightless=True, floats=True
    ),
    "meadow": Place(paint=_meadow, plants=("1F33C", "1F337", "1F333", "1F33B")),
    "forest": Place(paint=_forest, plants=("1F332", "1F333")),
    "mountains": Place(paint=_mountains, plants=("1F332", "1FAA8")),
    "desert": Place(paint=_desert, plants=("1F335",), conditions=("day", "sunset", "night", "fog")),
    "snow": Place(paint=_snow, plants=("1F332", "26C4"), conditions=("day", "sunset", "night", "snow", "fog")),
    "city": Place(paint=_city, plants=("1F695",), ground=(0.84, 0.95)),
    "street": Place(paint=_street, plants=("1F333", "1F6A6"), ground=(0.82, 0.95)),
    "room": Place(
        paint=_room, plants=("1FAB4", "1FA91"), ground=(0.82, 0.95), sky=False,
        conditions=("day", "night", "rain", "snow"),
    ),
    "stage": Place(paint=_stage, ground=(0.84, 0.93), conditions=("",), sky=False),
    "space": Place(paint=_space, plants=("1FA90",), conditions=("",), sky=False, weightless=True),
    "moon": Place(paint=_moon, conditions=("",), sky=False),
    "mars": Place(paint=_mars, conditions=("day", "sunset", "night", "sandstorm"), sky=False),
}  # fmt: skip


def paint_place(name: str, condition: str, size: int, rng: Random) -> Image.Image:
    """The background of a place, RGB, `size` pixels a side."""
    canvas = Canvas(size, condition, rng)
    PLACES[name].paint(canvas)
    return canvas.image
