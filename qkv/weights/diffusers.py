"""Stable Diffusion's folders as diffusers publishes them: `model_index.json`, `unet/`, `vae/`, `text_encoder/`,
`tokenizer/`, `scheduler/`; read into our models and written from them.

The safety checker and its feature extractor are left out: they are models of their own beside the picture.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.unet import UNet
from qkv.published import BOOKKEEPING, Keys, Published
from qkv.text.tokenizer import Tokenizer
from qkv.weights import clip, scheduler, unet, vae
from qkv.weights.configs import write_json
from qkv.weights.family import VERSION, Family
from qkv.weights.folder import Folder, write_tensors

INPAINT = "StableDiffusionInpaintPipeline"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", INPAINT)
INDEX = "model_index.json"
TEXT = "text_encoder/config.json"

# The parts of a pipeline, each with the library and the class that reads it.
INDEX_KEYS = Keys(
    read={"scheduler", "safety_checker"},
    fixed={
        "text_encoder": (["transformers", "CLIPTextModel"],),
        "tokenizer": (["transformers", "CLIPTokenizer"], ["transformers", "CLIPTokenizerFast"]),
        "unet": (["diffusers", "UNet2DConditionModel"],),
        "vae": (["diffusers", "AutoencoderKL"],),
    },
    harmless={"requires_safety_checker", "feature_extractor", "image_encoder"},  # what those read, a text has not
)
TABLES = {INDEX: INDEX_KEYS, unet.FILE: unet.UNET_KEYS, vae.FILE: vae.VAE_KEYS, TEXT: clip.TEXT_KEYS}


def load_latent_diffusion(
    path: Path, *, name: str | None = None, dtype: torch.dtype | None = None, variant: str | None = None
) -> LatentDiffusion:
    """A whole pipeline folder, on the CPU, memory-mapped where `dtype` is None or the file's own.

    CheckpointError or ConfigError says which part is missing, broken or of a kind that is not supported.
    """
    folder = Folder(path)
    if not folder.has(INDEX):
        raise CheckpointError(f"{path} has no {INDEX}: it is no model that draws; name one of `qkv models`")
    index = folder.json(INDEX)
    if (kind := index.get("_class_name")) not in PIPELINES:
        raise CheckpointError(f"{path} holds a {kind}; this reads {' and '.join(PIPELINES)}")
    INDEX_KEYS.ours(index)
    files, warnings = _configurations(folder, index)
    tokenizer = Tokenizer.load(path / "tokenizer")
    model = LatentDiffusion(
        name=name or path.resolve().name,
        tokenizer=tokenizer,
        text=clip.load_text_tower(folder, "text_encoder", dtype=dtype, variant=variant),
        unet=unet.UNET.load(folder, UNet, "unet", published=files[unet.FILE], dtype=dtype, variant=variant),
        vae=vae.load_vae(folder, dtype=dtype, variant=variant),
        noise=scheduler.of_pipeline(files[scheduler.FILE]),
        files=files,
        warnings=(*warnings, *tokenizer.warnings),
    )
    _check_fit(model, path)
    return model


def _configurations(folder: Folder, index: Published) -> tuple[dict[str, Published], list[str]]:
    """The configurations of a pipeline, old ones repaired as diffusers repairs them; and warnings for the user."""
    said = {file: folder.json(file) for file in (unet.FILE, vae.FILE, TEXT, scheduler.FILE)}
    chosen = said[scheduler.FILE]
    match index.get("scheduler"):
        case ["diffusers", str(kind)] if chosen.get("_class_name") in scheduler.CLASSES:
            chosen = {**chosen, "_class_name": kind}  # where the two differ, diffusers makes what the index names
    files: dict[str, Published] = {
        INDEX: index,
        **said,
        unet.FILE: unet.repaired(said[unet.FILE]),
        scheduler.FILE: scheduler.repaired(chosen),
    }
    warnings = folder.unknown(TABLES) + scheduler.unknown_keys(said[scheduler.FILE])
    if index.get("safety_checker") not in (None, [None, None]):
        warnings.append("safety-checker: the folder's safety checker is not run here")
    return files, warnings


def _check_fit(model: LatentDiffusion, path: Path) -> None:
    """The parts must speak to each other."""
    unet, vae, text = model.unet.config, model.vae.config, model.text.config
    if unet.out_channels != vae.latent_channels or unet.channels not in (unet.out_channels, model.inpainting_channels):
        raise CheckpointError(
            f"{path}: the U-Net's {unet.channels} channels are not the {vae.latent_channels} of the vae"
        )
    if unet.memory_dim != text.dim:
        raise CheckpointError(
            f"{path}: the U-Net reads texts of width {unet.memory_dim}, its text encoder has {text.dim}"
        )
    if vae.shift:
        raise CheckpointError(f"{path}: vae/config.json has shift_factor={vae.shift}, which no {PIPELINES[0]} applies")
    if model.tokenizer.vocab > text.vocab:
        raise CheckpointError(
            f"{path}: the tokenizer has {model.tokenizer.vocab} tokens, the text encoder {text.vocab}; they do not fit"
        )


def save_component(
    folder: Path,
    published: tuple[Published, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and weights of one part, under the stem that its library looks for."""
    config, tensors = published
    stem = "model" if "architectures" in config else "diffusion_pytorch_model"
    write_json(folder / "config.json", config)
    write_tensors(folder, stem, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)


def save_latent_diffusion(
    model: LatentDiffusion, path: Path, *, dtype: torch.dtype | None = None, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that diffusers' `StableDiffusionPipeline.from_pretrained` opens, with the very configurations
    that the model came with, as far as they still say what it is. Raises OutputError."""
    parts: list[tuple[str, Family[Any], Any]] = [
        (unet.FILE, unet.UNET, model.unet),
        (vae.FILE, vae.AUTOENCODER, model.vae),
        (TEXT, clip.TEXT_TOWER, model.text),
    ]
    for file, family, module in parts:
        config, tensors = family.export(module)
        if (came := _came_with(model, file, family.config, module.config)) is not None:
            config = {key: value for key, value in came.items() if key not in BOOKKEEPING} | {
                key: value for key, value in config.items() if key in BOOKKEEPING
            }
        save_component((path / file).parent, (config, tensors), dtype=dtype, max_shard_bytes=max_shard_bytes)
    model.tokenizer.save(path / "tokenizer")
    noise = _came_with(model, scheduler.FILE, scheduler.of_pipeline, model.noise)
    noise = scheduler.to_published(model.noise) if noise is None else noise
    write_json(path / scheduler.FILE, noise)
    unknown = {key: value for key, value in model.files.get(INDEX, {}).items() if key not in INDEX_KEYS.names}
    more = {key: value for key, value in unknown.items() if not isinstance(value, list)}  # which would be a part
    write_json(path / INDEX, more | _index(noise["_class_name"], model.inpaints))


def _came_with(model: LatentDiffusion, file: str, read: Callable[[Published], Any], config: Any) -> Published | None:
    """The configuration that the model came with, if it says what `config` says now."""
    came = model.files.get(file)
    return came if came is not None and read(came) == config else None


def _index(scheduler: str, inpaints: bool) -> dict[str, Any]:
    absent: dict[str, Any] = {key: [None, None] for key in ("feature_extractor", "image_encoder", "safety_checker")}
    parts = {key: values[0] for key, values in INDEX_KEYS.fixed.items()} | {"scheduler": ["diffusers", scheduler]}
    name = {"_class_name": INPAINT if inpaints else PIPELINES[0], "_diffusers_version": VERSION}
    return name | dict(sorted((absent | parts | {"requires_safety_checker": False}).items()))
