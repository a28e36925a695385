"""Every sampler equals diffusers' after every step, with the same network, first noise and fresh noises.

The reference is built from our exported `scheduler_config.json`, so the export is proven with it. The Euler
family of diffusers keeps x / alpha; its latents are brought to our scale.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor

from qkv.models.noise import NoiseConfig
from qkv.sample import denoise, schedules
from qkv.sample.denoise import SAMPLERS, levels, sample
from qkv.sample.predict import predict
from qkv.weights.scheduler import from_published, to_published

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in the reference

STEPS = (1, 2, 5, 20)
SPACINGS = ("leading", "trailing", "linspace")
TOLERANCE = 1e-5
SHAPE = (2, 4, 8, 8)
OVER_SIGMAS = ("euler", "euler_ancestral", "heun")
JOINED = [name for name in SAMPLERS if name not in ("ddim", "pndm", "lcm", "flow_euler")]


def _network() -> Callable[[Tensor, float], Tensor]:
    """A small net of x and time, in float64, whose output is as large as noise."""
    draw = torch.Generator().manual_seed(5)
    mix, wave = (torch.randn(4, 4, generator=draw, dtype=torch.float64) / 2 for _ in range(2))

    def network(x: Tensor, time: float) -> Tensor:
        x = x.double()
        straight = torch.einsum("dc,bcyx->bdyx", mix, x)
        return 0.6 * straight + 0.5 * torch.sin(torch.einsum("dc,bcyx->bdyx", wave, x) + float(time) / 90)

    return network


NETWORK = _network()


def _noises(seed: int = 0) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=draw, dtype=torch.float64)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Makes a scheduler of diffusers draw the noises that our samplers are given."""

    def feed(scheduler: object) -> None:
        noises = _noises(1)
        module = importlib.import_module(type(scheduler).__module__)
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noises))

    return feed


def scheduler_of(config: NoiseConfig):
    published = to_published(config)
    return in_float64(getattr(diffusers, published["_class_name"]).from_config(published))


