"""How a diffusion model was noised in training, and how its authors sample from it.

Every noisy latent is `alpha * clean + sigma * noise`. `NoiseConfig` holds what fixes alpha and sigma for
each training step (the betas: Ho et al. 2006.11239, section 4; cosine: Nichol & Dhariwal 2102.09672,
equation 17), what the network predicts (epsilon; v: Salimans & Ho 2202.00512; flow: Lipman et al.
2210.02747) and the published sampling defaults. `from_published` and `to_published` translate the
`scheduler_config.json` that diffusers writes. The numbers themselves are computed in `sample/schedules`.

Left out: learned variances, dynamic thresholding, hand-made betas, third-order solvers and PNDM's
Runge-Kutta start. A file that asks for one of them is refused, so that no picture is silently wrong.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from qkv.config import build
from qkv.errors import ConfigError, shorten, unknown

MAX_TRAIN_STEPS = 100_000

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
Prediction = Literal["epsilon", "v", "sample", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]
SamplerName = Literal[
    "ddpm",
    "ddim",
    "pndm",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "unipc",
    "lcm",
    "flow_euler",
]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The defaults are Stable Diffusion 1's. Raises ConfigError."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"  # linear in sqrt(beta)
    zero_terminal_snr: bool = False  # rescaled so that the last training step is pure noise (2305.08891)
    prediction: Prediction = "epsilon"
    sampler: SamplerName = "pndm"  # the authors' choice; a request may name another
    spacing: Spacing | None = None  # which training steps a short schedule visits; None: the sampler's habit
    steps_offset: int = 0  # added to every step of the leading spacing
    final_alpha_one: bool = False  # ddim and pndm end at clean (True) or at training step 0 (False)
    karras: bool = False  # the sigmas of 2206.00364, equation 5, for samplers that walk over sigmas
    clip: float | None = None  # every clean guess is clamped to [-clip, clip]; pixel models only
    shift: float = 1.0  # flow: above 1 spends more steps at high noise (2403.03206, equation 23)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, str(getattr(self, name)), [str(choice) for choice in known]))
        if not 2 <= self.train_steps <= MAX_TRAIN_STEPS:
            raise ConfigError(f"train_steps={self.train_steps} is out of range; it must be 2 to {MAX_TRAIN_STEPS}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < start <= end < 1")
        if not 0 <= self.steps_offset < self.train_steps:
            raise ConfigError(f"steps_offset={self.steps_offset} is not in 0..{self.train_steps - 1}")
        if not 0 < self.shift < math.inf:
            raise ConfigError(f"shift={self.shift} is out of range; it must be above 0 and finite")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip} is not above 0; leave it out for no clipping")
        if (self.prediction == "flow") != (self.sampler == "flow_euler"):
            raise ConfigError(
                f"sampler={self.sampler} does not fit prediction={self.prediction}; flow needs flow_euler"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            # x is nothing but the noise there: naming the noise says nothing about the picture.
            raise ConfigError("prediction=epsilon cannot start from zero_terminal_snr; such models predict v")


_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": typing.get_args(BetaSchedule),
    "prediction": typing.get_args(Prediction),
    "spacing": (None, *typing.get_args(Spacing)),
    "sampler": typing.get_args(SamplerName),
}


class _Published(NamedTuple):
    """One scheduler class of diffusers: our sampler, its own defaults, and what we honour in one value only."""

    sampler: SamplerName
    defaults: Mapping[str, Any]
    only: Mapping[str, Any]


_BASE = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
}
_SIGMAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_SOLVER = {**_SIGMAS, "use_flow_sigmas": False, "final_sigmas_type": "zero", "solver_order": 2, "thresholding": False}

_CLASSES = {
    "DDPMScheduler": _Published(
        "ddpm", {**_BASE, "clip_sample": True}, {"thresholding": False, "variance_type": "fixed_small"}
    ),
    "DDIMScheduler": _Published("ddim", {**_BASE, "clip_sample": True}, {"thresholding": False}),
    "PNDMScheduler": _Published(
        "pndm", {**_BASE, "set_alpha_to_one": False, "skip_prk_steps": False}, {"skip_prk_steps": True}
    ),
    "EulerDiscreteScheduler": _Published(
        "euler",
        _BASE,
        {
            **_SIGMAS,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    "EulerAncestralDiscreteScheduler": _Published("euler_ancestral", _BASE, {}),
    "HeunDiscreteScheduler": _Published(
        "heun", {**_BASE, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}, _SIGMAS
    ),
    "DPMSolverMultistepScheduler": _Published(
        "dpmpp_2m",
        _BASE,
        {
            **_SOLVER,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "use_lu_lambdas": False,
            "lambda_min_clipped": -float("inf"),
            "variance_type": None,
        },
    ),
    "UniPCMultistepScheduler": _Published(
        "unipc",
        _BASE,
        {
            **_SOLVER,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "disable_corrector": [],
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    "LCMScheduler": _Published(
        "lcm",
        {
            **_BASE,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
        },
        {"thresholding": False, "original_inference_steps": 50, "timestep_scaling": 10.0},
    ),
    "FlowMatchEulerDiscreteScheduler": _Published(
        "flow_euler",
        {"prediction_type": "flow_prediction"},
        {
            **_SIGMAS,
            "use_karras_sigmas": False,
            "use_dynamic_shifting": False,
            "shift_terminal": None,
            "invert_sigmas": False,
            "stochastic_sampling": False,
        },
    ),
}

_FIELDS = {  # ours: theirs, where one value is simply the other
    "train_steps": "num_train_timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "beta_schedule": "beta_schedule",
    "zero_terminal_snr": "rescale_betas_zero_snr",
    "prediction": "prediction_type",
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "final_alpha_one": "set_alpha_to_one",
    "karras": "use_karras_sigmas",
    "shift": "shift",
}
_FLOW_FIELDS = ("train_steps", "shift")
_WORDS = {"squaredcos_cap_v2": "cosine", "v_prediction": "v", "flow_prediction": "flow"}  # theirs: ours


def from_published(published: Mapping[str, Any]) -> NoiseConfig:
    """The configuration in a `scheduler_config.json` of diffusers.

    Keys that belong to another scheduler class are carried along in such files and mean nothing here; a key of
    this class with a value that we do not honour is a ConfigError.
    """
    name = str(published.get("_class_name", ""))
    if name not in _CLASSES:
        raise ConfigError(unknown("scheduler", name, _CLASSES))
    row = _CLASSES[name]
    given = {**row.defaults, **published}
    for key, only in {**row.only, "trained_betas": None}.items():
        if given.get(key, only) != only:
            raise ConfigError(f"{name}: {key}={shorten(str(given[key]))} is not supported, only {only}")
    values: dict[str, Any] = {"sampler": row.sampler}
    for ours, theirs in _FIELDS.items():
        if given.get(theirs) is not None:
            value = given[theirs]
            values[ours] = _WORDS.get(value, value) if isinstance(value, str) else value
    # A class without clip_sample among its defaults ignores it, and files carry it from class to class.
    if "clip_sample" in row.defaults and given["clip_sample"]:
        values["clip"] = given.get("clip_sample_range", 1.0)
    return build(NoiseConfig, values, name)


def to_published(config: NoiseConfig) -> dict[str, Any]:
    """`scheduler_config.json` for diffusers; `from_published` reads it back."""
    karras = config.sampler == "dpmpp_2m_karras"  # there it is the plain sampler and a switch
    sampler = "dpmpp_2m" if karras else config.sampler
    name, row = next((name, row) for name, row in _CLASSES.items() if row.sampler == sampler)
    words = {ours: theirs for theirs, ours in _WORDS.items()}
    published: dict[str, Any] = {"_class_name": name, **row.only}
    # JSON has no infinity, and the class's own default is the one value that we honour.
    published.pop("lambda_min_clipped", None)
    if config.prediction == "flow":
        return published | {_FIELDS[ours]: getattr(config, ours) for ours in _FLOW_FIELDS}
    for ours, theirs in _FIELDS.items():
        value = getattr(config, ours)
        if value is not None and ours != "shift":
            published[theirs] = words.get(value, value) if isinstance(value, str) else value
    published["use_karras_sigmas"] = config.karras or karras
    published["clip_sample"] = config.clip is not None
    if config.clip is not None:
        published["clip_sample_range"] = config.clip
    return published
