"""What a picture tower sees: the size, the cut, and that odd shapes cost nothing."""

import time

import numpy as np
import pytest
from PIL import Image

from qkv.errors import ConfigError
from qkv.models.preprocess import Preprocess


def gradient(width: int, height: int) -> Image.Image:
    across = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, across], -1))


@pytest.mark.parametrize("most", [1, 10**6])
def test_the_cut_is_that_of_the_whole_picture(most, monkeypatch):
    """Also where the middle is computed alone: from the same neighbours."""
    monkeypatch.setattr("qkv.models.preprocess.MOST", most)
    image = gradient(300, 111)
    small = image.resize((32 * 300 // 111, 32), Image.Resampling.BICUBIC)
    left = (small.width - 32) // 2
    expected = np.asarray(small.crop((left, 0, left + 32, 32)), int)
    assert abs(np.asarray(Preprocess(resize=32, crop=(32, 32)).cut(image), int) - expected).max() <= 1


def test_values():
    seen = Preprocess(resize=8, crop=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))(
        Image.new("RGB", (9, 9), (255, 0, 51))
    )
    assert seen.dtype == np.float32
    assert seen.shape == (3, 8, 8)
    np.testing.assert_allclose(seen[:, 0, 0], [1, -2, -0.3], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 70_000), (70_000, 1), (3, 2), (2000, 1)])
def test_edge_sizes_give_the_same_shape_at_once(size):
    start = time.perf_counter()
    seen = Preprocess()(Image.new("RGB", size, "white"))
    assert seen.shape == (3, 224, 224)
    assert np.ptp(seen.reshape(3, -1), axis=1).max() < 1e-6  # white all over
    assert time.perf_counter() - start < 2


def test_where_the_picture_ends_it_is_black():
    cut = np.asarray(Preprocess(resize=4, crop=(8, 6), resample="nearest").cut(Image.new("RGB", (5, 4), "white")))
    assert cut.shape == (8, 6, 3)
    assert [int(row.max()) for row in cut] == [0, 0, 255, 255, 255, 255, 0, 0]
    assert [int(column.max()) for column in cut.transpose(1, 0, 2)] == [0, 255, 255, 255, 255, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": 0}, "resize=0 is out of range"),
        ({"crop": (224, 10**9)}, "a side has 1 to 4096"),
        ({"crop": None}, "would keep a shape of their own"),
        ({"std": (1.0, 0.0, 1.0)}, "holds 0"),
    ],
)
def test_what_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Preprocess(**values)
