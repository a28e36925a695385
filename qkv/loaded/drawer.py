"""A model ready to draw: found by name, read, put on its device, and kept in memory for the next request."""

from dataclasses import dataclass
from pathlib import Path

import torch

from qkv import device as devices
from qkv.config import build
from qkv.fetch.pull import find
from qkv.loaded import models
from qkv.loaded.files import fingerprint
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.packed import can_pack, pack
from qkv.weights.diffusers import load_latent_diffusion
from qkv.weights.folder import Folder
from qkv.weights.upscaler import FOLDER as UPSCALER


@dataclass(frozen=True, kw_only=True)
class DrawingDefaults:
    """`qkv.json` beside `model_index.json`: what a model is best drawn with. These are Stable Diffusion's."""

    steps: int = 50
    guidance: float = 7.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawer(LatentDiffusion):
    """A model in memory, with what its folder says about it."""

    defaults: DrawingDefaults
    fingerprint: str

    @property
    def bytes(self) -> int:
        return module_bytes(self.text, self.unet, self.vae)


def load(model: str | Path = "emblem", *, device: str = "auto", dtype: str = "auto") -> LatentDiffusion:
    """The model of that name or in that folder, for drawing only: its weights may be laid out for this processor.

    Raises NotFoundError, CheckpointError, ConfigError.
    """
    return load_drawer(model, Where(device=device, dtype=dtype))


def load_drawer(name_or_folder: str | Path, where: Where) -> Drawer:
    """As `load`, with the defaults and the fingerprint that the model's folder has."""
    path, device = find(name_or_folder, "pictures").absolute(), devices.find_device(where.device)
    dtype = devices.find_dtype(where.dtype, device)
    return models.get(What("pictures", path), Where.of(device, dtype), lambda: _load(path, device, dtype))


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a U-Net is laid out for the processor: in float32 it gains nothing (docs/log.md)."""
    return dtype is torch.bfloat16 and can_pack(device, dtype)


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Drawer:
    folder, model = Folder(path), load_latent_diffusion(path, dtype=dtype)
    model.text.to(device)
    if packs(device, dtype):
        pack(model.unet)
    else:
        model.unet.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.vae.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    defaults = (
        build(DrawingDefaults, folder.json("qkv.json"), "qkv.json") if folder.has("qkv.json") else DrawingDefaults()
    )
    return Drawer(**vars(model), defaults=defaults, fingerprint=fingerprint(path, without=UPSCALER))
