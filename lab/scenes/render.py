"""Rendering: figures pasted onto their place, lit and rained upon; the end of drawing a scene.

Place: after `layout`. A scene is drawn at twice the side that is kept, which smooths the shapes that Pillow draws
without smoothing. Colours are changed here: a recoloured thing keeps its light and shade, its whites and its outlines.
"""

from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from lab.scenes.canvas import LIGHTS
from lab.scenes.figures import Artist, Figure, Part, bounds
from lab.scenes.layout import layout
from lab.scenes.paintings import paint
from lab.scenes.places import PLACES, paint_place
from lab.scenes.scene import Scene
from lab.scenes.shapes import draw_shape
from lab.scenes.sprites import Sprites
from lab.scenes.vocabulary import Vocabulary

Picture = npt.NDArray[np.uint8]  # (Y, X, 3)

KEPT = 128  # pixels a side
TARGETS = {
    "red": (222, 44, 50), "orange": (250, 140, 30), "yellow": (252, 212, 44), "green": (72, 166, 68),
    "teal": (24, 164, 160), "blue": (44, 104, 220), "purple": (138, 74, 196), "pink": (248, 132, 180),
    "brown": (132, 84, 52), "black": (44, 44, 50), "grey": (150, 152, 158), "white": (246, 246, 248),
}  # fmt: skip
LIT = 0.55  # how much of a place's light falls on things


def draw(scene: Scene, sprites: Sprites, vocabulary: Vocabulary, rng: Random, side: int = KEPT) -> Picture:
    """The picture of a scene, `side` pixels a side; sprites should be rendered at twice that."""
    artist = Artist(sprites, vocabulary, scene.style)
    size = 2 * side
    image = paint_place(scene.place, scene.condition, size, rng)
    back, figures = layout(scene, artist, rng)
    light = _light(scene.condition)
    for figure in back:
        _paste(image, figure, artist, light)
    if scene.condition in ("fog", "sandstorm"):
        haze = (216, 220, 222) if scene.condition == "fog" else (200, 136, 88)
        image = Image.blend(image, Image.new("RGB", image.size, haze), 0.5)
    shaded = not PLACES[scene.place].weightless and scene.place not in ("plain", "sea")
    for figure in figures:
        if shaded:
            _shadow(image, figure)
        _paste(image, figure, artist, light)
    _weather(image, scene, rng)
    image = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(paint(image, scene.painting, rng))


def _light(condition: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * (1 - LIT + LIT * share)) for share in LIGHTS.get(condition, (1.0, 1.0, 1.0)))
    return red, green, blue


def _shadow(image: Image.Image, figure: Figure) -> None:
    """A flat dark spot under what stands on the ground."""
    left, _, right, bottom = bounds(figure)
    if not 0.6 < bottom < 0.99:
        return
    size, half = image.width, 0.42 * (right - left)
    middle = (left + right) / 2
    box = [(middle - half) * size, (bottom - 0.022) * size, (middle + half) * size, (bottom + 0.018) * size]
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse(box, fill=64)
    image.paste((10, 14, 24), (0, 0), mask)


def _paste(image: Image.Image, figure: Figure, artist: Artist, light: tuple[int, int, int]) -> None:
    for part in figure:
        cut = _cut(part, artist, image.width)
        if cut is None:
            continue
        picture, corner = cut
        if light != (255, 255, 255):
            shade = Image.new("RGBA", picture.size, (*light, 255))
            picture = ImageChops.multiply(picture, shade)
        image.paste(picture.convert("RGB"), corner, picture.getchannel("A"))