def in_float64(scheduler):
    """In float32, 1 - alphas_cumprod of the first training steps keeps four digits: too few to compare with."""
    if hasattr(scheduler, "betas") and not scheduler.config.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), dim=0)
        if not scheduler.config.get("set_alpha_to_one", True):
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def theirs(scheduler, steps: int, **options: object) -> list[Tensor]:
    """The latent after every call of diffusers' loop, at the scale alpha * clean + sigma * noise."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()  # in float32 the ancestral split of sigma 4096 cancels
    over_sigmas = isinstance(
        scheduler,
        diffusers.EulerDiscreteScheduler | diffusers.EulerAncestralDiscreteScheduler | diffusers.HeunDiscreteScheduler,
    )
    x = next(_noises())
    if not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        x = x * scheduler.init_noise_sigma
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # otherwise a first time that comes twice starts at its second place
    latents = []
    for call, time in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, time) if over_sigmas else x
        x = scheduler.step(NETWORK(scaled, float(time)), time, x, **options).prev_sample
        latents.append(x / (scheduler.sigmas[call + 1].double() ** 2 + 1) ** 0.5 if over_sigmas else x)
    return latents


def ours(config: NoiseConfig, steps: int, **options: float) -> list[Tensor]:
    noises, network = _noises(1), predict(NETWORK, config)
    walk = sample(network, next(_noises()), config, config.sampler, steps, noise=lambda: next(noises), **options)
    return [step.latent for step in walk]


def after_steps(sampler: str, latents: list[Tensor]) -> list[Tensor]:
    """Of the latents after every call, those that end a step."""
    if sampler == "heun":
        return [*latents[1:-1:2], latents[-1]]
    if sampler == "pndm" and len(latents) > 1:
        return latents[1:]
    return latents


def distance(mine: list[Tensor], reference: list[Tensor]) -> float:
    """The worst step: the greatest difference over the greatest value."""
    assert len(mine) == len(reference)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, reference))


def check(
    config: NoiseConfig, steps: int, fresh: Callable[[object], None], eta: float = 0.0, **options: object
) -> None:
    scheduler = scheduler_of(config)
    fresh(scheduler)
    expected = after_steps(config.sampler, theirs(scheduler, steps, **options))
    assert distance(ours(config, steps, eta=eta), expected) <= TOLERANCE
    if config.sampler not in ("heun", "pndm"):  # these list the time of every call
        times = torch.tensor([level.time for level in levels(config, config.sampler, steps)[:-1]])
        torch.testing.assert_close(times, scheduler.timesteps.float(), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", JOINED)
def test_sampler(sampler: str, spacing: str, steps: int, fresh) -> None:
    for prediction, offset in (("epsilon", 1), ("v", 0)):
        check(NoiseConfig(sampler=sampler, spacing=spacing, prediction=prediction, steps_offset=offset), steps, fresh)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
@pytest.mark.parametrize("end", [False, True])
def test_ddim_and_pndm(sampler: str, spacing: str, steps: int, end: bool, fresh) -> None:
    for prediction in ("epsilon", "v") if sampler == "ddim" else ("epsilon",):
        config = NoiseConfig(sampler=sampler, spacing=spacing, prediction=prediction, steps_offset=1)
        check(replace(config, final_alpha_one=end), steps, fresh)


@pytest.mark.parametrize("steps", STEPS)
def test_pndm_extrapolates_the_noise_of_a_v_network(steps: int) -> None:
    """As the paper does. diffusers extrapolates v itself, over levels at which v means different things."""
    config = NoiseConfig(sampler="pndm", steps_offset=1)
    bar = torch.from_numpy(schedules.alphas_bar(config))

    def v(x: Tensor, time: float) -> Tensor:  # the v of the network that predicts epsilon
        alpha, sigma = bar[int(time)].sqrt(), (1 - bar[int(time)]).sqrt()
        return (NETWORK(x, time) - sigma * x) / alpha

    walk = sample(
        predict(v, replace(config, prediction="v")), next(_noises()), config, "pndm", steps, noise=lambda: None
    )
    expected = after_steps("pndm", theirs(scheduler_of(config), steps))
    assert distance([step.latent for step in walk], expected) <= TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise(eta: float, steps: int, fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NoiseConfig(sampler="ddim", steps_offset=1)
    scheduler = scheduler_of(config)
    fresh(scheduler)
    assert distance(ours(config, steps, eta=eta), theirs(scheduler, steps, eta=eta)) <= TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc"])
def test_karras(sampler: str, steps: int, fresh) -> None:
    for spacing in SPACINGS:
        check(NoiseConfig(sampler=sampler, spacing=spacing, karras=True, steps_offset=1), steps, fresh)


ZERO_SNR = ["ddpm", "ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm"]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", ZERO_SNR)
def test_zero_terminal_snr(sampler: str, steps: int, fresh) -> None:
    config = NoiseConfig(sampler=sampler, prediction="v", zero_terminal_snr=True, spacing="trailing")
    if sampler in ("ddpm", "ddim", "lcm"):
        assert levels(config, sampler, steps)[0].alpha == 0
    check(config, steps, fresh)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm(steps: int, fresh) -> None:
    for prediction in ("epsilon", "v"):
        check(NoiseConfig(sampler="lcm", prediction=prediction), steps, fresh)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float, steps: int, fresh) -> None:
    check(NoiseConfig(sampler="flow_euler", prediction="flow", shift=shift), steps, fresh)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ddpm", "unipc"])  # Euler there casts 20000 to float32
@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
def test_other_betas(sampler: str, beta_schedule: str, fresh) -> None:
    check(NoiseConfig(sampler=sampler, beta_schedule=beta_schedule, prediction="v"), 5, fresh)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "lcm"])
def test_clip(sampler: str, fresh) -> None:
    """DDIM's noise follows the clipped guess, which diffusers calls use_clipped_model_output."""
    options = {"use_clipped_model_output": True} if sampler == "ddim" else {}
    check(NoiseConfig(sampler=sampler, clip=0.7, steps_offset=1), 5, fresh, **options)


@pytest.mark.parametrize("sampler", ["pndm", "euler", "euler_ancestral", "dpmpp_2m", "unipc"])
def test_the_others_never_clip(sampler: str, fresh) -> None:
    """Though a file hands the key on to them."""
    check(NoiseConfig(sampler=sampler, clip=0.7, steps_offset=1), 5, fresh)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 2), ("linspace", 20), ("trailing", 30), ("trailing", 7)])
def test_ddim_lands_where_the_next_step_begins(spacing: str, steps: int) -> None:
    """Where the spacing is uneven diffusers' DDIM does not; its first-order solver is the same walk, and does."""
    config = NoiseConfig(sampler="ddim", spacing=spacing, final_alpha_one=True)
    rows = levels(config, "ddim", steps)
    solver = scheduler_of(replace(config, sampler="dpmpp_2m"))
    solver.register_to_config(solver_order=1)
    solver.set_timesteps(timesteps=[int(row.time) for row in rows[:-1]])
    x = next(_noises())
    expected = []
    for time in solver.timesteps:
        x = solver.step(NETWORK(x, float(time)), time, x).prev_sample
        expected.append(x)
    assert distance(ours(config, steps), expected) <= TOLERANCE
    assert distance(ours(config, steps), theirs(scheduler_of(config), steps)) > 1e-3


