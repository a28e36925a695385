"""Tints: a silhouette in the colour's own hue, holes and all, of pictures that training may see."""

import colorsys
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from lab.emblem.captions import plain_caption
from lab.emblem.items import Item, Split
from lab.emblem.raster import COLOURS
from lab.emblem.tinting import EACH, SHARE, tint, tints

ITEM = Item(
    row=0, style="flat", icon="ring", concept="ring", base="ring", name="ring", keywords=("jewel",), group="objects",
    subgroup="clothing", tone="", gender="woman", colours=("blue",), split="train", weight=0.5,
)  # fmt: skip


def ring() -> np.ndarray:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((24, 24, 104, 104), outline="navy", width=12)
    return np.asarray(image)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_has_the_colours_hue_and_no_holes(colour: str) -> None:
    made = tint(ring(), colour)
    assert made.dtype == np.uint8
    assert (made[:16] == 255).all()
    assert (made[64, 64] == ImageColor.getrgb(colour)).all()  # the hole was white, so it is no darker
    hue, saturation, value = colorsys.rgb_to_hsv(*made[64, 30] / 255)
    wanted = colorsys.rgb_to_hsv(*np.array(ImageColor.getrgb(colour)) / 255)
    assert (hue, saturation) == pytest.approx(wanted[:2], abs=0.02)
    assert value < wanted[2] or colour == "black"


def test_a_picture_without_ground_is_tinted_whole() -> None:
    assert (tint(np.zeros((128, 128, 3), np.uint8), "red")[:, :, 0] == 153).mean() > 0.9


def test_tints_are_of_training_pictures_and_named_by_their_colour() -> None:
    items = [replace(ITEM, row=row, split=get_args(Split)[row % 6], icon=str(row)) for row in range(6 * 250)]
    items += [replace(ITEM, row=row, tone="dark") for row in range(1500, 1600)]
    pictures = [ring()] * len(items)
    made = list(tints(pictures, items, seed=1))
    assert len(made) == EACH * len(COLOURS)
    assert {item.split for _, item in made} == {"tint"}
    train = [item for item in items if item.split == "train"]
    chosen = {item.icon.split("-")[-1] for _, item in made}
    assert chosen <= {item.icon for item in train if not item.tone}
    drawn = sum(item.weight for _, item in made)
    assert drawn / (drawn + sum(item.weight for item in train)) == pytest.approx(SHARE, rel=0.01)
    yellow = next(item for _, item in made if item.name == "yellow")
    assert [plain_caption(yellow, language=code) for code in ("en", "de", "zh-hant")] == ["yellow", "gelb", "黃色"]
    again = list(tints(pictures, items, seed=1))
    assert [item for _, item in again] == [item for _, item in made]
