"""Batches as pure functions of the step, so that a resumed run sees what an unbroken one would.

`Draw` picks the rows of a step, by weight; the classes around it turn rows into what an objective reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.errors import InputError

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Draw:
    """`batch` of `rows`, each as likely as its weight; the same for the same (seed, step)."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    batch: int
    seed: int

    @classmethod
    def of(cls, rows: Sequence[int], weights: Sequence[float], batch: int, seed: int) -> "Draw":
        if not rows:
            raise InputError("the data set has no rows to train on; build it again")
        total = np.asarray(weights, np.float64)
        return cls(np.asarray(rows, np.int64), total / total.sum(), batch, seed)

    def generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, step))

    def at(self, step: int) -> npt.NDArray[np.int64]:
        return self.generator(step).choice(self.rows, self.batch, p=self.weights)


@dataclass(frozen=True)
class PictureBatches:
    """Pictures (B, 3, Y, X) in [-1, 1], half of them mirrored."""

    pictures: Pictures
    draw: Draw

    def __call__(self, step: int) -> Tensor:
        mirrored = self.draw.generator(step).spawn(1)[0].random(self.draw.batch) < 0.5
        batch = self.pictures[self.draw.at(step)]
        batch[mirrored] = batch[mirrored, :, ::-1]
        return to_signed(batch)


def to_signed(pictures: Pictures) -> Tensor:
    """uint8 (B, Y, X, 3) as float (B, 3, Y, X) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)
