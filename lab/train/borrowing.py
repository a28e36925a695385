"""Pictures for words that no picture has: texts of WordNet borrow those of the names nearest to them.

A tower that was trained on a few thousand names gives arbitrary states for any other word. So recipe 3 trains it on
other words too. The target of "otter" is the mean of the pictures of "beaver" and "badger": the names nearest to it by
the vectors of a sentence encoder, drawn in the same style. The tower learns to draw as if it copied the picture whose
caption is nearest.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lab.emblem import captions
from lab.emblem.items import Item
from lab.emblem.wordnet import wordnet_texts
from lab.train.latents import Latents
from lab.train.teacher import vectors
from qkv.errors import InputError

LENDERS = 3  # pictures that a text borrows
LISTED = 16  # nearest names, of which those with a picture in the style lend
NEAR = 0.5  # the cosine of the nearest name, at least
TEMPERATURE = 0.05  # of the softmax over cosines


class Loan(NamedTuple):
    """A text as a caption names it, and what it borrows: rows (L,) of pictures, with shares (L,) that add up to 1."""

    item: Item
    rows: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Borrowers:
    """N texts, the `names` nearest to each (N, M), nearest first, with their cosines (N, M), and of every name one item
    a style."""

    texts: list[str]
    names: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float32]
    lenders: list[dict[str, Item]]

    @classmethod
    def of(cls, items: Sequence[Item], teacher: Path, synsets: int, *, progress: bool = True) -> "Borrowers":
        """WordNet's texts that have a near one among the names of `items`. Raises NotFoundError, InputError."""
        by_name: dict[str, dict[str, Item]] = {}
        for item in items:
            if not item.tone:
                by_name.setdefault(item.name, {}).setdefault(item.style, item)
        texts, names = wordnet_texts(synsets), list(by_name)
        known = vectors(teacher, names, progress=progress).astype(np.float32)
        asking = vectors(teacher, texts, progress=progress)
        listed = min(LISTED, len(names))
        nearest, cosines = [], []
        for start in range(0, len(texts), 4096):  # all at once would take gigabytes
            alike = asking[start : start + 4096].astype(np.float32) @ known.T
            order = np.argsort(-alike, axis=1)[:, :listed]
            nearest.append(order)
            cosines.append(np.take_along_axis(alike, order, axis=1))
        found, cosine = np.concatenate(nearest), np.concatenate(cosines)
        near = np.flatnonzero(cosine[:, 0] >= NEAR)
        if not len(near):
            raise InputError(f"no text of synsets={synsets} is near the name of a picture; give more, or texts=0")
        return cls([texts[row] for row in near], found[near], cosine[near], list(by_name.values()))

    def pick(self, rng: random.Random) -> Loan:
        """One text, in a style that the name nearest to it was drawn in."""
        row = rng.randrange(len(self.texts))
        first = rng.choice(list(self.lenders[self.names[row, 0]].values()))
        lenders = [
            (self.lenders[name][first.style].row, cosine)
            for name, cosine in zip(self.names[row], self.cosines[row], strict=True)
            if first.style in self.lenders[name]
        ][:LENDERS]
        rows, cosines = zip(*lenders, strict=True)
        shares = np.exp((np.asarray(cosines, np.float32) - cosines[0]) / TEMPERATURE)
        item = replace(first, name=self.texts[row], words={})
        return Loan(item, np.asarray(rows, np.int64), shares / shares.sum())


@dataclass(frozen=True)
class Borrowed:
    """`count` texts a step, a share `unstyled` of them silent about the drawing's style, and what they borrow."""

    latents: Latents
    borrowers: Borrowers
    count: int
    unstyled: float
    seed: int

    def at(self, step: int) -> tuple[list[str], Tensor]:
        """The texts, and the means (count, C, y, x) of their lenders' latents."""
        rng = random.Random(f"{self.seed} {step} texts")
        loans = [self.borrowers.pick(rng) for _ in range(self.count)]
        texts = [captions.plain_caption(loan.item, styled=rng.random() >= self.unstyled) for loan in loans]
        lent = [np.tensordot(loan.shares, self.latents[loan.rows].astype(np.float32), 1) for loan in loans]
        return texts, torch.from_numpy(np.stack(lent))
