"""What a pipeline's files say, a key at a time at another value than the default: diffusers draws our picture from the
same folder, or the key is refused by name. Old files are repaired as its pipeline repairs them."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

import qkv
from qkv.errors import CheckpointError, ConfigError
from qkv.weights import clip, scheduler, unet, vae
from qkv.weights import diffusers as ours

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own

PROMPT, SEED = "a dog in a suit", 11
GIVEN: dict[str, Any] = {"steps": 5, "guidance": 5.0}


# Every key that the installed version knows is in a table, so that a new release tells us.


def parameters(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}


@pytest.mark.parametrize("name", scheduler.CLASSES)
def test_schedulers_keys(name: str) -> None:
    known = parameters(getattr(diffusers, name))
    assert known
    assert known <= scheduler.CLASSES[name].keys.names
    assert scheduler.unknown_keys(dict.fromkeys(known, 1)) == []


def test_what_other_schedulers_leave_in_a_file_is_known() -> None:
    """A pipeline hands every key on from one to the next."""
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    own = {"sigma_data", "sigma_schedule", "rho"}  # of EDM, whose models are none of these
    for member in KarrasDiffusionSchedulers:
        known = parameters(getattr(diffusers, member.name)) - own
        assert scheduler.unknown_keys(dict.fromkeys(known, 1)) == [], member.name


@pytest.mark.parametrize(
    ("keys", "cls"),
    [
        (unet.UNET_KEYS, diffusers.UNet2DConditionModel),
        (vae.VAE_KEYS, diffusers.AutoencoderKL),
        (ours.INDEX_KEYS, StableDiffusionPipeline),
    ],
    ids=["unet", "vae", "index"],
)
def test_models_keys(keys, cls) -> None:
    assert len(parameters(cls)) > 5
    assert parameters(cls) <= keys.names


@pytest.mark.parametrize(
    ("keys", "cls"),
    [(clip.TEXT_KEYS, CLIPTextConfig), (clip.VISION_KEYS, CLIPVisionConfig), (clip.BOTH_KEYS, CLIPConfig)],
    ids=["text", "vision", "both"],
)
def test_clips_keys(keys, cls) -> None:
    assert {field.name for field in dataclasses.fields(cls)} <= keys.names
    assert keys.unknown(cls().to_dict(), "config.json") == []


# Pictures.


def edit(file: Path, change: dict[str, object]) -> None:
    """Sets keys of a JSON file; "absent" takes one out."""
    values = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def pipeline_of(folder: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline) -> np.ndarray:
    """Its first noise and its fresh ones come from one generator, as ours do."""
    options = {"num_inference_steps": GIVEN["steps"], "guidance_scale": GIVEN["guidance"]}
    picture = pipeline(PROMPT, generator=torch.Generator().manual_seed(SEED), **options).images[0]
    return np.asarray(picture).astype(int)


def drawn(folder: Path, **options: object) -> np.ndarray:
    picture = qkv.draw(PROMPT, seed=SEED, model=folder, dtype="float32", **GIVEN | options)[0]
    assert picture.warnings == ()
    return np.asarray(picture.image).astype(int)


def agree(mine: np.ndarray, reference: np.ndarray) -> None:
    assert mine.shape == reference.shape
    assert np.abs(mine - reference).max() <= 2
    assert reference.std() > 20  # not a flat picture, which would be easy to equal


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
OLD = BETAS | {"trained_betas": None, "prediction_type": "epsilon"}  # all that the first files said

SCHEDULERS: dict[str, dict[str, object]] = {
    "ddim, nothing said": {"_class_name": "DDIMScheduler"},
    "ddim, offset 0": {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": False},
    "ddim, clip": {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 0.5},
    "ddim, null": {"_class_name": "DDIMScheduler", "clip_sample": None, "set_alpha_to_one": None},
    "ddim, not to one": {"_class_name": "DDIMScheduler", "set_alpha_to_one": False},
    "ddim, trailing": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    "ddim, v": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "ddim, sample": {"_class_name": "DDIMScheduler", "prediction_type": "sample"},
    "ddim, cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
    "ddim, other betas": {"_class_name": "DDIMScheduler", "beta_start": 0.001, "beta_end": 0.02},
    "ddim, 500 steps": {"_class_name": "DDIMScheduler", "num_train_timesteps": 500},
    "ddpm, nothing said": {"_class_name": "DDPMScheduler"},
    "pndm, nothing said": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "pndm, offset 0": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 0},
    "pndm, to one": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True},
    "euler, clip": {"_class_name": "EulerDiscreteScheduler", "clip_sample": True, "timestep_spacing": "leading"},
    "euler, karras": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    "euler a, clip": {"_class_name": "EulerAncestralDiscreteScheduler", "clip_sample": True},
    "euler a, karras": {"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True},
    "heun, clip": {"_class_name": "HeunDiscreteScheduler", "clip_sample": True, "timestep_spacing": "leading"},
    "dpm++, leading": {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "leading"},
    "dpm++, final": {"_class_name": "DPMSolverMultistepScheduler", "lower_order_final": False, "euler_at_final": True},
    "unipc, leading": {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "leading"},
    "lcm, clip": {"_class_name": "LCMScheduler", "clip_sample": True, "steps_offset": 0},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedulers_file(name: str, folder: Path) -> None:
    published = OLD | SCHEDULERS[name]
    (folder / scheduler.FILE).write_text(json.dumps(published))
    edit(folder / "model_index.json", {"scheduler": ["diffusers", published["_class_name"]]})
    agree(drawn(folder), theirs(pipeline_of(folder)))


def test_a_file_of_nulls(folder: Path) -> None:
    """What a class has no default for, or calculates with, diffusers cannot read as null either."""
    nulls = dict.fromkeys(("clip_sample", "steps_offset", "trained_betas", "thresholding", "rescale_betas_zero_snr"))
    (folder / scheduler.FILE).write_text(json.dumps(OLD | nulls | {"_class_name": "DDIMScheduler"}))
    agree(drawn(folder), theirs(pipeline_of(folder)))


def test_the_index_names_the_scheduler(folder: Path) -> None:
    (folder / scheduler.FILE).write_text(json.dumps(OLD | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    edit(folder / "model_index.json", {"scheduler": ["diffusers", "EulerDiscreteScheduler"]})
    agree(drawn(folder), theirs(pipeline_of(folder)))


REPAIRED = {"steps_offset": 1, "clip_sample": False}

NAMED: dict[str, dict[str, object]] = {
    "DEISMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {"noise_sampler_seed": None},
    "KDPM2DiscreteScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "PNDMScheduler": {"skip_prk_steps": False},
    "DDIMScheduler": {"thresholding": True},
    "EulerDiscreteScheduler": {"use_exponential_sigmas": True},
}
SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@pytest.mark.parametrize("name", NAMED)
def test_where_we_lack_the_scheduler_another_may_be_named(name: str, folder: Path) -> None:
    published = OLD | {"_class_name": name} | NAMED[name]
    (folder / scheduler.FILE).write_text(json.dumps(published))
    edit(folder / "model_index.json", {"scheduler": ["diffusers", name]})
    with pytest.raises(ConfigError, match=rf"{name}.*; name a sampler"):
        drawn(folder)
    pipeline = without_its_scheduler(folder)
    for sampler in ("ddim", "dpmpp_2m"):
        pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(BETAS | REPAIRED)
        agree(drawn(folder, sampler=sampler), theirs(pipeline))


def without_its_scheduler(folder: Path):
    """The reference's pipeline, for a folder whose scheduler may need another library."""
    shutil.copytree(folder, folder.with_name("other"))
    (folder.with_name("other") / scheduler.FILE).write_text(json.dumps(BETAS | {"_class_name": "DDIMScheduler"}))
    edit(folder.with_name("other") / ours.INDEX, {"scheduler": ["diffusers", "DDIMScheduler"]})
    return pipeline_of(folder.with_name("other"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_named_sampler_from_an_old_file(sampler: str, folder: Path) -> None:
    """The next scheduler is made of the one before, as `from_config` does it: with its own habits where nothing is
    said, and the clipping that a pipeline forbids."""
    (folder / scheduler.FILE).write_text(json.dumps(OLD | {"_class_name": "DDIMScheduler"}))
    pipeline = pipeline_of(folder)
    said = {key: pipeline.scheduler.config[key] for key in OLD}
    more = {"skip_prk_steps": True} if sampler == "pndm" else {}
    pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(said | REPAIRED | more)
    agree(drawn(folder, sampler=sampler), theirs(pipeline))


def test_training_that_we_do_not_know_is_refused_whatever_the_sampler(folder: Path) -> None:
    for change, message in (
        ({"trained_betas": [0.1] * 1000}, "trained_betas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"_class_name": "EDMEulerScheduler", "beta_schedule": "absent"}, "unknown scheduler 'EDMEulerScheduler'"),
    ):
        (folder / scheduler.FILE).write_text(json.dumps(OLD | {"_class_name": "DDIMScheduler"}))
        edit(folder / scheduler.FILE, change)
        with pytest.raises(ConfigError, match=message):
            drawn(folder, sampler="euler")


@pytest.mark.parametrize("version", ["0.6.0", "0.8.1.dev0", "0.9.0", "0.42.1", "absent"])
def test_the_size_of_an_old_unet(version: str, folder: Path) -> None:
    edit(folder / unet.FILE, {"_diffusers_version": version})
    reference = pipeline_of(folder)
    size = reference.unet.config.sample_size * reference.vae_scale_factor
    assert qkv.load(folder, dtype="float32").size == size == (256 if version[:3] in ("0.6", "0.8") else 32)


UNET = {
    "nulls": dict.fromkeys(("upcast_attention", "dual_cross_attention", "center_input_sample", "resnet_skip_time_act")),
    "upcast": {"upcast_attention": True},
    "dropout": {"dropout": 0.5},
    "eps": {"norm_eps": 1e-2},
    "groups": {"norm_num_groups": 4},
    "heads": {"attention_head_dim": 4},
}
VAE = {
    "force_upcast": {"force_upcast": True},
    "scaling": {"scaling_factor": 0.5},
    "groups": {"norm_num_groups": 2},
    "null": {"shift_factor": None, "latents_mean": None},
}
TEXT = {
    "activation": {"hidden_act": "gelu"},
    "eps": {"layer_norm_eps": 1e-2},
    "heads": {"num_attention_heads": 4},
    "dropout": {"attention_dropout": 0.5, "torch_dtype": "float32", "max_length": 20, "is_decoder": True},
}
HONOURED = [
    (file, *row) for file, rows in ((unet.FILE, UNET), (vae.FILE, VAE), (ours.TEXT, TEXT)) for row in rows.items()
]


@pytest.mark.parametrize(
    ("file", "name", "change"), HONOURED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_networks_file(file: str, name: str, change: dict[str, object], folder: Path) -> None:
    plain = drawn(folder)
    edit(folder / file, change)
    mine = drawn(folder)
    agree(mine, theirs(pipeline_of(folder)))
    quiet = name in ("nulls", "null", "upcast", "dropout", "force_upcast")
    assert np.array_equal(mine, plain) == quiet


REFUSED = [
    (unet.FILE, {"center_input_sample": True}),
    (unet.FILE, {"flip_sin_to_cos": False}),
    (unet.FILE, {"flip_sin_to_cos": None}),
    (unet.FILE, {"class_embed_type": "timestep"}),
    (unet.FILE, {"time_cond_proj_dim": 256}),
    (unet.FILE, {"conv_in_kernel": 1}),
    (vae.FILE, {"latents_mean": [0.1] * 4}),
    (vae.FILE, {"shift_factor": 0.1}),
    (vae.FILE, {"out_channels": 4}),
    (ours.TEXT, {"use_attention_mask": True}),
    (ours.INDEX, {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}),
    (ours.INDEX, {"vae": ["diffusers", "ConsistencyDecoderVAE"]}),
    ("tokenizer/tokenizer_config.json", {"padding_side": "left"}),
]


@pytest.mark.parametrize(("file", "change"), REFUSED, ids=str)
def test_what_is_not_computed_is_refused_by_name(file: str, change: dict[str, object], folder: Path) -> None:
    edit(folder / file, change)
    with pytest.raises((ConfigError, CheckpointError), match=next(iter(change))):
        drawn(folder)


@pytest.mark.parametrize("file", [*ours.TABLES, scheduler.FILE, "tokenizer/tokenizer_config.json"])
def test_an_unknown_key_is_a_warning_of_the_picture(file: str, folder: Path) -> None:
    edit(folder / file, {"guidance_style": 3})
    picture = qkv.draw(PROMPT, model=folder, **GIVEN)[0]
    (warning,) = picture.warnings
    assert warning.startswith(f"unknown-keys: {file} has guidance_style;")


def test_a_safety_checker_that_is_not_run_is_said(folder: Path) -> None:
    edit(folder / ours.INDEX, {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    (warning,) = qkv.draw(PROMPT, model=folder, **GIVEN)[0].warnings
    assert warning.startswith("safety-checker:")


# Export.


def test_an_export_says_what_the_import_said(folder: Path, tmp_path: Path) -> None:
    said = {
        unet.FILE: {"upcast_attention": True, "dropout": 0.1, "new_in_a_release": [1, {"a": None}]},
        vae.FILE: {"force_upcast": True, "new_in_a_release": 2},
        ours.TEXT: {"attention_dropout": 0.1, "new_in_a_release": 3, "torch_dtype": "float16"},
        scheduler.FILE: {"steps_offset": 1, "solver_order": 3, "new_in_a_release": 4},
        ours.INDEX: {"new_in_a_release": 5, "safety_checker": [None, None]},
        "tokenizer/tokenizer_config.json": {"new_in_a_release": 6, "do_lower_case": True, "model_max_length": 70},
    }
    for file, change in said.items():
        edit(folder / file, change)
    qkv.export(folder, tmp_path / "out", dtype="float16")
    for file in said:
        came, went = (json.loads((path / file).read_text()) for path in (folder, tmp_path / "out"))
        if file == ours.TEXT:
            assert (came.pop("torch_dtype"), went["dtype"]) == ("float16", "float32")  # see weights/clip.py
        assert went == came, file


def test_the_defaults_of_an_empty_unet() -> None:
    """What absent keys mean is what the class does without them."""
    complete = dict(diffusers.UNet2DConditionModel().config) | {"sample_size": 64}
    complete = json.loads(json.dumps({key: value for key, value in complete.items() if key[:1] != "_"}))
    assert unet.UNET.config(complete) == unet.UNET.config({})


def test_an_export_of_absent_keys(folder: Path, tmp_path: Path) -> None:
    for file, keys in ((unet.FILE, ("upcast_attention", "norm_eps")), (vae.FILE, ("force_upcast", "shift_factor"))):
        edit(folder / file, dict.fromkeys(keys, "absent"))
    qkv.export(folder, tmp_path / "out")
    for file in (unet.FILE, vae.FILE):
        assert json.loads((tmp_path / "out" / file).read_text()) == json.loads((folder / file).read_text())


def test_an_export_keeps_a_scheduler_that_we_lack(folder: Path, tmp_path: Path) -> None:
    (folder / scheduler.FILE).write_text(json.dumps(OLD | {"_class_name": "DEISMultistepScheduler", "solver_order": 3}))
    edit(folder / ours.INDEX, {"scheduler": ["diffusers", "DEISMultistepScheduler"]})
    qkv.export(folder, tmp_path / "out")
    again = pipeline_of(tmp_path / "out").scheduler
    assert (type(again).__name__, again.config.solver_order, again.config.steps_offset) == (
        "DEISMultistepScheduler",
        3,
        1,
    )


def test_an_old_unet_is_exported_as_it_was_repaired(folder: Path, tmp_path: Path) -> None:
    edit(folder / unet.FILE, {"_diffusers_version": "0.6.0"})
    qkv.export(folder, tmp_path / "out")
    assert pipeline_of(tmp_path / "out").unet.config.sample_size == 64
