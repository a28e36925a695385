"""Model folders in the layout of Hugging Face and diffusers: which file holds what, and nothing from outside.

A folder comes from strangers and names files itself (an index lists its shards), so every file is reached through
`Folder.file`: its real path is inside the folder, or it is a hub cache's link from `snapshots/<revision>/` into the
`blobs` beside it. Nothing in a folder is ever run.

Weights are `<stem>.safetensors`, or shards that `<stem>.safetensors.index.json` lists, or a variant of either
(`<stem>.fp16.safetensors`). Left out: `.bin` files, which are pickles, and remote folders (see `pull`).
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from qkv.atomic import replacing
from qkv.errors import CheckpointError, shorten
from qkv.published import Keys
from qkv.untrusted import read_bytes, read_json
from qkv.weights.files import PICKLES, open_tensors, pickle_refused, save_tensors, unique

MAX_BYTES = 64 << 20  # of another file that is read whole
STEMS = ("model", "diffusion_pytorch_model")  # transformers' name, diffusers' name


class Folder:
    """A model folder, read only. `path` may also be one component of it, such as its `unet` folder.

    A JSON file is read once, for as long as the folder is looked at.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.isdir(path):
            raise CheckpointError(f"{path} is not a model folder; give a folder with config.json or model_index.json")
        self._real = self.path.resolve()
        self._read: dict[str, dict[str, Any]] = {}

    def file(self, name: str) -> Path:
        """The path of the file `name`, such as `unet/config.json`. CheckpointError unless it lies in the folder."""
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise CheckpointError(f"{self.path}: the file name {shorten(name)!r} points out of the model folder")
        try:
            real = (self._real / parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle; no name that a file can have
            raise CheckpointError(f"{self.path} has no file {shorten(name)!r}") from error
        if not real.is_relative_to(self._real) and real.parent != self._blobs():
            raise CheckpointError(f"{self.path}: {shorten(name)!r} is a link out of the model folder")
        if not real.is_file():
            raise CheckpointError(f"{self.path}: {shorten(name)!r} is not a regular file")
        return self.path / parts  # not `real`: messages should not name a hub cache's blob

    def _blobs(self) -> Path | None:
        """The hub cache's `blobs`, if this folder is `snapshots/<revision>` or inside of it."""
        for folder in (self._real, *self._real.parents):
            if folder.parent.name == "snapshots":
                return folder.parent.parent / "blobs"
        return None

    def has(self, name: str) -> bool:
        """Whether there is anything of that name; `file` says whether it may be opened."""
        return os.path.lexists(self._real / name)

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file `name`, in which no key is there twice. CheckpointError if it is anything else.

        `NaN` and `Infinity` pass, since published configurations hold them; `config.build` refuses them by key.
        """
        if name not in self._read:
            self._read[name] = read_json(self.file(name), pairs=unique)
        return dict(self._read[name])

    def bytes(self, name: str) -> bytes:
        """The file `name`, of at most 64 MiB. CheckpointError."""
        return read_bytes(self.file(name), MAX_BYTES)

    def unknown(self, tables: Mapping[str, Keys]) -> list[str]:
        """Warnings that name the keys which no table knows, of the files among `tables` that are here."""
        here = {name: keys for name, keys in tables.items() if self.has(name)}
        return [warning for name, keys in here.items() for warning in keys.unknown(self.json(name), name)]

    def tensors(
        self, component: str = "", stems: Sequence[str] = STEMS, *, variant: str | None = None
    ) -> dict[str, Tensor]:
        """The memory-mapped tensors of a component folder such as "unet" ("" is the folder itself).

        Without `variant` the plain files are read, or the only variant there is. CheckpointError if there are none,
        or if an index and its shards do not hold the same names.
        """
        name = self._weights(component, stems, variant)
        if not name.endswith(".json"):
            return open_tensors(self.file(name))
        index = self.json(name)
        shard_of = index.get("weight_map")
        if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
            raise CheckpointError(f"{self.path}: {name!r} has no weight_map from tensors to files")
        tensors: dict[str, Tensor] = {}
        for shard in dict.fromkeys(shard_of.values()):
            found = open_tensors(self.file(_join(component, shard)))
            named = {tensor for tensor, holder in shard_of.items() if holder == shard}
            if odd := sorted(named ^ found.keys()):
                some = ", ".join(repr(shorten(tensor)) for tensor in odd[:10])
                raise CheckpointError(f"{self.path}: {name!r} and {shard!r} differ in {len(odd)} tensors: {some}")
            tensors |= found
        return tensors

    def _weights(self, component: str, stems: Sequence[str], variant: str | None) -> str:
        """The name of the file of weights, or of the index of its shards."""
        where, here = self.path / component, self._real / component
        files = sorted(os.listdir(here), key=lambda name: (name.endswith(".json"), name)) if here.is_dir() else []
        found = {name: its for stem in stems for name, its in _variants(stem, files)}  # a single file before an index
        variants = sorted({its for its in found.values() if its})
        if variant is None and variants and None not in found.values():
            if len(variants) > 1:
                some = f"{where} has no plain weights but the variants {', '.join(variants)}; choose one"
                raise CheckpointError(some)
            variant = variants[0]
        for name, its in found.items():
            if its == variant:
                return _join(component, name)
        if variant is not None:
            raise CheckpointError(f"{where} has no {variant} variant; it has {', '.join(variants) or 'none'}")
        for name in sorted(files):
            if name.endswith(PICKLES):
                raise CheckpointError(pickle_refused(where / name))
        raise CheckpointError(f"{where} has no weights: no {' or '.join(f'{stem}.safetensors' for stem in stems)}")


def _variants(stem: str, files: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """The files and indexes of weights of that stem, with their variant."""
    # Indexes of variants were published with the variant at either place.
    pattern = rf"{re.escape(stem)}(\.(?P<v>\w+))?\.safetensors(\.index(\.(?P<w>\w+))?\.json)?"
    for match in filter(None, (re.fullmatch(pattern, name) for name in files)):
        if not (match["v"] and match["w"]):
            yield match[0], match["v"] or match["w"]


def write_tensors(
    folder: str | Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    variant: str | None = None,
) -> None:
    """Write weights, as `dtype` if it is given, under the names that transformers and diffusers give them: one file,
    or shards and an index.

    A shard holds at most `max_shard_bytes` of data, or one tensor that is larger. Weights of the same stem and
    variant that were there before are replaced. Raises OutputError.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    shards = _shards(tensors, max_shard_bytes)
    start = f"{stem}.{variant}" if variant else stem
    index_name = f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"
    names = [f"{start}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{start}.safetensors"]
    for name, shard in zip(names, shards):
        save_tensors(folder / name, shard)
    if len(shards) > 1:
        total = sum(_size(tensor) for tensor in tensors.values())
        weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with replacing(folder / index_name) as file:
            file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
        names.append(index_name)
    # Last, so that a failure above leaves the old weights whole.
    ours = re.compile(rf"{re.escape(start)}(-\d{{5}}-of-\d{{5}})?\.safetensors")
    for file_name in os.listdir(folder):
        if (ours.fullmatch(file_name) or file_name == index_name) and file_name not in names:
            (folder / file_name).unlink()


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + _size(tensor) > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += _size(tensor)
    return shards


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _join(component: str, name: str) -> str:
    # As text: a shard's name from an index must reach `Folder.file` as it was written, absolute or not.
    return f"{component}/{name}" if component and not name.startswith("/") else name
