"""The metrics against formulas written down another way, and against what must not change them."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lab.measure.metrics import (
    copy_distance,
    frechet_distance,
    ink_distance,
    jackknife,
    kernel_distance,
    share,
    top_k,
    yellow_share,
)


def gaussian(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_top_k_counts_and_its_noise_is_binomial() -> None:
    ranks = torch.tensor([0, 0, 1, 4, 5, 99, 0, 2])
    assert top_k(ranks, 1).value == 3 / 8
    assert top_k(ranks, 5).value == 6 / 8
    assert top_k(ranks, 100) == (1.0, 0.0)
    assert share(torch.arange(400) < 100).noise == pytest.approx((0.25 * 0.75 / 400) ** 0.5)


def test_the_noise_is_what_repeating_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    repeats = torch.rand(4000, 50, generator=generator) < 0.3
    values = torch.tensor([share(row).value for row in repeats])
    assert share(torch.arange(50) < 15).noise == pytest.approx(float(values.std()), rel=0.1)


def test_kernel_distance_equals_the_sums_of_the_definition() -> None:
    x, y = gaussian(7, 5, 0).numpy(), gaussian(9, 5, 1, mean=0.5).numpy()

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.dot(a, b) / 5 + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    yy = sum(k(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    xy = sum(k(a, b) for a in x for b in y) / (7 * 9)
    assert kernel_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(xx + yy - 2 * xy)


def test_kernel_distance_is_unbiased() -> None:
    values = torch.tensor([kernel_distance(gaussian(20, 4, 2 * i), gaussian(20, 4, 2 * i + 1)) for i in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20
    assert (values < 0).any()  # as an unbiased estimate of 0 must be


def test_frechet_distance_of_known_gaussians() -> None:
    x, y = gaussian(300, 6, 0), gaussian(200, 6, 1, mean=1.0, std=2.0)
    S, T = np.cov(x.numpy().T), np.cov(y.numpy().T)
    cross = np.sqrt(np.linalg.eigvals(S @ T).astype(complex)).real.sum()  # tr (S T)^1/2, without any root of S
    means = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    assert frechet_distance(x, y) == pytest.approx(means + np.trace(S) + np.trace(T) - 2 * cross)
    assert frechet_distance(x, x + 3) == pytest.approx(6 * 9)
    centred = x - x.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(centred.var(0).sum()))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_samples_than_features() -> None:
    x, y = gaussian(10, 40, 0), gaussian(12, 40, 1)
    assert np.isfinite(frechet_distance(x, y))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_distances_do_not_depend_on_the_order_and_grow(distance) -> None:  # type: ignore[no-untyped-def]
    x, y = gaussian(60, 5, 0), gaussian(50, 5, 1)
    shuffled = x[torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    assert distance(x, y) == pytest.approx(distance(shuffled, y))
    assert distance(x, y) == pytest.approx(distance(y, x))
    assert distance(x, y) < distance(x, y + 0.7) < distance(x, y + 1.4)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = gaussian(50, 1, 0)
    score = jackknife(lambda rows: float(rows.mean()), x, groups=50)
    assert score.value == pytest.approx(float(x.mean()))
    assert score.noise == pytest.approx(float(x.std() / 50**0.5))


def blot(x: int, y: int, side: int = 24, colour: tuple[int, int, int] = (200, 30, 30)) -> np.ndarray:
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[y : y + side, x : x + side] = colour
    return picture


def test_ink_distance_sees_ink_and_not_paper() -> None:
    small, moved, elsewhere = blot(50, 50), blot(51, 50), blot(90, 90)
    white = np.full((1, 128, 128, 3), 255, np.uint8)
    assert ink_distance(small[None], small[None]).item() == 0
    assert ink_distance(small[None], elsewhere[None]).item() == pytest.approx(1)
    assert 0 < ink_distance(small[None], moved[None]).item() < 0.2
    assert ink_distance(small[None], white).item() == pytest.approx(1)
    assert ink_distance(white, white).item() == 0


def test_a_copy_must_be_near_in_features_and_in_pixels() -> None:
    known = np.stack([blot(8 * i, 8 * i) for i in range(12)])
    features = torch.eye(12)
    archive, rows = np.concatenate([known[:1], known]), np.arange(1, 13)
    found = copy_distance(
        features[[3, 3, 11]], np.stack([blot(24, 24), blot(96, 0), blot(0, 0)]), features, archive, rows
    )
    assert found[0] == 0
    assert found[1] > 0.9  # near in features alone
    # A picture whose features point elsewhere is not compared with its twin: only the 8 nearest are.
    away = torch.ones(1, 12)
    away[0, 0] = -1
    assert copy_distance(away, blot(0, 0)[None], features, archive, rows)[0] > 0.3


rgb = st.tuples(*[st.integers(0, 255)] * 3)


@given(rgb)
def test_yellow_is_a_hue(colour: tuple[int, int, int]) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    margin = min(abs(360 * hue - 35), abs(360 * hue - 70), 100 * abs(saturation - 0.4), 100 * abs(value - 0.5))
    expected = 35 <= 360 * hue <= 70 and saturation >= 0.4 and value >= 0.5
    if margin > 1e-6:  # on the very edge the last bit decides
        assert yellow_share(np.full((1, 2, 2, 3), colour, np.uint8)).item() == float(expected)


def test_yellow_share_counts_pixels() -> None:
    picture = blot(0, 0, side=64, colour=(255, 204, 34))
    assert yellow_share(picture[None]).item() == pytest.approx(0.25)
    assert yellow_share(np.stack([picture, blot(0, 0), blot(0, 0, colour=(0, 0, 0))])).tolist() == [0.25, 0, 0]
