"""Every published family that is here, by its model_type; a folder of any of them in and out.

Which family a folder holds is its config.json's model_type; what it is made into is the caller's, who asks for a
decoder, an encoder or an encoder-decoder.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkv.errors import ConfigError, NotFoundError, unknown
from qkv.published import Published
from qkv.weights.bert_family import ALBERT, BERT, DISTILBERT, ROBERTA
from qkv.weights.configs import write_json
from qkv.weights.family import Config, Family
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.gemma import GEMMA, GEMMA2
from qkv.weights.gpt import GPT2, GPT_NEO
from qkv.weights.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from qkv.weights.load import Model, export_weights
from qkv.weights.marian import MARIAN
from qkv.weights.megatron import BLOOM, FALCON, NEOX
from qkv.weights.opt import OPT
from qkv.weights.phi import PHI
from qkv.weights.t5 import T5

_ROWS: tuple[Family[Any], ...] = (
    *(GPT2, GPT_NEO, BLOOM, LLAMA, MISTRAL, QWEN2, QWEN3, NEOX, FALCON, PHI, OPT, GEMMA, GEMMA2),  # decoders
    *(DISTILBERT, ALBERT, BERT, ROBERTA),  # encoders
    *(MARIAN, T5),  # encoder-decoders
)
FAMILIES: dict[str, Family[Any]] = {family.name: family for family in _ROWS}


def families_of(kind: type[Config]) -> dict[str, Family[Config]]:
    """Those that are configured by `kind`, in the order in which they are tried."""
    return {name: family for name, family in FAMILIES.items() if family.kind is kind}


def find_family(published: Published, kind: type[Config], head: str = "") -> Family[Config]:
    """By a config.json's model_type. ConfigError if it is none of that kind."""
    name, known = published.get("model_type"), families_of(kind)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(unknown("model_type", str(name), known))
    return known[name].heads[head] if head else known[name]


def unknown_keys(published: Published, also: Collection[str] = ()) -> list[str]:
    """A warning that names the keys of a config.json that its family does not know, nor `also`. ConfigError for a
    family that is not here."""
    name = str(published.get("model_type"))
    if name not in FAMILIES:
        raise ConfigError(unknown("model_type", name, FAMILIES))
    return FAMILIES[name].unknown(published, also)


def load_model(
    folder: Folder,
    kind: type[Config],
    make: Callable[[Config], Model],
    *,
    head: str = "",
    dtype: torch.dtype | None = None,
    check_finite: bool = False,
) -> Model:
    """What `make` makes of the folder's configuration, with its weights; memory-mapped where `dtype` is None or the
    file's own.

    ConfigError or CheckpointError if it is of a kind that is not supported, or broken; `check_finite` reads all of it
    to look for NaN and infinity.
    """
    published = folder.json("config.json")
    family = find_family(published, kind, head)
    return family.load(folder, make, published=published, dtype=dtype, check_finite=check_finite)


def published_config(config: Any, family: str | None = None, head: str = "") -> dict[str, Any]:
    """config.json as `family` writes it (None: the first that can say all of it). ConfigError if it cannot."""
    known = families_of(type(config))
    if family is not None and family not in known:
        raise NotFoundError(unknown("family", family, known))
    reasons = []
    for name in known if family is None else [family]:
        try:
            return (known[name].heads[head] if head else known[name]).published(config)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; ".join(reasons))


def save_model(
    model: nn.Module,
    config: Any,
    path: str | Path,
    *,
    head: str = "",
    family: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers opens: config.json and safetensors, in shards if they are larger.

    `family` is the model_type to write (None: the first that fits), `dtype` converts, `also` are further keys of
    config.json, such as eos_token_id. ConfigError if no family is published like this; OutputError.
    """
    published = published_config(config, family, head)
    table = find_family(published, type(config), head).table(config)
    tensors = table.published(export_weights(model))
    kept = str(dtype or next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(Path(path) / "config.json", published | {"dtype": kept} | dict(also or {}))
    write_tensors(path, "model", tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)
