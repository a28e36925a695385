"""The questions that a judge is asked: one true caption among those of 99 other concepts.

Place: `python -m lab eval emblem`, and the judge's own validation. A question depends on SEED and the names in the
data set alone. All its captions share style and skin tone with the true one, so that the concept decides and neither
gives the answer away; no two captions are variants of one base (tone, gender, clock, flag).
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from lab.emblem.captions import plain_caption
from lab.emblem.items import Item
from qkv.errors import InputError

SEED = 20210105
COUNT = 100


class Candidates:
    """Questions over the concepts of `items`, whatever their order and however often each is drawn."""

    def __init__(self, items: Sequence[Item]) -> None:
        concepts = {item.concept: item for item in sorted(items, key=lambda item: (item.style, item.icon))}
        self._bases: dict[str, list[Item]] = {}
        for _, item in sorted(concepts.items()):
            self._bases.setdefault(item.base, []).append(item)
        self._toned = {item.base for item in items if item.tone}

    def of(self, item: Item, count: int = COUNT) -> list[str]:
        """The true plain English caption, then `count` - 1 others. InputError if there are not as many bases."""
        rng = random.Random("\0".join((str(SEED), item.concept, item.style, item.tone)))
        bases = sorted(self._toned if item.tone else self._bases)
        captions = {plain_caption(item): None}
        for base in rng.sample(bases, len(bases)):
            if base == item.base:
                continue
            if len(captions) == count:
                break
            other = rng.choice(self._bases[base])
            captions[plain_caption(replace(other, style=item.style, tone=item.tone))] = None  # equal names are one
        if len(captions) < count:
            raise InputError(f"{len(captions)} concepts are too few for a question of {count}; use the whole data set")
        return list(captions)