WRONG = {  # sampler: something close to it that is not it
    "ddpm": denoise.ddim,
    "ddim": partial(denoise.ddim, eta=0.05),
    "pndm": denoise.ddim,
    "euler_ancestral": partial(denoise.ddim, eta=0.95),
    "heun": denoise.ddim,
    "dpmpp_2m": denoise.ddim,
    "unipc": denoise.dpmpp_2m,
    "lcm": partial(denoise.ddim, eta=1.0),
}


@pytest.mark.parametrize("sampler", WRONG)
def test_a_wrong_sampler_is_noticed(sampler: str, fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, sampler, SAMPLERS[sampler]._replace(run=WRONG[sampler]))
    with pytest.raises(AssertionError):
        check(NoiseConfig(sampler=sampler, steps_offset=1), 5, fresh)


@pytest.mark.parametrize(
    "wrong", [{"steps_offset": 0}, {"spacing": "linspace"}, {"beta_schedule": "linear"}, {"final_alpha_one": True}]
)
def test_a_wrong_schedule_is_noticed(wrong: dict[str, object]) -> None:
    config = NoiseConfig(sampler="pndm", steps_offset=1)
    expected = after_steps("pndm", theirs(scheduler_of(config), 5))
    assert distance(ours(config, 5), expected) <= TOLERANCE
    assert distance(ours(replace(config, **wrong), 5), expected) > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_network_is_called_as_often_as_theirs(sampler: str, steps: int) -> None:
    config = NoiseConfig(sampler=sampler, prediction="flow" if sampler == "flow_euler" else "v", spacing="trailing")
    scheduler = scheduler_of(config)
    scheduler.set_timesteps(steps)
    calls = []

    def counted(x: Tensor, time: float) -> Tensor:
        calls.append(time)
        return NETWORK(x, time)

    walk = sample(predict(counted, config), next(_noises()), config, sampler, steps, noise=lambda: next(_noises()))
    assert len(list(walk)) == steps
    assert len(calls) == len(scheduler.timesteps)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "cosine"])
def test_alphas(beta_schedule: str, prediction: str) -> None:
    for zero in (False, True) if prediction != "epsilon" else (False,):
        config = NoiseConfig(sampler="ddim", beta_schedule=beta_schedule, prediction=prediction, zero_terminal_snr=zero)
        mine = torch.from_numpy(schedules.alphas_bar(config)).sqrt()
        assert (mine - scheduler_of(config).alphas_cumprod.double().sqrt()).abs().max() < 1e-6
        assert all(a > b for a, b in pairwise(mine))


SD1 = {  # the scheduler_config.json of Stable Diffusion 1
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize(
    "published",
    [
        SD1,
        SD1 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        SD1 | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"},
        SD1 | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        SD1 | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
        SD1 | {"_class_name": "UniPCMultistepScheduler"},
        SD1 | {"_class_name": "LCMScheduler"},
        {"_class_name": "DDPMScheduler"},
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "HeunDiscreteScheduler"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    ],
    ids=lambda published: published["_class_name"],
)
def test_a_published_configuration_means_the_same(published: dict[str, object], fresh) -> None:
    reference = in_float64(getattr(diffusers, published["_class_name"]).from_config(published))
    fresh(reference)
    config = from_published(published)
    options = {"use_clipped_model_output": True} if config.sampler == "ddim" else {}
    expected = after_steps(config.sampler, theirs(reference, 5, **options))
    assert distance(ours(config, 5), expected) <= TOLERANCE
    assert from_published(to_published(config)) == config


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_export_and_the_classes_own_defaults_agree(sampler: str) -> None:
    """A class's defaults, written out by diffusers, read as an empty file of that class does."""
    name = type(
        scheduler_of(NoiseConfig(sampler=sampler, prediction="flow" if sampler == "flow_euler" else "v"))
    ).__name__
    needed = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    complete = dict(getattr(diffusers, name)(**needed).config)
    own = {"timestep_spacing", "set_alpha_to_one"}  # of which we keep "not given" apart
    complete = {key: value for key, value in complete.items() if key not in own}
    assert from_published({**complete, "_class_name": name}) == from_published({"_class_name": name, **needed})
