"""The judge's questions: fixed, fair, and never two variants of one thing."""

import random
from dataclasses import replace

import pytest

from lab.emblem.candidates import Candidates
from lab.emblem.captions import plain_caption
from lab.emblem.items import Item
from qkv.errors import InputError

BLANK = Item(
    row=0, style="noto", icon="", concept="", base="", name="", keywords=(), group="", subgroup="", tone="",
    gender="", colours=("red",), split="train", weight=1.0,
)  # fmt: skip


def world() -> list[Item]:
    """120 jobs of three genders and two tones, 60 things, in two styles; the last thing has the first one's name."""
    jobs = [
        replace(BLANK, style=style, base=f"job{n}", concept=f"job{n}{gender}", name=f"{gender} job {n}", tone=tone)
        for style in ("noto", "flat")
        for n in range(120)
        for gender in ("man", "woman", "person")
        for tone in ("", "dark")
    ]
    things = [
        replace(BLANK, style=style, base=f"thing{n}", concept=f"thing{n}", name=f"thing {n % 59}")
        for style in ("noto", "flat")
        for n in range(60)
    ]
    return [replace(item, row=row, icon=str(row)) for row, item in enumerate(jobs + things)]


ITEMS = world()
BASE = {plain_caption(replace(item, style="noto", tone=tone)): item.base for item in ITEMS for tone in ("", "dark")}


@pytest.mark.parametrize("item", [ITEMS[0], ITEMS[1], ITEMS[700], ITEMS[-1]])
def test_a_question_is_fair(item: Item) -> None:
    question = Candidates(ITEMS).of(item)
    assert len(question) == len(set(question)) == 100
    assert question[0] == plain_caption(item)
    bases = [BASE[plain] for plain in (caption.replace("flat style", "noto style") for caption in question)]
    assert len(set(bases)) == 100  # never two variants of one base
    ending = f"{item.tone} skin tone, {item.style} style" if item.tone else f"{item.style} style"
    assert all(caption.endswith(ending) for caption in question)  # neither style nor tone tells
    if not item.tone:
        assert not any("skin tone" in caption for caption in question)


def test_questions_do_not_depend_on_order_or_repeats() -> None:
    shuffled = random.Random(0).sample(ITEMS, len(ITEMS)) + ITEMS[:50]
    assert all(Candidates(ITEMS).of(item) == Candidates(shuffled).of(item) for item in ITEMS[::150])


def test_questions_are_these_and_no_others() -> None:
    # Changing them makes all published figures incomparable.
    assert Candidates(ITEMS).of(ITEMS[0])[:4] == [
        "man job 0, noto style",
        "man job 55, noto style",
        "thing 1, noto style",
        "thing 17, noto style",
    ]


def test_different_concepts_are_asked_differently() -> None:
    candidates = Candidates(ITEMS)
    assert candidates.of(ITEMS[0])[1:] != candidates.of(ITEMS[12])[1:]


def test_too_few_concepts_are_refused() -> None:
    with pytest.raises(InputError, match="whole data set"):
        Candidates(ITEMS[:300]).of(ITEMS[0])
