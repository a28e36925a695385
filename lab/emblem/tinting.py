"""Tints: what the name of a colour alone should draw, pictures of the data set all in that colour.

In captions a colour stands beside a subject; "yellow" alone drew a circle no yellower than a lemon, so that as a
negative prompt it did little. Here a picture's silhouette takes the colour that the web calls by the name, darker where
the picture is dark: purer than any drawing is, so that keeping away from it changes a drawing's colour.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageOps

from lab.emblem.captions import words_for_colour
from lab.emblem.items import Item
from lab.emblem.raster import COLOURS, Picture

EACH = 200  # tints a colour
SHARE = 0.03  # of what training draws
PALE = 232  # of 255; a silhouette's ground is as light, and hangs together
DARKEST = 0.6  # of the colour, where the picture is black


def tints(pictures: Sequence[Picture], items: Sequence[Item], seed: int) -> Iterator[tuple[Picture, Item]]:
    """EACH tints a colour of pictures that training may see, named like the colour and without a style."""
    train = [item for item in items if item.split == "train"]
    weight = round(SHARE / (1 - SHARE) * sum(item.weight for item in train) / (EACH * len(COLOURS)), 4)
    rng = random.Random(seed)
    untoned = [item for item in train if not item.tone]
    for colour in COLOURS:
        concept = f"colour:{colour}"
        for item in rng.sample(untoned, min(EACH, len(untoned))):
            yield (
                tint(pictures[item.row], colour),
                replace(
                    item,
                    style="",
                    icon=f"{colour}-{item.style}-{item.icon}",
                    concept=concept,
                    base=concept,
                    name=colour,
                    keywords=(f"{colour} color", f"{colour} colour"),
                    group="",
                    subgroup="",
                    gender="",
                    colours=(),
                    split="tint",
                    weight=weight,
                    words=words_for_colour(colour),
                ),
            )


def tint(picture: Picture, colour: str) -> Picture:
    """The picture's silhouette, its holes filled, in `colour`, one of CSS's names, on white."""
    height, width, _ = picture.shape
    half = Image.fromarray(picture.min(-1)).resize((width // 2, height // 2))  # filling goes pixel by pixel
    framed = ImageOps.expand(half.point(lambda value: 255 if value >= PALE else 0), 1, fill=255)
    ImageDraw.floodfill(framed, (0, 0), 128)
    silhouette = ImageOps.crop(framed, 1).point(lambda value: 0 if value == 128 else 255)
    share = np.asarray(silhouette.resize((width, height), Image.Resampling.BILINEAR), np.float32)[..., None] / 255
    light = DARKEST + (1 - DARKEST) * picture.mean(-1, keepdims=True) / 255
    painted = np.array(ImageColor.getrgb(colour), np.float32) * light
    return np.rint(painted * share + 255 * (1 - share)).astype(np.uint8)
