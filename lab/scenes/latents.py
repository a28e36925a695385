"""Scenes and single drawings as the autoencoder sees them, encoded once and kept: what text and U-Net train on.

Place: between recipe 1 and recipe 2 of the scenes. A folder holds, for every thousand scenes, the latents (.npy) and
the facts (.jsonl) side by side: captions are drawn from the very facts that a picture was drawn of, whatever becomes
of the code that imagines scenes. Beside them lie the latents of emblem's drawings, in the data set's order. Shards that
are there are not made again, so that an ended run goes on, and more may be added at any time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lab.scenes.dataset import Scenes
from lab.scenes.render import Picture
from lab.scenes.scene import Scene, from_line, line
from lab.train.batches import to_signed
from qkv.atomic import replacing, write_file
from qkv.device import find_dtype
from qkv.errors import CheckpointError, InputError
from qkv.models.vae import VAE
from qkv.progress import track

SHARD = 1000  # pictures a file
PART = 20  # pictures encoded at a time, 200 on a GPU
FACTS = "latents.json"
SCENES, DRAWINGS = "scenes", "drawings"
Latents = npt.NDArray[np.float16]
Paint = Callable[[Sequence[int]], Sequence[Picture]]


@dataclass(frozen=True)
class SceneLatents:
    """`shards` are memory maps of the unscaled means, (SHARD, C, y, x) each, and `lines` their facts; `drawings`
    (N, C, y, x) are those of emblem's data set, row by row, None where they are not all there yet."""

    shards: Sequence[Latents]
    lines: Sequence[str]
    drawings: Latents | None

    def __len__(self) -> int:
        return len(self.lines)

    def scene(self, row: int) -> Scene:
        """The facts of one: as objects all of them would take ten times the memory."""
        return from_line(self.lines[row])

    def one(self, row: int) -> Latents:
        """(C, y, x)."""
        return self.shards[row // SHARD][row % SHARD]

    def at(self, rows: npt.NDArray[np.int64]) -> Latents:
        """(B, C, y, x)."""
        return np.stack([self.one(int(row)) for row in rows])


def encode(
    vae: VAE, scenes: Scenes, folder: Path, count: int, *, paint: Paint | None = None, progress: bool = True
) -> None:
    """Encodes the first `count` scenes (whole shards) into `folder`, as far as they are not there. `paint` draws those
    of some numbers, by default one after the other.

    Raises InputError if the folder holds another autoencoder's or another seed's, OutputError if it cannot be written.
    """
    _open(vae, folder, {"seed": scenes.seed})
    draw = paint or (lambda numbers: [scenes.picture(number) for number in numbers])
    for shard in track(_missing(folder, SCENES, count), "scenes", shown=progress):
        numbers = range(shard * SHARD, (shard + 1) * SHARD)
        facts = "\n".join(line(scenes.facts(number)) for number in numbers)
        write_file(_path(folder, SCENES, shard).with_suffix(".jsonl"), facts.encode())
        _keep(vae, _path(folder, SCENES, shard), numbers, draw)


def encode_drawings(vae: VAE, pictures: npt.NDArray[np.uint8], folder: Path, *, progress: bool = True) -> None:
    """Encodes all the drawings of emblem's data set (N, Y, X, 3), as far as they are not there. Raises as `encode`."""
    _open(vae, folder, {})
    for shard in track(_missing(folder, DRAWINGS, len(pictures)), "drawings", shown=progress):
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, len(pictures)))
        _keep(vae, _path(folder, DRAWINGS, shard), numbers, lambda part: [pictures[number] for number in part])


def _open(vae: VAE, folder: Path, more: dict[str, int]) -> None:
    """Begins the folder, or finds that it is one of this encoder."""
    said = {"encoder": encoder_hash(vae), "shard": SHARD, **more}
    there = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    if any(there.get(key, value) != value for key, value in said.items()):
        raise InputError(f"{folder} holds latents of another encoder or seed ({there}); give another folder")
    if not said.items() <= there.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / FACTS, json.dumps(there | said).encode())


def _missing(folder: Path, kind: str, count: int) -> list[int]:
    return [shard for shard in range(-(-count // SHARD)) if not _path(folder, kind, shard).is_file()]


def _keep(vae: VAE, path: Path, numbers: range, paint: Paint) -> None:
    means = np.concatenate(list(_means(vae, numbers, paint)))
    with replacing(path) as file:
        np.save(file, means)


def _means(vae: VAE, numbers: range, paint: Paint) -> Iterator[Latents]:
    device = next(vae.parameters()).device
    size, narrow = (PART, False) if device.type == "cpu" else (10 * PART, find_dtype("auto", device) is torch.bfloat16)
    for start in range(numbers.start, numbers.stop, size):
        pictures = to_signed(np.stack(paint(range(start, min(start + size, numbers.stop)))))
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow):
            mean, _ = vae.distribution(pictures.to(device))
        yield mean.half().cpu().numpy()


def load(folder: Path) -> SceneLatents:
    """What was encoded, as far as it came. Raises CheckpointError."""
    try:
        shard = json.loads((folder / FACTS).read_text(encoding="utf-8"))["shard"]
        if shard != SHARD:
            raise ValueError(f"shards of {shard}, expected {SHARD}")
        maps, paths = _maps(folder, SCENES)
        if not maps:
            raise ValueError("no shard is done")
        lines = [text for path in paths for text in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        if any(len(part) != SHARD for part in maps) or len(lines) != SHARD * len(maps):
            raise ValueError(f"{len(lines)} facts for {sum(map(len, maps))} latents")
        drawings, _ = _maps(folder, DRAWINGS)
        return SceneLatents(maps, lines, np.concatenate(drawings) if drawings else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no latents of scenes: {error}; make them anew") from error


def _maps(folder: Path, kind: str) -> tuple[list[Latents], list[Path]]:
    """The shards of a kind as memory maps, and their files; ValueError where one is missing between others."""
    paths = sorted(folder.glob(f"{kind}-*.npy"))
    if paths != [_path(folder, kind, shard) for shard in range(len(paths))]:
        raise ValueError("shards are missing")
    return [np.load(path, mmap_mode="r") for path in paths], paths


def encoder_hash(vae: VAE) -> str:
    """The weights that latents depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "after_encoder.")):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _path(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind}-{shard:05d}.npy"
