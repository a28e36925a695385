"""What a sentence encoder's folder says beside its weights: how states become one vector, and how much it reads.

Published for sentence-transformers: modules.json lists the layers, 1_Pooling/config.json the pooling, and
sentence_bert_config.json the length. A folder without them is pooled by the mean, as that library does.
"""

import json
from dataclasses import dataclass
from typing import Any

from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models.bert import Pooling
from qkv.text.vocabulary import read_text
from qkv.weights.folder import Folder

_MODULES = "modules.json"
_LAYERS = ("Transformer", "Pooling", "Normalize")
_LENGTHS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json")
_PROMPTS = "config_sentence_transformers.json"
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
}
_NEWER = {"cls": "pooling_mode_cls_token"} | {
    name: f"pooling_mode_{name}_tokens" for name in ("mean", "max", "mean_sqrt_len")
}


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """`context`: the most tokens of a text, None for what the model reads; `lower`: texts are lower-cased; `prefix`:
    what comes before every text."""

    pooling: Pooling = "mean"
    normalise: bool = False
    context: int | None = None
    lower: bool = False
    prefix: str = ""


def read_sentence(folder: Folder) -> SentenceConfig:
    """Raises ConfigError for what cannot be honoured, CheckpointError for what cannot be read."""
    layers = _layers(folder) if folder.has(_MODULES) else {}
    if layers.get("Transformer"):
        raise ConfigError(f"{_MODULES} keeps the model in {shorten(layers['Transformer'])!r}; it must lie beside it")
    length = next((name for name in _LENGTHS if folder.has(name)), None)
    reads = folder.json(length) if length else {}
    context = reads.get("max_seq_length")
    if context is not None and (type(context) is not int or context < 3):
        raise ConfigError(f"max_seq_length={shorten(repr(context))} is out of range; it must be 3 or more")
    return SentenceConfig(
        pooling=_pooling(folder.json(f"{layers['Pooling']}/config.json")) if layers.get("Pooling") else "mean",
        normalise="Normalize" in layers,
        context=context,
        lower=reads.get("do_lower_case") is True,
        prefix=_prefix(folder.json(_PROMPTS)) if folder.has(_PROMPTS) else "",
    )


def _layers(folder: Folder) -> dict[str, str]:
    """Those that modules.json lists, by the last word of their type, with their folders."""
    try:
        rows = json.loads(read_text(folder.file(_MODULES)))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.path}: {_MODULES} is not JSON: {shorten(str(error))}") from error
    found = {}
    for row in rows if isinstance(rows, list) else [rows]:
        match row:
            case {"type": str(kind), "path": str(path)} if kind.rpartition(".")[2] in _LAYERS:
                found[kind.rpartition(".")[2]] = path.strip("/")
            case _:
                raise ConfigError(f"{_MODULES} asks for {shorten(repr(row))}; known layers: {', '.join(_LAYERS)}")
    return found


def _pooling(config: dict[str, Any]) -> Pooling:
    """In either published spelling: one name, or a switch for each way."""
    asked = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if not asked and isinstance(name := config.get("pooling_mode"), str):
        asked = [_NEWER.get(name, name)]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise ConfigError(
            f"a pooling by {' and '.join(asked) or 'nothing'} is not supported; known: {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[asked[0]]


def _prefix(config: dict[str, Any]) -> str:
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return prompt if isinstance(prompt, str) else ""
