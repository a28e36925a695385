"""diffusers' `scheduler_config.json` <-> ours: one table for each scheduler class, and how pipelines repair old files.

What a file says of the training must be honoured, else the file is refused. What it says of its own sampler need not
be: a request may name another, and then a class or a setting that we do not have does no harm.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qkv.config import build
from qkv.errors import ConfigError, unknown
from qkv.models.noise import NoiseConfig, SamplerName
from qkv.published import Fixed, Keys, Published, only

FILE = "scheduler/scheduler_config.json"
FLOW = "FlowMatchEulerDiscreteScheduler"

_TRAINING = {
    **{"num_train_timesteps": "train_steps", "beta_start": "beta_start", "beta_end": "beta_end"},
    **{
        "beta_schedule": "beta_schedule",
        "prediction_type": "prediction",
        "rescale_betas_zero_snr": "zero_terminal_snr",
    },
}
_TRAINED = only(None, "trained_betas")
# A pipeline hands these on to whichever scheduler follows, so a file may hold them for the next one.
_SAMPLING = {
    **{"timestep_spacing": "spacing", "steps_offset": "steps_offset", "set_alpha_to_one": "final_alpha_one"},
    **{"use_karras_sigmas": "karras"},
}
_CLIP = ("clip_sample", "clip_sample_range")
_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
_SMALL_BETAS = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}

# What thresholding would need, and a flow's shifts that only other pipelines ask for.
_UNUSED = frozenset(
    {
        *("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type", "base_shift", "max_shift"),
        *("base_image_seq_len", "max_image_seq_len", "lower_order_final", "euler_at_final", "shift"),
    }
)
_PLAIN_SIGMAS = only(False, "use_exponential_sigmas", "use_beta_sigmas")
_BOUNDS = only(None, "sigma_min", "sigma_max")
_SOLVER = {
    **_PLAIN_SIGMAS,
    **only(False, "use_flow_sigmas", "use_dynamic_shifting", "thresholding"),
    **{"final_sigmas_type": ("zero",), "solver_order": (2,)},
}


@dataclass(frozen=True, kw_only=True)
class _Class:
    """One scheduler class of diffusers: our sampler, its keys, and whether it clips."""

    sampler: SamplerName
    keys: Keys
    clips: bool = False


def _class(sampler: SamplerName, fixed: Fixed, absent: Published = _BETAS, *, clips: bool = False) -> _Class:
    fixed = {**_TRAINED, **fixed}
    keys = Keys(fields=_TRAINING | _SAMPLING, read=_CLIP, fixed=fixed, harmless=_UNUSED, absent=absent)
    return _Class(sampler=sampler, keys=keys, clips=clips)


_CLIPPED = _BETAS | {"clip_sample": True}
_UNCLAMPED = only(False, "thresholding")
CLASSES = {
    "DDPMScheduler": _class("ddpm", _UNCLAMPED | {"variance_type": ("fixed_small",)}, _CLIPPED, clips=True),
    "DDIMScheduler": _class("ddim", _UNCLAMPED, _CLIPPED, clips=True),
    "PNDMScheduler": _class("pndm", only(True, "skip_prk_steps"), _BETAS | {"skip_prk_steps": False}),
    "EulerDiscreteScheduler": _class(
        "euler",
        {**_PLAIN_SIGMAS, **_BOUNDS, "final_sigmas_type": ("zero",)}
        | {"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
    ),
    "EulerAncestralDiscreteScheduler": _class("euler_ancestral", {}),
    "HeunDiscreteScheduler": _class("heun", _PLAIN_SIGMAS, _SMALL_BETAS, clips=True),
    "DPMSolverMultistepScheduler": _class(
        "dpmpp_2m",
        {**_SOLVER, "algorithm_type": ("dpmsolver++",), "solver_type": ("midpoint",), "use_lu_lambdas": (False,)}
        | {"lambda_min_clipped": (-math.inf,), "variance_type": (None,)},
    ),
    "UniPCMultistepScheduler": _class(
        "unipc",
        {**_SOLVER, **_BOUNDS, **only(None, "solver_p", "shift_terminal"), "solver_type": ("bh2",)}
        | {"predict_x0": (True,), "lower_order_final": (True,), "disable_corrector": ([],)},
    ),
    "LCMScheduler": _class(
        "lcm",
        _UNCLAMPED | {"original_inference_steps": (50,), "timestep_scaling": (10.0,)},
        _SMALL_BETAS | {"beta_schedule": "scaled_linear"},
        clips=True,
    ),
}
_FLOW = _Class(
    sampler="flow_euler",
    keys=Keys(
        fields={"num_train_timesteps": "train_steps", "shift": "shift"},
        fixed=_PLAIN_SIGMAS
        | only(False, "use_karras_sigmas", "use_dynamic_shifting", "invert_sigmas", "stochastic_sampling")
        | only(None, "shift_terminal"),
        harmless=_UNUSED,
    ),
)
CLASSES[FLOW] = _FLOW

# A file carries keys from class to class: what another one knows, also one that we do not have, means nothing here.
_CARRIED = frozenset(name for row in CLASSES.values() for name in row.keys.names) | {"noise_sampler_seed"}
_WORDS = {"squaredcos_cap_v2": "cosine", "v_prediction": "v", "flow_prediction": "flow"}  # theirs: ours


def unknown_keys(published: Published) -> list[str]:
    """A warning that names the keys of a scheduler's file which no class knows."""
    return Keys(harmless=_CARRIED).unknown(published, FILE)


