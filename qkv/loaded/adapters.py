"""LoRA adapters as PEFT publishes them, put into a decoder's weights: adapter_config.json, adapter_model.safetensors.

LoRA (2106.09685, section 4.1): a matrix W counts as W + scale B A, scale = alpha / rank. The product has the shape of
the published matrix, so it goes through the family's own table, whose transforms are linear: projections that are fused
or turned there come out as ours, of every family. Left out: adapters of other kinds, and those that change the model
that they are for, such as PiSSA's.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qkv.config import convert
from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models.decoder import Decoder
from qkv.published import Keys
from qkv.weights.families import FAMILIES, published_config
from qkv.weights.folder import Folder
from qkv.weights.tables import Table

CONFIG, STEM = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
_TYPES: dict[str, Any] = {
    **{"r": int, "lora_alpha": float, "use_rslora": bool, "fan_in_fan_out": bool},
    **{"rank_pattern": dict[str, int], "alpha_pattern": dict[str, float]},
}
# As PEFT has them where a file says nothing.
_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "use_rslora": False, "fan_in_fan_out": False}
_DEFAULTS |= {"rank_pattern": {}, "alpha_pattern": {}}
_START = (True, False, "gaussian", "eva", "orthogonal")  # starts that leave the model itself as it was
KEYS = Keys(
    read=set(_TYPES),
    fixed={
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", None),
        "init_lora_weights": _START,
        "bias": ("none",),
        "use_dora": (False,),
        "lora_bias": (False,),
        "use_qalora": (False,),
        "modules_to_save": (None, []),
        "trainable_token_indices": (None, [], {}),
        "layer_replication": (None, []),
        "target_parameters": (None, []),
        "alora_invocation_tokens": (None, []),
        "megatron_config": (None,),
        "loftq_config": (None, {}),
        "corda_config": (None,),
        "lora_ga_config": (None,),
        "velora_config": (None,),
        "monteclora_config": (None,),
        "use_bdlora": (None, False),
        "arrow_config": (None,),
        "kasa_config": (None,),
    },
    # How it was trained and for whom; the tensors say which layers it has.
    harmless={
        *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
        *("eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    },
)


def merge_adapter(decoder: Decoder, folder: Folder, *, family: str | None = None) -> list[str]:
    """Puts an adapter into the weights of `decoder`, in its own dtype, each computed in float32; the warnings.

    ConfigError for what is not LoRA as it is here, CheckpointError for layers that `decoder` has not; then nothing is
    changed. No two products are held at once.
    """
    config = _read_config(folder)
    pairs = _pairs(folder)
    table = FAMILIES[published_config(decoder.config, family)["model_type"]].table(decoder.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    for name, pair in pairs.items():  # on no device: does all of it fit?
        rank = _of_layer(config, "rank_pattern", "r", name)
        if (len(pair["A"]), pair["B"].shape[1]) != (rank, rank):
            raise CheckpointError(f"{folder.path}: {name} has matrices that are not of rank {rank}, as {CONFIG} says")
        shape = (len(pair["B"]), pair["A"].shape[1])
        product = torch.empty(shape[::-1] if config["fan_in_fan_out"] else shape, device="meta")
        for ours, part in _ours(table, name, product, folder):
            if shapes.get(ours) != tuple(part.shape):
                has = shapes.get(ours, "no such layer")
                raise CheckpointError(
                    f"{folder.path}: {name} changes {ours} as {tuple(part.shape)}; the model has {has}"
                )
    with torch.no_grad():
        for name, pair in pairs.items():
            product = _scale(config, name) * pair["B"].float() @ pair["A"].float()
            for ours, part in _ours(table, name, product.t() if config["fan_in_fan_out"] else product, folder):
                _add(decoder, ours, part)
    return KEYS.unknown(folder.json(CONFIG), f"{folder.path.name}/{CONFIG}")


def _add(decoder: nn.Module, name: str, part: Tensor) -> None:
    """Not in place, for weights may be mapped from a file."""
    module, _, key = name.rpartition(".")
    old = decoder.get_parameter(name)
    new = (old.float() + part.to(old.device)).to(old.dtype)
    setattr(decoder.get_submodule(module), key, nn.Parameter(new, requires_grad=False))


def _ours(table: Table, name: str, product: Tensor, folder: Folder) -> Iterator[tuple[str, Tensor]]:
    try:
        yield from table.ours({f"{name}.weight": product}).items()
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}: {shorten(name)!r} belongs to no linear layer of this model") from error


def _read_config(folder: Folder) -> dict[str, Any]:
    """What counts, each key of its type. ConfigError."""
    published = folder.json(CONFIG)
    try:
        KEYS.ours(published)
        given = {**_DEFAULTS, **KEYS.given(published)}
        config = {key: convert(kind, given[key], key) for key, kind in _TYPES.items()}
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in config[key]:
                if not re.fullmatch(r"[\w.]+", pattern):
                    raise ConfigError(f"{key}: {shorten(pattern)!r} is an expression; only names of layers are read")
        for number in (config["r"], config["lora_alpha"], *config["rank_pattern"].values()):
            if not 0 < number < math.inf:
                raise ConfigError(f"r or lora_alpha is {number}; it must be above 0")
    except ConfigError as error:
        raise ConfigError(f"{folder.path}: {error}{_advice(published)}") from error
    return config


def _advice(published: Mapping[str, Any]) -> str:
    if published.get("init_lora_weights") in (*_START, None):
        return ""
    return "; save it again by PEFT with path_initial_model_for_weight_conversion"


def _of_layer(config: Mapping[str, Any], patterns: str, key: str, name: str) -> Any:
    """A layer's own value, if one is given for the end of its name; the first counts, as in PEFT."""
    own = (value for end, value in config[patterns].items() if f".{name}".endswith(f".{end}"))
    return next(own, config[key])


def _scale(config: Mapping[str, Any], name: str) -> float:
    rank, alpha = _of_layer(config, "rank_pattern", "r", name), _of_layer(config, "alpha_pattern", "lora_alpha", name)
    return float(alpha / (math.sqrt(rank) if config["use_rslora"] else rank))


def _pairs(folder: Folder) -> dict[str, dict[str, Tensor]]:
    """A (rank, in) and B (out, rank) of each published layer."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in folder.tensors(stems=(STEM,)).items():
        layer, _, half = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not layer or half not in ("A", "B") or tensor.dim() != 2:
            raise CheckpointError(f"{folder.path}: tensor {shorten(name)!r} belongs to no linear layer of this model")
        pairs.setdefault(layer, {})[half] = tensor
    odd = [name for name, pair in pairs.items() if pair.keys() != {"A", "B"}]
    if odd or not pairs:
        raise CheckpointError(
            f"{folder.path}: {odd[0] + ' has not both matrices' if odd else 'it is empty'}; get it again"
        )
    return pairs
