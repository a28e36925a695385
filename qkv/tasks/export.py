"""A model as a folder in Hugging Face's layout, which diffusers opens."""

import os
import shutil
from pathlib import Path

import torch

from qkv.atomic import new_folder
from qkv.device import find_dtype
from qkv.errors import OutputError
from qkv.fetch.pull import find
from qkv.weights.diffusers import load_latent_diffusion, save_latent_diffusion
from qkv.weights.folder import Folder
from qkv.weights.upscaler import FOLDER as UPSCALER

BESIDE = ("qkv.json", "README.md", "LICENSE", "NOTICE")  # goes along with the weights


def export(model: str | Path, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Writes `model` (a name or a folder) to the new `folder`, whole or not at all; None keeps each tensor's dtype.

    Raises OutputError if there is something at `folder` already, and what reading the model raises.
    """
    source, folder = find(model, "pictures"), Path(folder)
    if os.path.lexists(folder):
        raise OutputError(f"cannot write {folder}: it is already there; give a new name")
    precision = None if dtype is None else find_dtype(dtype, torch.device("cpu"))
    loaded = load_latent_diffusion(source)
    with new_folder(folder) as made:
        save_latent_diffusion(loaded, made, dtype=precision)
        for name in (*filter(Folder(source).has, BESIDE), *_upscaler(source)):
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Folder(source).file(name), made / name)
    return folder


def _upscaler(source: Path) -> list[str]:
    """The files of the upscaler that lies beside a model's parts, as they are."""
    return [file.relative_to(source).as_posix() for file in sorted((source / UPSCALER).glob("*"))]
