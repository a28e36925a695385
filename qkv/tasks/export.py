"""A model as a folder in Hugging Face's layout, which diffusers opens."""

import contextlib
import os
import shutil
import uuid
from pathlib import Path

import torch

from qkv import registry
from qkv.device import find_dtype
from qkv.errors import OutputError
from qkv.weights.diffusers import load_latent_diffusion, save_latent_diffusion
from qkv.weights.folder import Folder

BESIDE = ("qkv.json", "README.md", "LICENSE", "NOTICE")  # goes along with the weights


def export(model: str | Path, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Writes `model` (a name or a folder) to the new `folder`, whole or not at all; None keeps each tensor's dtype.

    Raises OutputError if there is something at `folder` already, and what reading the model raises.
    """
    source, folder = registry.resolve(model), Path(folder)
    if os.path.lexists(folder):
        raise OutputError(f"cannot write {folder}: it is already there; give a new name")
    precision = None if dtype is None else find_dtype(dtype, torch.device("cpu"))
    loaded = load_latent_diffusion(source)
    scratch = folder.with_name(f".{folder.name[:50]}.{uuid.uuid4().hex}.part")
    try:
        save_latent_diffusion(loaded, scratch, dtype=precision)
        for name in filter(Folder(source).has, BESIDE):
            shutil.copyfile(Folder(source).file(name), scratch / name)
        scratch.rename(folder)
    except OSError as error:
        reason = error.__cause__ if isinstance(error, OutputError) else error  # without the scratch folder's name
        raise OutputError(f"cannot write {folder}: {getattr(reason, 'strerror', None) or reason}") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)
    return folder