def _cut(part: Part, artist: Artist, size: int) -> tuple[Image.Image, tuple[int, int]] | None:
    """A part as an RGBA image of its own pixels, and where its upper left goes; None if nothing of it is left."""
    width, height = round(part.width * size), round(part.height * size)
    top, low = round(part.top * height), round(part.low * height)
    if width < 1 or low - top < 1:
        return None
    if part.concept.startswith("@"):
        picture = draw_shape(part.concept[1:], width, height)
    else:
        sprite = artist.sprites.get(artist.style, part.concept)
        picture = _straight(sprite.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
    if part.colour:
        picture = recolour(picture, part.colour)
    if part.bitten:
        _bite(picture)
    if part.skin:
        picture = _necked(picture, part.top, artist.sprites.get(artist.style, part.skin))
    if part.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if part.oval:
        _keep_oval(picture, part.oval)
    return picture.crop((0, top, width, low)), (round(part.x * size), round(part.y * size) + top)


def _straight(image: Image.Image) -> Image.Image:
    return image.convert("RGBA")


def _keep_oval(picture: Image.Image, oval: tuple[float, float, float]) -> None:
    x, y, radius = (number * picture.width for number in oval)
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    picture.putalpha(ImageChops.multiply(picture.getchannel("A"), mask))


def _bite(picture: Image.Image) -> None:
    """Three round holes in the upper edge."""
    alpha = picture.getchannel("A")
    draw, r = ImageDraw.Draw(alpha), 0.11 * max(picture.size)
    for i in range(3):
        x, y = 0.3 * picture.width + i * 1.3 * r, 0.06 * picture.height
        draw.ellipse((x - r, y - r, x + r, y + r), fill=0)
    picture.putalpha(alpha)


def _necked(picture: Image.Image, neck: float, head: Image.Image) -> Image.Image:
    """An outfit whose wearer's yellow neck, in the middle just below `neck`, has the colour of another head's chin."""
    rgba = np.array(picture)
    height, width, _ = rgba.shape
    rows = slice(round(neck * height), round((neck + 0.2) * height))
    columns = slice(round(0.3 * width), round(0.7 * width))
    part = rgba[rows, columns].astype(np.int16)
    red, green, blue, _ = np.moveaxis(part, -1, 0)
    skin = (red > 190) & (green > 120) & (green < red) & (blue < 0.62 * green) & (red - green < 100)
    third = (head.width // 3, head.height * 3 // 4, head.width * 2 // 3, head.height)
    chin = np.asarray(head.convert("RGBA").crop(third))
    shown = chin[chin[..., 3] > 200]
    if len(shown):
        rgba[rows, columns][skin, :3] = np.median(shown[:, :3], axis=0)
    return Image.fromarray(rgba)


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """An RGBA picture in another colour: light and shade stay, and so do white and black parts of coloured things."""
    rgba = np.asarray(picture).astype(np.float32)
    rgb, alpha = rgba[..., :3] / 255, rgba[..., 3:] / 255
    high, low = rgb.max(-1, keepdims=True), rgb.min(-1, keepdims=True)
    saturation = (high - low) / np.maximum(high, 1e-3)
    lightness = rgb @ np.array([0.35, 0.5, 0.15], np.float32)[:, None]
    seen = alpha > 0.5
    coloured = float((saturation[seen] > 0.25).mean()) > 0.5 if seen.any() else False
    weight = np.clip((saturation - 0.15) / 0.2, 0, 1) if coloured else np.clip((lightness - 0.18) / 0.1, 0, 1)
    chosen = seen & (weight > 0.5)
    middle = float(np.median(lightness[chosen])) if chosen.any() else 0.5
    relative = lightness / max(middle, 0.05)
    target = np.array(TARGETS[colour], np.float32) / 255
    shade = np.where(
        relative <= 1, target * np.power(relative, 0.8), 1 - (1 - target) * np.power(np.maximum(relative, 1), -1.2)
    )
    mixed = weight * shade + (1 - weight) * rgb
    return Image.fromarray(np.concatenate((mixed.clip(0, 1) * 255, rgba[..., 3:]), -1).round().astype(np.uint8))


def _weather(image: Image.Image, scene: Scene, rng: Random) -> None:
    if not PLACES[scene.place].sky:
        return
    size, draw = image.width, ImageDraw.Draw(image)
    if scene.condition == "rain":
        for _ in range(70):
            x, y, long = rng.random() * size, rng.random() * size, rng.uniform(0.03, 0.06) * size
            draw.line((x, y, x - 0.25 * long, y + long), fill=(196, 212, 228), width=max(1, size // 160))
    elif scene.condition == "snow":
        for _ in range(70):
            x, y, r = rng.random() * size, rng.random() * size, rng.uniform(0.004, 0.01) * size
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 252, 255))
