"""Captions: always say what is drawn and in which style, and stay short."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.emblem.captions import LONGEST, caption, languages, plain_caption, texts
from lab.emblem.dataset import table
from lab.emblem.items import Item, Words
from lab.emblem.raster import COLOURS
from qkv.errors import NotFoundError

STYLES = [icons.style for icons in table().sets]
DOG = Item(
    row=0,
    style="3d",
    icon="dog",
    concept="1F415",
    base="1F415",
    name="dog",
    keywords=("animal", "pet"),
    group="animals & nature",
    subgroup="animal-mammal",
    tone="",
    gender="",
    colours=("brown", "white"),
    split="train",
    weight=1.0,
    words={
        "de": Words("Hund", ("Haustier",), "Tiere & Natur"),
        "fr": Words("chien", ("animal",), "animaux et nature"),
        "zh-hant": Words("狗", ("寵物",), "動物與自然"),
        "fi": Words("koira", ("lemmikki",), "eläimet"),
    },
)
COOK = replace(
    DOG,
    concept="1F469-200D-1F373",
    name="woman cook",
    keywords=("chef", "kitchen"),
    tone="medium-dark",
    gender="woman",
    words={},
)

word = st.text("abcdefghij ", min_size=1, max_size=20).filter(str.strip)
items = st.builds(
    lambda **values: replace(DOG, **values),
    style=st.sampled_from(STYLES),
    name=word,
    keywords=st.lists(word, max_size=20).map(tuple),
    group=st.sampled_from(["", "animals & nature", "symbols", "people & body"]),
    subgroup=st.sampled_from(["", "animal-mammal", "person-role", "unheard-of"]),
    tone=st.sampled_from(["", "light", "dark"]),
    gender=st.sampled_from(["", "man"]),
    colours=st.lists(st.sampled_from(list(COLOURS)), max_size=3, unique=True).map(tuple),
)


@given(items, st.integers(0, 2**32))
def test_an_english_caption_is_short_and_names_style_tone_and_subject(item: Item, seed: int) -> None:
    text = caption(item, random.Random(seed))
    assert text.strip()
    assert len(text) <= LONGEST
    assert f"{item.style} style" in text
    assert not item.tone or f"{item.tone} skin tone" in text
    assert item.name in text or sum(keyword in text for keyword in set(item.keywords)) >= 1
    assert "style" not in caption(item, random.Random(seed), styled=False)
    assert caption(item, random.Random(seed)) == text


@given(items, st.integers(0, 2**32), st.sampled_from(languages()))
def test_every_language_gives_a_caption(item: Item, seed: int, language: str) -> None:
    text = caption(item, random.Random(seed), language=language)
    assert text.strip()
    assert len(text) <= LONGEST


def test_captions_vary_and_read_well() -> None:
    drawn = {caption(DOG, random.Random(seed)) for seed in range(400)}
    assert len(drawn) > 80
    assert {"dog, 3d style", "a dog, 3d style", "a dog, brown and white, 3d style"} <= drawn
    assert all(text.startswith(("a ", "brown", "dog", "animal", "pet", "3d style ")) for text in drawn)


def test_plain_captions() -> None:
    assert plain_caption(DOG) == "dog, 3d style"
    assert plain_caption(COOK) == "woman cook, medium-dark skin tone, 3d style"
    assert plain_caption(DOG, language="de") == "Hund, 3D-Stil"
    assert plain_caption(DOG, language="fr") == "chien, style 3d"
    assert plain_caption(DOG, language="zh-hant") == "狗，3D 風格"
    assert plain_caption(DOG, language="fi") == "koira"


def test_every_style_has_its_words() -> None:
    for style in STYLES:
        for language in ("en", "de", "fr", "zh-hant"):
            words = {caption(replace(DOG, style=style), random.Random(n), language=language) for n in range(9)}
            plain = {caption(replace(DOG, style="3d"), random.Random(n), language=language) for n in range(9)}
            assert style == "3d" or not words & plain


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(NotFoundError, match="unknown language 'zh-hans'; did you mean"):
        caption(DOG, random.Random(0), language="zh-hans")


def test_texts_gives_each_text_once_with_its_language() -> None:
    found = list(texts([DOG, DOG, COOK]))
    assert len(found) == len(set(found))
    assert {("en", "dog"), ("en", "chef"), ("de", "Haustier"), ("zh-hant", "動物與自然"), ("fi", "koira")} <= set(found)
    assert len(languages()) == 28
