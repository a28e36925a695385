"""A model ready to draw: found by name, read, put on its device, and kept in memory for the next request."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from qkv import device as devices
from qkv.config import build
from qkv.fetch.pull import find
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.packed import can_pack, pack
from qkv.weights.diffusers import load_latent_diffusion
from qkv.weights.folder import Folder
from qkv.weights.load import sparing_memory

END = 1 << 16  # bytes at either end of a file that its fingerprint looks at


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """`qkv.json` beside `model_index.json`: what a model is best drawn with. These are Stable Diffusion's."""

    steps: int = 50
    guidance: float = 7.5


class Ready(NamedTuple):
    """A model in memory, with what its folder says about it."""

    model: LatentDiffusion
    defaults: Defaults
    fingerprint: str


def load(model: str | Path = "emblem", *, device: str = "auto", dtype: str = "auto") -> LatentDiffusion:
    """The model of that name or in that folder, for drawing only: its weights may be laid out for this processor.

    Raises NotFoundError, CheckpointError, ConfigError.
    """
    place = devices.find_device(device)
    return make_ready(model, place, devices.find_dtype(dtype, place)).model


def make_ready(name_or_folder: str | Path, device: torch.device, dtype: torch.dtype) -> Ready:
    """As `load`, with the defaults and the fingerprint that the model's folder has."""
    path = find(name_or_folder)
    files = sorted(file for file in (*path.glob("*.json"), *path.glob("*/*")) if file.is_file())
    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _load(path.absolute(), stamp, device, dtype)


@lru_cache(maxsize=2)
def _load(path: Path, stamp: tuple[tuple[str, int, int], ...], device: torch.device, dtype: torch.dtype) -> Ready:
    """Kept in memory until two others were asked for, or a file of the folder changes, which `stamp` shows."""
    folder = Folder(path)
    with sparing_memory():
        model = load_latent_diffusion(path, dtype=dtype)
        model.text.to(device)
        if can_pack(device, dtype):
            pack(model.unet)
        else:
            model.unet.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.vae.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    defaults = build(Defaults, folder.json("qkv.json"), "qkv.json") if folder.has("qkv.json") else Defaults()
    return Ready(model, defaults, _fingerprint(folder))


def _fingerprint(folder: Folder) -> str:
    """Tells models apart, also of one shape: a hash over both ends of every file of weights. No checksum."""
    found = hashlib.sha256()
    for name in sorted(str(file.relative_to(folder.path)) for file in folder.path.glob("*/*.safetensors")):
        with folder.file(name).open("rb") as file:
            found.update(file.read(END))
            size = file.seek(0, 2)
            file.seek(max(0, size - END))
            found.update(file.read(END) + str(size).encode())
    return found.hexdigest()[:10]
