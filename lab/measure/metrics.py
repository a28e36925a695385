"""The numbers of an evaluation, each with its noise; torch and numpy only.

Kernel distance: 1801.01401, section 4.1, equation 4. Frechet distance: 1706.08500, section 2 (Dowson and Landau 1982).
Both compare features of the judge here, not of Inception, so their values compare with each other only.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Pictures = npt.NDArray[np.uint8]  # (N, Y, X, 3)

NEAREST = 8  # training pictures that a sample is compared with, pixel by pixel
SHRINK = 4  # a copy is still a copy when moved by a pixel: pictures are compared at a quarter of their side


class Score(NamedTuple):
    """A number and its standard error."""

    value: float
    noise: float


def plain(score: Score) -> dict[str, float]:
    """For JSON."""
    return {"value": round(score.value, 6), "noise": round(score.noise, 6)}


def percent(score: Mapping[str, float]) -> str:
    """A plain share for people, with its standard error."""
    return f"{100 * score['value']:.1f} ± {100 * score['noise']:.1f} %"


def share(hits: Tensor) -> Score:
    """The share of true ones, with the binomial standard error; hits (N,)."""
    value = float(hits.double().mean())
    return Score(value, (value * (1 - value) / len(hits)) ** 0.5)


def top_k(ranks: Tensor, k: int) -> Score:
    """The share of ranks (N,), 0 the best, among the first `k`."""
    return share(ranks < k)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of x (N, D) and y (M, D) under (x . y / D + 1)^3; near 0, and
    below it by chance, where both come from one distribution."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / a.shape[1] + 1) ** 3

    def mean_of_pairs(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return float(mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean())


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m - n|^2 + tr(S + T - 2 (S T)^1/2) of the Gaussians fitted to x (N, D) and y (M, D).

    It falls with the number of samples: compare values from equally many only.
    """
    x, y = x.double(), y.double()
    S, T = x.mT.cov(), y.mT.cov()
    root = _root(S)
    cross = _root(root @ T @ root)  # its trace is that of (S T)^1/2, and it is symmetric
    return float((x.mean(0) - y.mean(0)).square().sum() + (S + T - 2 * cross).trace())


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def jackknife(statistic: Callable[..., float], x: Tensor, *rest: Tensor, groups: int = 10) -> Score:
    """statistic(x, *rest), with the standard error over x's rows by leaving out one of `groups` of them at a time."""
    groups = min(groups, len(x))
    places = torch.arange(len(x)) % groups
    left_out = torch.tensor([statistic(x[places != group], *rest) for group in range(groups)], dtype=torch.float64)
    return Score(statistic(x, *rest), float(((groups - 1) * left_out.var(correction=0)) ** 0.5))


def copy_distance(
    features: Tensor, pictures: Pictures, known: Tensor, archive: Pictures, rows: npt.NDArray[np.int64]
) -> Tensor:
    """How far each picture (N) is from the nearest known one: 0 is the same, 1 shares no ink with it.

    Known are the pictures archive[rows], with features `known` (M, C). Of the 8 with the nearest features (cosine)
    the least ink distance counts. (N,)
    """
    near = (F.normalize(features, dim=-1) @ F.normalize(known, dim=-1).mT).topk(min(NEAREST, len(known))).indices
    return torch.stack([ink_distance(one[None], archive[rows[few]]).min() for one, few in zip(pictures, near.numpy())])


def ink_distance(a: Pictures, b: Pictures) -> Tensor:
    """|a - b| / (|a|^2 + |b|^2)^1/2 of what is not white in pictures a and b, at a quarter of their side; (N,).

    Measured against the ink, since two small icons on much white would always be near each other.
    """
    x, y = _ink(a), _ink(b)
    both = x.square().sum(-1) + y.square().sum(-1)
    return ((x - y).square().sum(-1) / both.clamp(min=1e-12)).sqrt()


def _ink(pictures: Pictures) -> Tensor:
    white = 1 - torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(white, SHRINK).flatten(1)


def yellow_share(pictures: Pictures) -> Tensor:
    """The share of pixels that people call yellow: hue 35 to 70 degrees, saturation 0.4 and value 0.5 or more; (N,)."""
    rgb = torch.from_numpy(np.ascontiguousarray(pictures)).double() / 255  # (N, Y, X, 3)
    r, g, b = rgb.unbind(-1)
    high, low = rgb.amax(-1), rgb.amin(-1)
    chroma = high - low
    # Yellow hues lie between red (0) and green (120): red is highest up to 60 degrees, then green.
    hue = torch.where(r >= g, 60 * (g - b) / chroma, 120 + 60 * (b - r) / chroma)
    yellow = (low == b) & (hue >= 35) & (hue <= 70) & (chroma >= 0.4 * high) & (high >= 0.5) & (chroma > 0)
    return yellow.double().mean((-2, -1))
