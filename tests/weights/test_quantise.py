"""Our quantisers against the formats' own error, and their reader against what is made here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qkv.errors import ConfigError, InputError
from qkv.weights.quantise import blocks, quantise, requantise
from qkv.weights.quantised import KINDS, dequantise

DRAW = np.random.default_rng(0)
WEIGHTS = DRAW.standard_t(5, (64, 96)).astype(np.float32)  # tails, as trained weights have
MOST = {"Q8_0": 5e-5, "Q4_0": 1.2e-2, "Q4_1": 7.5e-3}  # of the squared weights
PLAIN = {"Q4_0": (-8, 7), "Q4_1": (0, 15)}


def lost(made: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(made - x).sum() / np.square(x).sum())


@pytest.mark.parametrize("kind", MOST)
def test_little_is_lost(kind):
    packed = quantise(WEIGHTS, kind)
    assert packed.shape == WEIGHTS.shape
    assert packed.data.nbytes == WEIGHTS.size // 32 * KINDS[kind].bytes
    assert lost(dequantise(packed), WEIGHTS) < MOST[kind]


def test_fitting_beats_rounding_to_the_range():
    x = WEIGHTS.reshape(-1, 32)
    low, scale = x.min(1, keepdims=True), np.ptp(x, axis=1, keepdims=True) / 15
    rounded = np.rint((x - low) / scale) * scale + low
    assert lost(dequantise(quantise(WEIGHTS, "Q4_1")).reshape(x.shape), x) < 0.93 * lost(rounded, x)


@settings(max_examples=50, deadline=None)
@given(x=arrays.arrays(np.float32, (2, 64), elements=st.floats(-6e4, 6e4, width=32)), kind=st.sampled_from(list(MOST)))
def test_no_weight_is_further_than_a_step_of_its_block(x, kind):
    made = dequantise(quantise(x, kind)).reshape(-1, 32)
    assert np.isfinite(made).all()
    x = x.reshape(-1, 32)
    size = np.abs(x).max(1, keepdims=True)
    assert (np.abs(made - x) <= size / (127 if kind == "Q8_0" else 4) + 1e-6).all()


@pytest.mark.parametrize("kind", MOST)
def test_what_blocks_hold_comes_back(kind):
    made = dequantise(quantise(WEIGHTS, kind))
    again = dequantise(quantise(made, kind))
    assert lost(again, made) < 1e-4
    assert not dequantise(quantise(np.zeros((1, 32), np.float32), kind)).any()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="Q4_0"):
        quantise(WEIGHTS, "Q4_2")
    for wrong in (WEIGHTS[:, :95], WEIGHTS[0], np.full((1, 32), np.nan, np.float32), np.full((1, 32), 1e6, np.float32)):
        with pytest.raises(InputError):
            quantise(wrong, "Q4_0")
    with pytest.raises(InputError, match="float64"):
        blocks(np.zeros(3))


def test_requantise_leaves_the_others_alone():
    weights = {
        "a": blocks(WEIGHTS),
        "b": quantise(WEIGHTS, "Q8_0"),
        "norm": blocks(WEIGHTS[0]),
        "odd": blocks(WEIGHTS[:, :5]),
    }
    kinds = [b.kind for b in requantise(weights, "Q4_1").values()]
    assert kinds == ["Q4_1", "Q4_1", "F32", "F32"]
