"""An upscaler ready to enlarge: a file, a folder, or what lies beside a model that draws; kept in memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from qkv import device as devices
from qkv.errors import NotFoundError
from qkv.fetch.pull import find
from qkv.loaded import models
from qkv.loaded.files import fingerprint
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import AUTO, Where
from qkv.models.upscaler import Upscaler
from qkv.registry import CONFIG, INDEX
from qkv.weights.folder import Folder
from qkv.weights.upscaler import FOLDER, load_upscaler


@dataclass(frozen=True, eq=False, kw_only=True)
class Enlarger:
    """A network in memory, with what its files say about it."""

    network: Upscaler
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return module_bytes(self.network)


def load_enlarger(
    model: str | Path, where: Where = AUTO, *, offline: bool = False, allow_pickle: bool = False
) -> Enlarger:
    """The upscaler in a file or a folder, or the one in the folder of a model that draws.

    Raises NotFoundError, CheckpointError, ConfigError.
    """
    path = Path(model) if Path(model).is_file() else find(model, offline=offline)
    if path.is_dir() and (path / INDEX).is_file():
        beside = _beside(path)
        if beside is None:
            raise NotFoundError(f"{model} has no upscaler; name one by its file or folder")
        path = beside
    return _get(path, where, allow_pickle)


def enlarger_beside(model: str | Path, where: Where) -> Enlarger | None:
    """The upscaler that the folder of a model that draws holds, if any."""
    path = _beside(find(model))
    return None if path is None else _get(path, where)


def _beside(path: Path) -> Path | None:
    folder = Folder(path)
    return folder.file(f"{FOLDER}/{CONFIG}").parent if folder.has(FOLDER) else None  # not if it is a link out of it


def _get(path: Path, where: Where, allow_pickle: bool = False) -> Enlarger:
    path, device = path.absolute(), devices.find_device(where.device)
    dtype = devices.find_dtype(where.dtype, device)
    return models.get(
        What("upscaling", path), Where.of(device, dtype), lambda: _load(path, device, dtype, allow_pickle)
    )


def _load(path: Path, device: torch.device, dtype: torch.dtype, allow_pickle: bool) -> Enlarger:
    network, warnings = load_upscaler(path, dtype=dtype, allow_pickle=allow_pickle)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Enlarger(network=network, fingerprint=fingerprint(path), warnings=tuple(warnings))
