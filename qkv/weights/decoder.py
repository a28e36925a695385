"""Decoders as transformers publishes them: a folder of config.json and safetensors <-> `Decoder`.

Which family a folder holds is its `model_type`; each family is a table in a file of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qkv.errors import CheckpointError, ConfigError, NotFoundError, unknown
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.bloom import BLOOM
from qkv.weights.configs import write_json
from qkv.weights.family import Family, Published
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.gemma import GEMMA, GEMMA2
from qkv.weights.gpt import GPT2, GPT_NEO
from qkv.weights.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from qkv.weights.load import export_weights, load_module
from qkv.weights.neox import NEOX
from qkv.weights.opt import OPT
from qkv.weights.quantised import Blocks

FAMILIES = {
    family.name: family for family in (GPT2, GPT_NEO, BLOOM, LLAMA, MISTRAL, QWEN2, QWEN3, NEOX, OPT, GEMMA, GEMMA2)
}


def find_family(published: Published) -> Family:
    """By a config.json's model_type. ConfigError if it is not here."""
    name = published.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(unknown("model_type", str(name), FAMILIES))
    return FAMILIES[name]


def load_decoder(folder: Folder, *, dtype: torch.dtype | None = None, check_finite: bool = False) -> Decoder:
    """The decoder in a folder, memory-mapped where `dtype` is None or the file's own.

    ConfigError or CheckpointError if it is of a kind that is not supported, or broken; `check_finite` reads all of it
    to look for NaN and infinity.
    """
    published = folder.json("config.json")
    family = find_family(published)
    config = family.config(published)
    tensors = family.table(config).ours(folder.tensors())
    head = tensors.pop("head.weight", None) if config.tied else None
    if head is not None and not torch.equal(head, tensors.get("token.weight", head[:0])):
        raise CheckpointError("tie_word_embeddings is set, but the file holds a head that is not the embedding")
    return load_module(lambda: Decoder(config), tensors, dtype=dtype, check_finite=check_finite)


_KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def as_blocks(decoder: Decoder) -> tuple[DecoderConfig, dict[str, Blocks]]:
    """Configuration and weights as the compiled kernels take them, not copied. ConfigError for another precision."""
    found = {}
    for name, tensor in export_weights(decoder).items():
        if tensor.dtype not in _KINDS:
            raise ConfigError(f"{name} is {tensor.dtype}; the compiled kernels read float32, bfloat16 and float16")
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        found[name] = Blocks(_KINDS[tensor.dtype], tuple(tensor.shape), data)
    return decoder.config, found


def published_config(config: DecoderConfig, family: str | None = None) -> dict[str, Any]:
    """config.json as `family` writes it (None: the first that can say all of it). ConfigError if it cannot."""
    if family is not None and family not in FAMILIES:
        raise NotFoundError(unknown("family", family, FAMILIES))
    reasons = []
    for name in FAMILIES if family is None else [family]:
        try:
            return FAMILIES[name].published(config)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; ".join(reasons))


def save_decoder(
    decoder: Decoder,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers opens: config.json and safetensors, in shards if they are larger.

    `family` is the model_type to write (None: the first that fits), `dtype` converts, `also` are further keys of
    config.json, such as eos_token_id. ConfigError if no family is published like this; OutputError.
    """
    config = published_config(decoder.config, family)
    table = FAMILIES[config["model_type"]].table(decoder.config)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in table.published(export_weights(decoder)).items()
    }
    kept = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(Path(path) / "config.json", config | {"dtype": kept} | dict(also or {}))
    write_tensors(path, "model", tensors, max_shard_bytes=max_shard_bytes)
