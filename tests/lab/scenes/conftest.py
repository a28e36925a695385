"""A small world of coloured shapes in place of the icon packages: every concept that the tables name, in all styles."""

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lab.scenes import vocabulary
from lab.scenes.dataset import Scenes
from lab.scenes.sprites import STYLES, Cut, Sprites
from lab.scenes.vocabulary import LANGUAGES

PEOPLE = ("1F9D1", "1F468", "1F469", "1F466", "1F467")
FLYING, SWIMMING = ("2708", "1F681"), ("1F419", "26F5")
VEHICLES = ("1F697", "1F6B2", "1F680")


def subgroup(concept: str) -> str:
    if concept in PEOPLE:
        return "person"
    if concept in FLYING:
        return "transport-air"
    if concept in VEHICLES:
        return "transport-ground"
    return "animal-marine" if concept in SWIMMING else "animal-mammal"


def sprite(style: str, concept: str) -> Image.Image:
    """An ellipse on a body, of colours and a shape of its own."""
    digest = hashlib.sha256(f"{style} {concept}".encode()).digest()
    width, height = 40 + digest[0] % 40, 40 + digest[1] % 40
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 5, height // 3, width * 4 // 5, height - 1), fill=(*digest[2:5], 255))
    draw.ellipse((0, 0, width - 1, height * 2 // 3), fill=(*digest[5:8], 255))
    return image


def named(concept: str, language: str) -> str:
    return f"{language}-thing-{concept.lower()}"


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    table, anchors = vocabulary._toml("things"), vocabulary._toml("anchors")
    concepts = {key for keys in table["roles"].values() for key in keys} | {*FLYING, *SWIMMING, *PEOPLE}
    concepts |= {key for rows in anchors.values() for key in rows} | {"1F455", "265F", "1F3F0", "1F332", "1F333"}
    return Sprites(
        images={style: {key: Cut.of(sprite(style, key)) for key in sorted(concepts)} for style in STYLES}, side=256
    )


@pytest.fixture(scope="session")
def words(sprites: Sprites) -> vocabulary.Vocabulary:
    concepts = sorted(sprites.common())
    names = {language: {key: named(key, language) for key in concepts} for language in LANGUAGES}
    drawn = frozenset((style, key) for style in STYLES for key in concepts)
    return vocabulary.of(names, {key: subgroup(key) for key in concepts}, drawn)


@pytest.fixture(scope="session")
def scenes(sprites: Sprites, words: vocabulary.Vocabulary) -> Scenes:
    return Scenes(sprites=sprites, vocabulary=words, seed=1)


@pytest.fixture(scope="session")
def many(scenes: Scenes):
    """Facts by event, enough of each."""
    found: dict[str, list] = {}
    for number in range(1500):
        scene = scenes.facts(number)
        found.setdefault(scene.event, []).append(scene)
    return found


def ink(picture: np.ndarray) -> float:
    return float(picture.std())
