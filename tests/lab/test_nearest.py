"""The nearest caption: the same as dense vectors would find, in any script."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.measure.nearest import Nearest, grams

CAPTIONS = ["dog, 3d style", "cat, 3d style", "hot dog, flat style", "red apple, flat style", "green apple, 3d style"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dogs, 3d style", "dog, 3d style"),
        ("a RED apple", "red apple, flat style"),
        ("pineapple, 3d style", "green apple, 3d style"),
        ("hot-dog", "hot dog, flat style"),
    ],
)
def test_finds_what_a_person_would(text: str, found: str) -> None:
    assert CAPTIONS[Nearest(CAPTIONS).find(text)] == found


def test_works_without_spaces() -> None:
    captions = ["紅蘋果，3D 風格", "狗，3D 風格", "貓頭鷹，扁平風格"]
    assert [Nearest(captions).find(text) for text in ("蘋果", "小狗", "貓")] == [0, 1, 2]


def test_equal_captions_give_the_first_and_strange_ones_too() -> None:
    assert Nearest(["cat", "dog", "dog"]).find("dog") == 1
    assert Nearest(CAPTIONS).find("") == 0
    assert Nearest(["cat", "dog"]).find("狗") == 0


texts = st.lists(
    st.text("abc ,", min_size=1, max_size=12).filter(lambda text: text.strip(" ,")), min_size=1, max_size=8
)


@given(texts, st.text("abcd ", max_size=10))
def test_equals_dense_cosines(captions: list[str], text: str) -> None:
    names = sorted({gram for caption in captions for gram in grams(caption)})
    counts = np.array([[grams(caption)[name] for name in names] for caption in captions], float)
    rarity = 1 + np.log(len(captions) / (counts > 0).sum(0))
    rows = counts * rarity / np.linalg.norm(counts * rarity, axis=1, keepdims=True)
    query = np.array([grams(text)[name] for name in names]) * rarity
    cosine = rows @ query
    assert cosine[Nearest(captions).find(text)] == pytest.approx(
        cosine.max(), abs=1e-6 * (1 + math.dist(query, 0 * query))
    )


@given(texts)
def test_every_caption_finds_itself(captions: list[str]) -> None:
    index = Nearest(captions)
    assert all(grams(captions[index.find(text)]).keys() == grams(text).keys() for text in captions)