def from_published(published: Published) -> NoiseConfig:
    """The configuration in a file of diffusers, to be sampled as it says. ConfigError names what we cannot honour."""
    name = str(published.get("_class_name", ""))
    if name not in CLASSES:
        raise ConfigError(unknown("scheduler", name, CLASSES))
    row = CLASSES[name]
    try:
        values = row.keys.ours(published)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    if published.get("set_alpha_to_one", True) is None:
        values["final_alpha_one"] = False  # a switch
    given = row.keys.given(published)
    if row.clips and given.get("clip_sample"):
        values["clip"] = given.get("clip_sample_range", 1.0)
    return build(NoiseConfig, {"sampler": row.sampler, "prediction": "flow"} | _in_words(values, _WORDS), name)


def of_pipeline(published: Published) -> NoiseConfig:
    """The configuration in a pipeline's file that `repaired` went over.

    Where its sampler, or a setting of it, is none that we have, `sampler` is None and `refused` says why: a request
    must name one. ConfigError, where what it was trained with is nothing that we know.
    """
    try:
        return from_published(published)
    except ConfigError as error:
        row = CLASSES.get(str(published.get("_class_name", "")))
        if row is _FLOW or (row is None and not _BETAS.keys() <= published.keys()):
            raise  # what such a class was trained with is not ours to guess
        absent = {} if row is None else {key: row.keys.absent[key] for key in _BETAS}
        training = Keys(fields=_TRAINING | _SAMPLING, fixed=_TRAINED, absent=absent)
        values = _in_words(training.ours(published), _WORDS)
        return build(NoiseConfig, values | {"sampler": None, "refused": str(error)}, "scheduler")


def repaired(published: Published) -> dict[str, Any]:
    """What diffusers' StableDiffusionPipeline makes of a scheduler's file: it takes every offset but 1, and all
    clipping, for an oversight of an old file."""
    if published.get("_class_name") == FLOW:
        return dict(published)
    return {**published, "steps_offset": 1, "clip_sample": False}


def to_published(config: NoiseConfig) -> dict[str, Any]:
    """A file for diffusers; `from_published` reads it back. The sampler must be known."""
    karras = config.sampler == "dpmpp_2m_karras"  # there it is the plain sampler and a switch
    sampler = "dpmpp_2m" if karras else config.sampler
    name, row = next((name, row) for name, row in CLASSES.items() if row.sampler == sampler)
    published = {"_class_name": name} | row.keys.published(dataclasses.replace(config, karras=config.karras or karras))
    for key in ("timestep_spacing", "set_alpha_to_one"):  # which each class fills in by its own habit
        if published.get(key, "") is None:
            del published[key]
    # JSON has no infinity, and the class's own default is the one value that we honour.
    published.pop("lambda_min_clipped", None)
    if name != FLOW:
        published["clip_sample"] = config.clip is not None
    if config.clip is not None:
        published["clip_sample_range"] = config.clip
    return _in_words(published, {ours: theirs for theirs, ours in _WORDS.items()})


def _in_words(values: Published, words: Mapping[str, str]) -> dict[str, Any]:
    return {key: words.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
