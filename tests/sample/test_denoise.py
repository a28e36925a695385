"""Samplers against what is known exactly: a perfect denoiser, Gaussian data; and the edges of the door."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.errors import InputError, NotFoundError
from qkv.models.noise import NoiseConfig
from qkv.sample.denoise import SAMPLERS, Step, levels, sample
from qkv.sample.predict import Network, guided, predict
from qkv.sample.schedules import Level

DETERMINISTIC = [name for name in SAMPLERS if name not in ("ddpm", "euler_ancestral", "lcm")]
CALLS = {"heun": lambda steps: 2 * steps - 1, "pndm": lambda steps: steps + (steps > 1)}  # others: one a step
SPREAD = 0.4  # standard deviation of the Gaussian data


def config_of(sampler: str, **fields: object) -> NoiseConfig:
    prediction = "flow" if sampler == "flow_euler" else "v"
    return NoiseConfig(**{"sampler": sampler, "prediction": prediction, "final_alpha_one": True, **fields})


def noises(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Callable[[], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=draw, dtype=dtype)


def walk(denoised, x: Tensor, config: NoiseConfig, steps: int, **options: float) -> list[Step]:
    return list(sample(denoised, x, config, config.sampler, steps, noise=noises(1, *x.shape), **options))


@given(
    sampler=st.sampled_from(list(SAMPLERS)),
    steps=st.integers(1, 50),
    spacing=st.sampled_from([None, "leading", "trailing", "linspace"]),
    karras=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_perfect_denoiser_is_followed(sampler: str, steps: int, spacing, karras: bool, seed: int) -> None:
    clean, x = noises(seed, 1, 2, 3, 3)(), noises(seed + 1, 1, 2, 3, 3)()
    steps = walk(lambda x, level: clean, x, config_of(sampler, spacing=spacing, karras=karras), steps)
    # LCM mixes in 1e-6 of x near time 0, where its last step may be
    torch.testing.assert_close(steps[-1].latent, clean, rtol=1e-9, atol=1e-2 if sampler == "lcm" else 1e-9)


def gaussian(x: Tensor, level: Level) -> Tensor:
    """E[clean | x] for normal data of deviation SPREAD."""
    return x * level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def spread_at(level: Level) -> float:
    """The deviation of that data, noised. The exact path of x is a scaling with it."""
    return math.sqrt(level.alpha**2 * SPREAD**2 + level.sigma**2)


def error(steps: list[Step], x: Tensor, first: Level) -> float:
    """Before the last step, which is of first order in every sampler."""
    before_last = steps[-2]
    return float((before_last.latent - x * spread_at(before_last.level) / spread_at(first)).abs().max())


def error_of(sampler: str, steps: int) -> float:
    config = config_of(sampler, spacing="trailing", karras=True)
    x = noises(3, 1, 4, 8, 8)()
    first = levels(config, sampler, steps)[0]
    start = x * first.sigma if SAMPLERS[sampler].scaled_start else x
    return error(walk(gaussian, x, config, steps), start, first)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_more_steps_come_closer_to_the_exact_solution(sampler: str) -> None:
    assert error_of(sampler, 100) < error_of(sampler, 20) / 2


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc"])
def test_twice_the_steps_of_the_second_order_make_a_quarter_of_the_error(sampler: str) -> None:
    assert error_of(sampler, 40) < error_of(sampler, 20) / 3.5


def test_pndm_is_of_higher_order_than_ddim() -> None:
    assert error_of("pndm", 20) < error_of("ddim", 20) / 10


@pytest.mark.parametrize("sampler", ["ddpm", "euler_ancestral"])
def test_fresh_noise_keeps_the_distribution(sampler: str) -> None:
    x = noises(3, 4, 4, 32, 32)()
    result = walk(gaussian, x, config_of(sampler, spacing="trailing"), 200)[-1].latent
    assert math.isclose(float(result.std()), SPREAD, rel_tol=0.05)
    still = walk(gaussian, x, config_of("ddim", spacing="trailing"), 200)[-1].latent
    correlation = torch.corrcoef(torch.stack([result.flatten(), still.flatten()]))[0, 1]
    assert abs(correlation) < 0.5  # the picture is another one, not the first noise's


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_reported_at_its_level(sampler: str) -> None:
    config = config_of(sampler, spacing="trailing")
    rows = levels(config, sampler, 6)
    steps = walk(gaussian, noises(0, 1, 2, 3, 3)(), config, 6)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.level for step in steps] == rows[1:]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_how_often_the_network_is_called(sampler: str, steps: int) -> None:
    calls = []

    def counted(x: Tensor, level: Level) -> Tensor:
        calls.append(level)
        return gaussian(x, level)

    walk(counted, noises(0, 1, 2, 3, 3)(), config_of(sampler), steps)
    assert len(calls) == CALLS.get(sampler, int)(steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_walks_at_once_do_not_disturb_each_other(sampler: str) -> None:
    config, starts = config_of(sampler), [noises(seed, 1, 2, 3, 3)() for seed in (4, 5)]
    alone = [walk(gaussian, x, config, 5)[-1].latent for x in starts]
    pair = [sample(gaussian, x, config, sampler, 5, noise=noises(1, *x.shape)) for x in starts]
    for steps in zip(*pair):
        at_once = [step.latent for step in steps]
    assert all(torch.equal(a, b) for a, b in zip(alone, at_once))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_latent_is_float32_and_the_first_noise_is_left_alone(sampler: str) -> None:
    x = noises(0, 1, 2, 3, 3, dtype=torch.bfloat16)()
    before = x.clone()
    config = config_of(sampler)
    network = predict(lambda x, time: (0.5 * x).to(torch.bfloat16), config)
    walk = sample(network, x, config, sampler, 3, noise=noises(1, *x.shape, dtype=torch.float32))
    assert all(step.latent.dtype == torch.float32 for step in walk)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_a_walk_may_start_in_the_middle(sampler: str) -> None:
    """As image to image does: noise a latent to one of the rows, and walk the rest."""
    config = config_of(sampler, spacing="trailing")
    rest = levels(config, sampler, 40)[20:]
    clean, epsilon = SPREAD * noises(0, 1, 2, 9, 9)(), noises(1, 1, 2, 9, 9)()
    x = rest[0].alpha * clean + rest[0].sigma * epsilon
    steps = list(SAMPLERS[sampler].run(gaussian, x, rest, noises(2, 1)))
    assert steps[-1].level == rest[-1]
    assert error(steps, x, rest[0]) < 0.1


def door(sampler: str, steps: int, config: NoiseConfig, **options: float) -> None:
    sample(gaussian, torch.zeros(1, 1, 2, 2), config, sampler, steps, noise=lambda: torch.zeros(1, 1, 2, 2), **options)


def test_what_cannot_be_is_refused_before_the_first_step() -> None:
    with pytest.raises(NotFoundError, match="did you mean euler"):
        door("eulr", 5, NoiseConfig())
    with pytest.raises(NotFoundError, match="known: ddim, ddpm, dpmpp_2m"):
        door("?", 5, NoiseConfig())
    with pytest.raises(InputError, match="steps=0 is not in"):
        door("ddim", 0, NoiseConfig())
    with pytest.raises(InputError, match="only ddim takes eta"):
        door("euler", 5, NoiseConfig(), eta=0.5)
    for eta in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match="eta="):
            door("ddim", 5, NoiseConfig(), eta=eta)
    with pytest.raises(InputError, match="predicts flow; use flow_euler"):
        door("ddim", 5, config_of("flow_euler"))
    with pytest.raises(InputError, match="flow_euler does not work with a model that predicts epsilon; use ddpm"):
        door("flow_euler", 5, NoiseConfig())
    with pytest.raises(InputError, match="predicts v; use ddpm, ddim, euler,"):  # no pndm, which could not start
        door("flow_euler", 5, NoiseConfig(prediction="v", zero_terminal_snr=True))
    with pytest.raises(InputError, match="pndm cannot start from zero terminal SNR"):
        door("pndm", 5, NoiseConfig(prediction="v", zero_terminal_snr=True))
    with pytest.raises(InputError, match="more than the 50"):
        door("lcm", 51, NoiseConfig())


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, math.pi / 2])
def test_the_clean_latent_is_found_from_any_prediction(prediction: str, angle: float) -> None:
    if prediction == "epsilon" and angle == math.pi / 2:
        pytest.skip("noise alone says nothing about the picture")
    share = math.sin(angle)
    level = Level(7.0, 1 - share, share) if prediction == "flow" else Level(7.0, math.cos(angle), share)
    clean, epsilon = noises(0, 2, 3, 4, 4)(), noises(1, 2, 3, 4, 4)()
    truth = {
        "epsilon": epsilon,
        "v": level.alpha * epsilon - level.sigma * clean,
        "sample": clean,
        "flow": epsilon - clean,
    }

    def network(x: Tensor, time: float) -> Tensor:
        assert time == 7.0
        return truth[prediction]

    sampler = "flow_euler" if prediction == "flow" else "ddim"
    x = level.alpha * clean + level.sigma * epsilon
    config = NoiseConfig(prediction=prediction, sampler=sampler)
    torch.testing.assert_close(predict(network, config)(x, level), clean)


def conditional(condition: Mapping[str, Tensor]) -> Network:
    scale, shift = condition["memory"].mean(1)[:, :, None, None], condition["bias"][:, None, None, None]
    return lambda x, time: torch.sin(time * x) * scale + shift


X = noises(0, 2, 3, 4, 4, dtype=torch.float32)()
GIVEN = {"memory": noises(1, 2, 5, 3, dtype=torch.float32)(), "bias": torch.tensor([0.5, -1.0])}
EMPTY = {"memory": noises(2, 2, 5, 3, dtype=torch.float32)(), "bias": torch.tensor([0.0, 2.0])}


def test_guidance_pushes_away_from_the_unconditional() -> None:
    given_, without = conditional(GIVEN)(X, 3.0), conditional(EMPTY)(X, 3.0)
    torch.testing.assert_close(guided(conditional, GIVEN, EMPTY, 7.5)(X, 3.0), 7.5 * given_ - 6.5 * without)


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (0.0, 2), (-2.0, 2), (7.5, 4)])
def test_the_condition_is_read_once(guidance: float, rows: int) -> None:
    """And at a guidance of one or less, the unconditional one not at all."""
    seen = []

    def network(condition: Mapping[str, Tensor]) -> Network:
        seen.append(condition)
        return conditional(condition)

    answer = guided(network, GIVEN, EMPTY, guidance)
    for time in (3.0, 5.0):
        found = answer(X, time)
        if guidance <= 1:
            assert torch.equal(found, conditional(GIVEN)(X, time))
    assert [len(condition["memory"]) for condition in seen] == [rows]


def test_guidance_in_half_precision_is_combined_in_float32() -> None:
    def half(condition: Mapping[str, Tensor]) -> Network:
        return lambda x, time: conditional(condition)(x, time).half()

    answer = guided(half, GIVEN, EMPTY, 7.5)(X, 3.0)
    given_, without = half(GIVEN)(X, 3.0).float(), half(EMPTY)(X, 3.0).float()
    assert answer.dtype == torch.float32
    assert torch.equal(answer, without + 7.5 * (given_ - without))


@pytest.mark.parametrize("guidance", [math.nan, math.inf])
def test_impossible_guidance_is_refused(guidance: float) -> None:
    with pytest.raises(InputError):
        guided(conditional, GIVEN, EMPTY, guidance)
