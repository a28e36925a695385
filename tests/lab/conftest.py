"""A small world of made-up emoji: 110 jobs in two skin tones and 40 things, in three styles, each base a pattern."""

import numpy as np
import pytest

from lab import cli
from lab.emblem.dataset import EmblemData
from lab.emblem.items import Item, Words
from qkv.train import recipes

STYLES = ("noto", "flat", "3d")
LETTERS = "bcdfghklmnprst"


def make_item(row: int, style: str, base: str, tone: str) -> Item:
    number = int(base.strip("jobthing"))
    name = f"{LETTERS[number % 14]}o{LETTERS[number // 14]}a {base.rstrip('0123456789')}"
    words = {code: Words(f"{name} {code}", (), "") for code in ("de", "fr", "zh-hant")}
    split = "train"
    if number % 11 == 0:
        split = "test"
    elif style == "flat" and number % 5 == 1:
        split = "heldout_cell"
    elif tone and number % 7 == 2:
        split = "heldout_tone"
    return Item(
        row=row,
        style=style,
        icon=f"{base}-{tone}",
        concept=base,
        base=base,
        name=name,
        keywords=("kind",),
        group="people & body" if tone else "objects",
        subgroup="person-role" if tone else "",
        tone=tone,
        gender="",
        colours=("red",),
        split=split,  # type: ignore[arg-type]
        weight=0.2 if tone else 1.0,
        words=words,
    )


@pytest.fixture(scope="session")
def world() -> EmblemData:
    keys = [(style, f"job{n}", tone) for style in STYLES for n in range(110) for tone in ("", "dark")]
    keys += [(style, f"thing{n}", "") for style in STYLES for n in range(40)]
    items = [make_item(row, *key) for row, key in enumerate(keys)]
    patterns = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)
    bases = sorted({item.base for item in items})
    rng = np.random.default_rng(1)
    small = np.stack([patterns[bases.index(item.base)] for item in items])
    noise = rng.integers(-20, 20, small.shape)
    pictures = np.clip(small + noise, 0, 255).astype(np.uint8).repeat(32, axis=1).repeat(32, axis=2)
    return EmblemData(pictures=pictures, items=items)


@pytest.fixture(autouse=True)
def lab_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's tasks beside the package's, for one test."""
    monkeypatch.setattr(recipes, "TASKS", recipes.TASKS | cli.TASKS)
