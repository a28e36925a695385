"""Schedules and the configuration they come from: properties for any number of steps, and the edges."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkv.errors import ConfigError, InputError
from qkv.models.noise import NoiseConfig, SamplerName, Spacing
from qkv.sample import schedules
from qkv.sample.denoise import SAMPLERS, levels
from qkv.sample.schedules import CLEAN, LEAST_ALPHA_BAR
from qkv.weights.scheduler import from_published, to_published

DIFFUSION = [name for name in SAMPLERS if name != "flow_euler"]

configs = st.builds(
    NoiseConfig,
    train_steps=st.integers(50, 1500),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "cosine"]),
    prediction=st.sampled_from(["v", "sample"]),
    zero_terminal_snr=st.booleans(),
    sampler=st.sampled_from(DIFFUSION),
    spacing=st.sampled_from([None, "leading", "trailing", "linspace"]),
    steps_offset=st.integers(0, 1),
    final_alpha_one=st.sampled_from([None, False, True]),
    karras=st.booleans(),
)


@given(configs, st.integers(1, 1500))
@settings(max_examples=300, deadline=None)
def test_a_schedule_falls_from_noise_to_clean(config: NoiseConfig, steps: int) -> None:
    assume(steps <= config.train_steps)
    assume(SAMPLERS[config.sampler].zero_terminal_snr or not config.zero_terminal_snr)
    try:
        rows = levels(config, config.sampler, steps)
    except InputError:  # only where the steps cannot be placed
        full = steps + 1 + config.steps_offset > config.train_steps
        assert full or (config.sampler == "lcm" and steps > 50)
        return
    assert len(rows) == steps + 1
    for row in rows:
        assert math.isclose(row.alpha**2 + row.sigma**2, 1, abs_tol=1e-12)
        assert 0 <= row.time <= config.train_steps - 1
    for here, there in pairwise(rows):
        # DDIM may stay at training step 0 where the model ends there
        stays = there is rows[-1] and here.time == 0 and there != CLEAN
        assert here.sigma > there.sigma or stays
        assert here.alpha < there.alpha or stays
        assert here.time >= there.time
    ends_clean = config.final_alpha_one if config.final_alpha_one is not None else config.sampler == "ddim"
    if config.sampler not in ("ddim", "pndm") or ends_clean:
        assert rows[-1] == CLEAN


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "dpmpp_2m", "unipc"])
def test_zero_terminal_snr_begins_with_noise_alone(sampler: str, steps: int) -> None:
    config = NoiseConfig(prediction="v", sampler=sampler, spacing="trailing", zero_terminal_snr=True)
    first = levels(config, sampler, steps)[0]
    assert first.time == 999
    if sampler in ("ddpm", "ddim"):
        assert first.alpha == 0
        assert first.sigma == 1
    else:
        assert math.isclose(first.alpha, LEAST_ALPHA_BAR**0.5)


def test_zero_terminal_snr_keeps_the_first_training_step() -> None:
    plain = schedules.alphas_bar(NoiseConfig())
    rescaled = schedules.alphas_bar(NoiseConfig(prediction="v", zero_terminal_snr=True))
    assert rescaled[-1] == 0
    assert math.isclose(rescaled[0], plain[0])
    assert np.all(rescaled[1:] < plain[1:])


def test_spacings_of_the_paper() -> None:
    """2305.08891, table 2: 10 of 1000 steps, counted there from 1."""
    times = {
        spacing: [int(row.time) for row in schedules.grid(NoiseConfig(spacing=spacing), 10)[:-1]]
        for spacing in get_args(Spacing)
    }
    assert times["leading"] == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert times["trailing"] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times["linspace"] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


@given(st.integers(1, 50), st.floats(0.5, 10), st.integers(10, 2000))
@settings(deadline=None)
def test_flow_is_a_straight_line(steps: int, shift: float, train_steps: int) -> None:
    config = NoiseConfig(prediction="flow", sampler="flow_euler", shift=shift, train_steps=train_steps)
    rows = schedules.flow(config, steps)
    assert rows[0] == (train_steps, 0, 1)
    assert rows[-1] == CLEAN
    assert len(rows) == steps + 1
    assert all(math.isclose(row.alpha + row.sigma, 1) for row in rows)
    assert all(math.isclose(row.time, train_steps * row.sigma) for row in rows)
    if train_steps > shift * steps:  # else the least sigma of training is reached early
        assert all(here.sigma > there.sigma for here, there in pairwise(rows))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "ddim"])
def test_steps_that_cannot_be_placed_are_refused(sampler: str) -> None:
    config = NoiseConfig(sampler=sampler, spacing="leading", steps_offset=1)
    with pytest.raises(InputError, match="leading spacing cannot put"):
        levels(config, sampler, 1000)
    assert len(levels(replace(config, spacing="trailing"), sampler, 1000)) == 1001


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**6])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_number_of_steps_that_cannot_be_is_refused(sampler: str, steps: int) -> None:
    config = NoiseConfig(sampler=sampler, prediction="flow" if sampler == "flow_euler" else "v")
    with pytest.raises(InputError, match=f"steps={steps} is not in 1..1000"):
        levels(config, sampler, steps)


def test_the_configuration_knows_every_sampler() -> None:
    assert set(get_args(SamplerName)) == set(SAMPLERS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_steps": 0}, "train_steps=0"),
        ({"train_steps": 10**9}, "train_steps=1000000000"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start=0.5"),
        ({"beta_end": 1.0}, "beta_end=1.0"),
        ({"beta_start": float("nan")}, "beta_start=nan"),
        ({"beta_schedule": "linaer"}, "did you mean linear"),
        ({"prediction": "noise"}, "unknown prediction"),
        ({"sampler": "eular"}, "did you mean euler"),
        ({"spacing": "even"}, "unknown spacing"),
        ({"steps_offset": 1000}, "steps_offset=1000"),
        ({"shift": 0.0}, "shift=0.0"),
        ({"shift": float("inf")}, "shift=inf"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"prediction": "flow"}, "flow needs flow_euler"),
        ({"sampler": "flow_euler"}, "flow needs flow_euler"),
        ({"zero_terminal_snr": True}, "prediction=epsilon cannot start from zero_terminal_snr"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseConfig(**wrong)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({}, "unknown scheduler ''"),
        ({"_class_name": "EulerDiscreteSchedular"}, "did you mean EulerDiscreteScheduler"),
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler: skip_prk_steps=False is not supported; it must be True"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding=True"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "exp"}, "beta_schedule"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}, "train_steps"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "predict v"),
    ],
)
def test_a_published_file_that_cannot_be_honoured_is_refused(published: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_published(published)


def test_keys_of_other_classes_mean_nothing() -> None:
    carried = {"skip_prk_steps": False, "solver_order": 3, "clip_sample": True, "new_in_a_later_version": 1}
    plain = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}
    assert from_published(plain | carried) == from_published(plain)


@given(configs)
@settings(deadline=None)
def test_export_then_import_is_the_same(config: NoiseConfig) -> None:
    published = to_published(config)
    again = from_published(json.loads(json.dumps(published, allow_nan=False)))
    assert to_published(again) == published
    if config.sampler == "dpmpp_2m_karras":  # published as the plain solver and a switch
        config = replace(config, sampler="dpmpp_2m", karras=True)
    assert again == config
