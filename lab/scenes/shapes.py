"""Shapes that no icon set has: a card table, cards, chips, a chess board, the hollow of a helmet.

Place: parts of figures whose concept begins with "@" are drawn here, not looked up among the sprites.
"""

from collections.abc import Callable
from functools import partial

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


def draw_shape(name: str, width: int, height: int) -> Image.Image:
    """An RGBA picture of the shape. Raises KeyError for a name that is not in SHAPES."""
    image = Image.new("RGBA", (width, height))
    SHAPES[name](ImageDraw.Draw(image), width, height)
    return image


def _hollow(draw: ImageDraw.ImageDraw, w: int, h: int) -> None:
    draw.ellipse((0, 0, w - 1, h - 1), fill=(46, 48, 66, 255))


def _table(draw: ImageDraw.ImageDraw, w: int, h: int, top: Colour, rim: Colour) -> None:
    """Seen from a little above: an oval top with a rim, and two legs."""
    for x in (0.2, 0.74):
        draw.rectangle((x * w, 0.5 * h, (x + 0.07) * w, h), fill=(82, 52, 34, 255))
    draw.ellipse((0, 0.06 * h, w - 1, 0.72 * h), fill=(*rim, 255))
    draw.ellipse((0, 0, w - 1, 0.66 * h), fill=(*rim, 255))
    draw.ellipse((0.04 * w, 0.04 * h, 0.96 * w, 0.6 * h), fill=(*top, 255))


def _card(draw: ImageDraw.ImageDraw, w: int, h: int, colour: Colour) -> None:
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.14 * w, fill=(252, 252, 252, 255), outline=(90, 90, 96, 255))
    x, y, r = w / 2, h / 2, 0.26 * w
    draw.polygon([(x, y - 1.3 * r), (x + r, y), (x, y + 1.3 * r), (x - r, y)], fill=(*colour, 255))


def _chip(draw: ImageDraw.ImageDraw, w: int, h: int, colour: Colour) -> None:
    draw.ellipse((0, 0.2 * h, w - 1, h - 1), fill=(*(value * 2 // 3 for value in colour), 255))
    draw.ellipse((0, 0, w - 1, 0.8 * h), fill=(*colour, 255))


def _board(draw: ImageDraw.ImageDraw, w: int, h: int) -> None:
    """Four by eight squares on a slanted board."""
    rows, columns, lean = 4, 8, 0.14

    def corner(i: int, j: int) -> tuple[float, float]:
        y = j / rows
        inset = lean * (1 - y)
        return (inset + (1 - 2 * inset) * i / columns) * (w - 1), y * (h - 1)

    for j in range(rows):
        for i in range(columns):
            light = (i + j) % 2 == 0
            square = [corner(i, j), corner(i + 1, j), corner(i + 1, j + 1), corner(i, j + 1)]
            draw.polygon(square, fill=(240, 222, 184, 255) if light else (122, 78, 50, 255))


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, int, int], None]] = {
    "hollow": _hollow,
    "table": partial(_table, top=(40, 128, 76), rim=(110, 68, 42)),
    "wood": partial(_table, top=(176, 124, 80), rim=(122, 80, 50)),
    "card-red": partial(_card, colour=(214, 40, 48)),
    "card-black": partial(_card, colour=(36, 36, 42)),
    "chip-red": partial(_chip, colour=(214, 50, 50)),
    "chip-blue": partial(_chip, colour=(52, 92, 200)),
    "chip-white": partial(_chip, colour=(240, 240, 240)),
    "board": _board,
}
