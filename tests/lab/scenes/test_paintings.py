"""Ways of painting: each changes the picture, in its own way, and by its own chance only."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from lab.scenes.imagine import PAINTINGS as NAMES
from lab.scenes.paintings import PAINTINGS, paint


@pytest.fixture(scope="module")
def picture(scenes):
    plain = next(number for number in range(100) if not scenes.facts(number).painting)
    return Image.fromarray(scenes.picture(plain))


def test_all_that_are_imagined_are_there():
    assert set(NAMES) == set(PAINTINGS)


def test_none_is_none(picture):
    assert paint(picture, "", Random(1)) is picture


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_picture(picture, name):
    painted = np.asarray(paint(picture, name, Random(1))).astype(int)
    assert painted.shape == (128, 128, 3)
    assert np.abs(painted - np.asarray(picture)).mean() > 2
    assert (painted == np.asarray(paint(picture, name, Random(1)))).all()


@pytest.mark.parametrize("name", ["pencil", "sepia"])
def test_these_have_one_colour(picture, name):
    painted = np.asarray(paint(picture, name, Random(1))).astype(int)
    spread = (painted - painted.mean(-1, keepdims=True)).reshape(-1, 3).std(0)
    assert spread.max() < 12


def test_pixels_are_square(picture):
    painted = np.asarray(paint(picture, "pixel", Random(1)))
    blocks = painted.reshape(32, 4, 32, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) <= 24
