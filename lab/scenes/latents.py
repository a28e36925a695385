"""Scenes as the autoencoder sees them, encoded once and kept: what a U-Net of scenes trains on.

Place: between recipe 1 and recipe 4 of the scenes. A folder holds, for every thousand numbers, the latents (.npy) and
the facts (.jsonl) side by side: captions are drawn from the very facts that a picture was drawn of, whatever becomes of
the code that imagines scenes. Shards that are there are not made again, so that an ended run goes on. Left out: single
drawings, whose latents `lab.train.latents` keeps.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from lab.scenes.dataset import Scenes
from lab.scenes.scene import Scene
from lab.train.batches import to_signed
from qkv.atomic import replacing, write_file
from qkv.config import as_dict, build
from qkv.errors import CheckpointError, InputError
from qkv.models.vae import VAE

SHARD = 1000  # scenes a file
PART = 20  # pictures encoded at a time
FACTS = "latents.json"
Latents = npt.NDArray[np.float16]


@dataclass(frozen=True)
class SceneLatents:
    """`shards` are memory maps of the unscaled means, (SHARD, C, y, x) each; `scenes` the facts of all, in order."""

    shards: Sequence[Latents]
    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def at(self, rows: npt.NDArray[np.int64]) -> Latents:
        """(B, C, y, x)."""
        return np.stack([self.shards[row // SHARD][row % SHARD] for row in rows])


def encode(vae: VAE, scenes: Scenes, folder: Path, count: int, *, progress: bool = True) -> None:
    """Encodes the first `count` scenes (whole shards) into `folder`, as far as they are not there.

    Raises InputError if the folder holds another autoencoder's or another seed's, OutputError if it cannot be written.
    """
    said = {"seed": scenes.seed, "encoder": encoder_hash(vae), "shard": SHARD}
    if (folder / FACTS).is_file():
        there = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if there != said:
            raise InputError(f"{folder} holds latents of seed {there['seed']} or another encoder; give another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / FACTS, json.dumps(said).encode())
    missing = [shard for shard in range(-(-count // SHARD)) if not _latents(folder, shard).is_file()]
    for shard in track(missing, "latents", disable=not progress):
        numbers = range(shard * SHARD, (shard + 1) * SHARD)
        lines = [json.dumps(as_dict(scenes.facts(number)), ensure_ascii=False) for number in numbers]
        write_file(_latents(folder, shard).with_suffix(".jsonl"), "\n".join(lines).encode())
        means = np.concatenate(list(_means(vae, scenes, numbers)))
        with replacing(_latents(folder, shard)) as file:
            np.save(file, means)


def _means(vae: VAE, scenes: Scenes, numbers: range) -> Iterator[Latents]:
    device = next(vae.parameters()).device
    for start in range(numbers.start, numbers.stop, PART):
        part = range(start, min(start + PART, numbers.stop))
        pictures = to_signed(np.stack([scenes.picture(number) for number in part]))
        with torch.inference_mode():
            mean, _ = vae.distribution(pictures.to(device))
        yield mean.half().cpu().numpy()


def load(folder: Path) -> SceneLatents:
    """What `encode` left, as far as it came. Raises CheckpointError."""
    try:
        shard = json.loads((folder / FACTS).read_text(encoding="utf-8"))["shard"]
        if shard != SHARD:
            raise ValueError(f"shards of {shard}, expected {SHARD}")
        paths = sorted(folder.glob("scenes-*.npy"))
        if not paths:
            raise ValueError("no shard is done")
        if [path.name for path in paths] != [_latents(folder, shard).name for shard in range(len(paths))]:
            raise ValueError("shards are missing")
        maps = [np.load(path, mmap_mode="r") for path in paths]
        lines = [line for path in paths for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        if any(len(part) != SHARD for part in maps) or len(lines) != SHARD * len(maps):
            raise ValueError(f"{len(lines)} facts for {sum(map(len, maps))} latents")
        return SceneLatents(maps, [build(Scene, json.loads(line)) for line in lines])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no latents of scenes: {error}; make them anew") from error


def encoder_hash(vae: VAE) -> str:
    """The weights that latents depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "after_encoder.")):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _latents(folder: Path, shard: int) -> Path:
    return folder / f"scenes-{shard:05d}.npy"
