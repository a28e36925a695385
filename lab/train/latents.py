"""What recipes 3 and 5 of emblem train on: the pictures as the autoencoder sees them, computed once, with their items.

`of_pictures` makes it of the data set. `pack` puts it into one file of 8 bits a number, for a machine with a GPU that
has no data set: a thirtieth of the pictures' size.
"""

import hashlib
import json
import random
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lab.emblem import dataset
from lab.emblem.captions import Mix
from lab.emblem.items import Item
from lab.train.batches import Draw, Pictures, to_signed
from qkv.atomic import replacing
from qkv.device import find_dtype
from qkv.errors import CheckpointError, shorten
from qkv.models.vae import VAE
from qkv.progress import track

Latents = npt.NDArray[np.float16]
SEEN = ("train", "tint")  # the splits that training draws from
PACKED = (*SEEN, "validation")  # and looks at


@dataclass(frozen=True)
class LatentData:
    """`latents` (N, C, y, x) are the autoencoder's unscaled means; an item's row is its place among them."""

    latents: Latents
    items: list[Item]

    @property
    def scaling(self) -> float:
        """Times it, the latents of the training pictures have a deviation of 1."""
        train = [item.row for item in self.items if item.split == "train"]
        return float(1 / self.latents[train].astype(np.float32).std())

    def draw(self, batch: int, seed: int) -> Draw:
        """The rows of each step."""
        seen = [item for item in self.items if item.split in SEEN]
        return Draw.of([item.row for item in seen], [item.weight for item in seen], batch, seed)


class Source(Protocol):
    """Gives the captions of a step's pictures, and their latents (B, C, y, x)."""

    def at(self, step: int) -> tuple[list[str], Tensor]: ...


@dataclass(frozen=True)
class Captioned:
    """Pictures of the data set with captions, both drawn anew at every step."""

    latents: Latents
    items: list[Item]
    draw: Draw
    mix: Mix

    def at(self, step: int) -> tuple[list[str], Tensor]:
        """The captions of B pictures, and their latents (B, C, y, x)."""
        rows = self.draw.at(step)
        rng = random.Random(f"{self.draw.seed} {step}")
        texts = [self.mix(self.items[row], rng) for row in rows]
        return texts, torch.from_numpy(self.latents[rows].astype(np.float32))


def of_pictures(vae: VAE, *, progress: bool = True) -> LatentData:
    """The whole data set's. Raises what `dataset.load` raises."""
    data = dataset.load(tinted=True)
    return LatentData(encode(vae, data.pictures, _cache(), progress=progress), data.items)


def encode(vae: VAE, pictures: Pictures, cache: Path, *, progress: bool = True) -> Latents:
    """The unscaled mean latents (N, C, y, x) of all pictures, kept in `cache` under a hash of both."""
    digest = hashlib.sha256(np.ascontiguousarray(pictures).data)
    for parameter in vae.encoder.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    path = cache / f"latents-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        device = next(vae.parameters()).device
        made = []
        for start in track(range(0, len(pictures), 32), "latents", shown=progress):
            narrow = find_dtype("auto", device) is torch.bfloat16
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow):
                mean, _ = vae.distribution(to_signed(pictures[start : start + 32]).to(device))
            made.append(mean.half().cpu().numpy())
        with replacing(path) as file:
            np.save(file, np.concatenate(made))
    latents: Latents = np.load(path)
    return latents


def pack(vae: VAE, path: Path, *, progress: bool = True) -> None:
    """Writes the training and validation part of the data set to `path`; a number is at most 1/254 of its channel's
    largest off. Raises what `of_pictures` does, and OutputError."""
    data, folder = of_pictures(vae, progress=progress), dataset.data_folder()
    rows = [item.row for item in data.items if item.split in PACKED]
    latents = data.latents[rows].astype(np.float32)
    scale = np.abs(latents).max(axis=(0, 2, 3), keepdims=True) / 127
    lines = (folder / "items.jsonl").read_bytes().splitlines()
    with replacing(path) as file:
        np.savez_compressed(
            file,
            latents=np.rint(latents / scale).astype(np.int8),
            scale=scale,
            items=np.frombuffer(b"\n".join(lines[row] for row in rows), np.uint8),
            words=np.frombuffer((folder / "words.json").read_bytes(), np.uint8),
        )


def unpack(path: Path) -> LatentData:
    """What `pack` wrote. Raises CheckpointError."""
    try:
        with np.load(path) as file:
            latents, scale = file["latents"], file["scale"]
            lines = file["items"].tobytes().decode().splitlines()
            items = list(dataset.read_items(lines, json.loads(file["words"].tobytes())))
        if latents.ndim != 4 or len(latents) != len(items):
            raise ValueError(f"{len(items)} items for latents {latents.shape}")
        return LatentData((latents * scale).astype(np.float16), items)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = shorten(str(error), 200)
        raise CheckpointError(
            f"{path} holds no packed latents ({reason}); make it: python -m lab data emblem --latents FILE"
        ) from (error)


def rescaled(vae: VAE, scaling: float) -> VAE:
    """The same autoencoder with latents `scaling` times as large."""
    copy = VAE(replace(vae.config, scaling=scaling)).to(next(vae.parameters()).device)
    copy.load_state_dict(vae.state_dict())
    return copy.eval()


def _cache() -> Path:
    return dataset.data_folder().parent / "latents"
