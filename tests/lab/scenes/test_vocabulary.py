"""The tables by hand: whole, within the sprite, and closed to what emblem holds out."""

from types import SimpleNamespace

import pytest

from lab.emblem import splits
from lab.emblem.items import Item
from lab.scenes import vocabulary
from lab.scenes.places import PLACES
from lab.scenes.vocabulary import LANGUAGES, sayable, tidy

DRAWINGS = ("noto", "fluent", "twemoji")


@pytest.mark.parametrize("table", ["mounts", "outfits"])
def test_anchors_lie_within_the_sprite(words, table):
    for key, row in getattr(words, table).items():
        drawn = [getattr(row, name) for name in DRAWINGS if getattr(row, name)]
        assert drawn, f"{key} is drawn by nobody"
        lengths = {1} if table == "mounts" else {3} if row.inside else {4}
        assert {len(numbers) for numbers in drawn} == lengths, key
        assert all(0 <= number <= 1 for numbers in drawn for number in numbers), key


def test_people_have_brows_above_their_eyes(words):
    assert len(words.people) >= 20
    for key, row in words.people.items():
        for numbers in (row.noto, row.fluent, row.twemoji):
            assert 0 < numbers[0] < numbers[1] < 1, key
            assert len(numbers) == 2 or numbers[1] < numbers[2] < 1


def test_every_entry_is_said_in_every_language(words):
    for rows in (words.mounts, words.outfits, words.worn):
        for key, row in rows.items():
            assert row.de, key
            assert row.fr, key
            assert row.zh, key
    assert all(bool(row.en) != bool(row.role) for row in words.outfits.values())


def test_the_tables_are_as_large_as_they_should_be(words):
    assert len(words.mounts) >= 55
    assert len(words.outfits) >= 24
    assert len(words.heads) >= 25
    assert len(words.worn) >= 13


def test_everything_that_acts_is_a_thing(words):
    """Layouts look up the size and the kind of whatever acts."""
    keys = {*words.mounts, *(key for row in words.roles.values() for key in row)}
    assert keys <= set(words.things)


def test_plants_of_places_are_single_code_points():
    assert all(key == key.upper() and "-" not in key for place in PLACES.values() for key in place.plants)


def test_a_head_takes_its_animals_name(words):
    names = {language: {"1F436": "dog face", "1F415": "dog"} for language in LANGUAGES}
    drawn = frozenset((style, key) for style in ("noto", "flat", "gradient") for key in ("1F436", "1F415"))
    small = vocabulary.of(names, {"1F436": "animal-mammal", "1F415": "animal-mammal"}, drawn)
    assert small.name("1F436", "en") == "dog"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("Polizist(in)", "Polizist"), ("Bauer/Bäuerin", "Bauer"), ("fermier (tous genres)", "fermier"), ("(x)", "(x)")],
)
def test_tidy(given, expected):
    assert tidy(given) == expected


def test_names_that_nobody_says():
    assert not sayable("Frau: rotes Haar")
    assert not sayable("女人：紅髮")
    assert not sayable(None)
    assert sayable("Pferd")


def test_what_emblem_holds_out_stays_unseen():
    """The rule of splits.assign, asked for one drawing at a time."""
    seed, bases = 20170612, [f"1F{number:03X}" for number in range(600, 900)]
    known = SimpleNamespace(concepts={key: SimpleNamespace(base=key) for key in bases})
    seen = {key for key in bases if vocabulary.may_see("noto", key, known, seed)}
    items = [item_of(key, style) for key in bases for style in ("noto", "flat", "gradient", "3d", "twemoji")]
    assigned = splits.assign(items, seed, set())
    for item in assigned:
        if item.style == "noto":
            assert (item.base in seen) == (item.split == "train"), item.base


def item_of(base, style):
    return Item(
        row=0, style=style, icon=base, concept=base, base=base, name=base, keywords=(), group="", subgroup="", tone="",
        gender="", colours=(), split="train", weight=1.0,
    )  # fmt: skip
