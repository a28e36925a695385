"""One picture of the emblem data set, as everything after the build sees it.

Place: between the data set and whoever reads it: captions, splits, training, evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "test", "heldout_cell", "heldout_tone", "judge_style", "tint"]


class Words(NamedTuple):
    """A concept in one language. `group` is Unicode's ("animals & nature"), "" for an icon that is no emoji."""

    name: str
    keywords: tuple[str, ...]
    group: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is known of one picture; `row` is its place in the pictures.

    A concept is an emoji without its skin tone, or `name:slug`; pictures of one `base` are variants of one
    another (tone, gender, clock, flag) and never candidates against each other.
    """

    row: int
    style: str  # the set's word: "3d", "flat", "noto" ...
    icon: str  # the name within its set
    concept: str
    base: str
    name: str
    keywords: tuple[str, ...]
    group: str  # in Unicode's words, "" if it is no emoji
    subgroup: str  # Unicode's key: "animal-mammal"
    tone: str  # "", "light", "medium-light", "medium", "medium-dark" or "dark"
    gender: str  # "", "woman" or "man"
    colours: tuple[str, ...]  # of the silhouette, largest first
    split: Split
    weight: float  # how often to draw it relative to others: toned pictures and flags are drawn less
    words: Mapping[str, Words] = field(default_factory=dict, repr=False, compare=False)  # the other languages
    tones: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # its tone in all languages
