"""Upscalers as Real-ESRGAN publishes them <-> ours: files of weights without a configuration, and folders with one.

Tensors have the published names in our modules, and their shapes tell the configuration. A folder's config.json says
the same in the words of the published classes' arguments, and must say what the weights are.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.config import build
from qkv.errors import CheckpointError, ConfigError
from qkv.models.upscaler import RRDB, Compact, CompactConfig, RRDBConfig, Upscaler
from qkv.published import Keys
from qkv.weights.files import open_pickle, open_tensors
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights, load_module

FOLDER = "upscaler"  # in the folder of a model that draws
CONFIG = "config.json"
_RGB = {"num_in_ch": (3,), "num_out_ch": (3,)}
COMPACT_KEYS = Keys(
    fields={"num_feat": "dim", "num_conv": "layers", "upscale": "scale"}, fixed={**_RGB, "act_type": ("prelu",)}
)
RRDB_KEYS = Keys(
    fields={"num_feat": "dim", "num_block": "layers", "num_grow_ch": "growth", "scale": "scale"}, fixed=_RGB
)
KINDS: dict[str, tuple[type[CompactConfig | RRDBConfig], Keys]] = {
    "SRVGGNetCompact": (CompactConfig, COMPACT_KEYS),
    "RRDBNet": (RRDBConfig, RRDB_KEYS),
}


def load_upscaler(
    path: Path, *, dtype: torch.dtype | None = None, allow_pickle: bool = False
) -> tuple[Upscaler, list[str]]:
    """The upscaler in a folder or a file, and warnings; `allow_pickle` also reads a .pth file. CheckpointError,
    ConfigError."""
    warnings: list[str] = []
    if path.is_dir():
        folder = Folder(path)
        tensors = folder.tensors()
        config = _config(tensors, path)
        if folder.has(CONFIG):
            warnings = _check_said(folder, config)
    else:
        tensors = open_pickle(path) if allow_pickle and path.suffix == ".pth" else open_tensors(path)
        config = _config(tensors, path)
    return load_module(lambda: _network(config), tensors, dtype=dtype), warnings


def _network(config: CompactConfig | RRDBConfig) -> Upscaler:
    return Compact(config) if isinstance(config, CompactConfig) else RRDB(config)


def _config(tensors: Mapping[str, Tensor], path: Path) -> CompactConfig | RRDBConfig:
    """What the shapes say. CheckpointError if they are those of neither network."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        if "conv_first.weight" in shapes:
            dim, read, _, _ = shapes["conv_first.weight"]
            return RRDBConfig(
                dim=dim,
                layers=len({name.split(".")[1] for name in shapes if name.startswith("body.")}),
                growth=shapes["body.0.rdb1.conv1.weight"][0],
                scale=4 // math.isqrt(read // 3),
            )
        convolutions = [shape for shape in shapes.values() if len(shape) == 4]
        scale = math.isqrt(shapes[f"body.{2 * len(convolutions) - 2}.weight"][0] // 3)
        return CompactConfig(dim=shapes["body.0.weight"][0], layers=len(convolutions) - 2, scale=scale)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:  # ConfigError is a ValueError
        raise CheckpointError(f"{path} holds no upscaler that is known here: {' or '.join(KINDS)}") from error


def _check_said(folder: Folder, config: CompactConfig | RRDBConfig) -> list[str]:
    """Warnings of config.json. ConfigError if it says something else than the weights."""
    published = folder.json(CONFIG)
    kind = published.get("_class_name")
    if kind not in KINDS:
        raise ConfigError(f"{folder.path} holds a {kind}; this reads {' and '.join(KINDS)}")
    known, keys = KINDS[kind]
    if build(known, keys.ours(published), CONFIG) != config:
        raise ConfigError(f"{folder.path}: {CONFIG} says {kind} of another shape than its weights have: {config}")
    return keys.unknown(published, CONFIG)


def published_upscaler(network: Upscaler) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors."""
    kind = "SRVGGNetCompact" if isinstance(network, Compact) else "RRDBNet"
    return {"_class_name": kind} | KINDS[kind][1].published(network.config), export_weights(network)
