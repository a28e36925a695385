"""What a sentence encoder's folder says beside its weights: how states become one vector, and how much it reads.

Published for sentence-transformers: modules.json lists the layers, 1_Pooling/config.json the pooling,
sentence_bert_config.json the length, config_sentence_transformers.json what comes before texts and how vectors are
compared. A folder without them is pooled by the mean, as that library does. The keys of each file stand in a table.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models.bert import Pooling
from qkv.published import Keys
from qkv.untrusted import read_text
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
_LENGTH_KEYS = Keys(
    read={"max_seq_length", "do_lower_case"},
    fixed={"transformer_task": ("feature-extraction",), "module_output_name": ("token_embeddings",)},
    # How its library opens the same files.
    harmless={"model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs"}
    | {"backend", "modality_config", "tokenizer_name_or_path", "unpad_inputs", "processing_kwargs"},
)
_POOLING_KEYS = Keys(
    read={*_POOLINGS, "pooling_mode", "include_prompt", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"},
    harmless={"word_embedding_dimension", "embedding_dimension"},
)
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
_SIMILARITIES = {"dot_product": "dot"} | {name: name for name in ("cosine", "dot", "euclidean", "manhattan")}
_PROMPT_KEYS = Keys(
    read={"prompts", "default_prompt_name", "similarity_fn_name"},
    fixed={"model_type": ("SentenceTransformer",)},
    harmless={"__version__", "truncate_dim"},
)
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")  # what its library looks for, in this order
_NEWER = {"cls": "pooling_mode_cls_token"} | {
    name: f"pooling_mode_{name}_tokens" for name in ("mean", "max", "mean_sqrt_len")
}


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """`context`: the most tokens of a text, None for what the model reads; `lower`: texts are lower-cased; `prefix`:
    what comes before every text, `query` and `document` before those that are searched with and through.
    `pools_prompt`: that is pooled too. `similarity`: how near two vectors are."""

    pooling: Pooling = "mean"
    normalise: bool = False
    context: int | None = None
    lower: bool = False
    prefix: str = ""
    query: str = ""
    document: str = ""
    pools_prompt: bool = True
    similarity: Similarity = "cosine"
    warnings: tuple[str, ...] = field(default=(), compare=False)


def read_sentence(folder: Folder) -> SentenceConfig:
    """Raises ConfigError for what cannot be honoured, CheckpointError for what cannot be read."""
    layers = _layers(folder) if folder.has(_MODULES) else {}
    if layers.get("Transformer"):
        raise ConfigError(f"{_MODULES} keeps the model in {shorten(layers['Transformer'])!r}; it must lie beside it")
    length = next((name for name in _LENGTHS if folder.has(name)), _LENGTHS[0])
    tables = {length: _LENGTH_KEYS, _PROMPTS: _PROMPT_KEYS}
    said = {name: folder.json(name) if folder.has(name) else {} for name in tables}
    pooling = f"{layers['Pooling']}/config.json" if layers.get("Pooling") else None
    if pooling is not None:
        tables[pooling], said[pooling] = _POOLING_KEYS, folder.json(pooling)
    for name, keys in tables.items():
        try:
            keys.ours(said[name])
        except ConfigError as error:
            raise ConfigError(f"{folder.path / name}: {error}") from error
    return SentenceConfig(
        pooling="mean" if pooling is None else _pooling(said[pooling]),
        pools_prompt=pooling is None or said[pooling].get("include_prompt", True) is not False,
        normalise="Normalize" in layers,
        context=_context(said[length], folder),
        lower=said[length].get("do_lower_case") is True,
        similarity=_similarity(said[_PROMPTS]),
        warnings=tuple(folder.unknown(tables)),
        **_prompts(said[_PROMPTS]),
    )


def _context(reads: dict[str, Any], folder: Folder) -> int | None:
    """As the length's own file says, else as the tokenizer's does, where 10^30 stands for no limit."""
    context = reads.get("max_seq_length")
    if context is None and folder.has("tokenizer_config.json"):
        longest = folder.json("tokenizer_config.json").get("model_max_length")
        return longest if type(longest) is int and 3 <= longest < 1_000_000 else None
    if context is not None and (type(context) is not int or context < 3):
        raise ConfigError(f"max_seq_length={shorten(repr(context))} is out of range; it must be 3 or more")
    return context


def _similarity(config: dict[str, Any]) -> Similarity:
    name = config.get("similarity_fn_name") or "cosine"
    if name not in _SIMILARITIES:
        known = ", ".join(_SIMILARITIES)
        raise ConfigError(f"{_PROMPTS}: similarity_fn_name={shorten(repr(name))} is not supported; known: {known}")
    return cast(Similarity, _SIMILARITIES[name])


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


def _prompts(config: dict[str, Any]) -> dict[str, str]:
    """What comes before texts: those of searches as their kind says, else as all others."""
    given = config.get("prompts")
    prompts = {name: text for name, text in (given if isinstance(given, dict) else {}).items() if isinstance(text, str)}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ConfigError(f"{_PROMPTS}: default_prompt_name={shorten(repr(default))} is none of its prompts")
    prefix = prompts.get(str(default), "")
    kinds = {"query": _QUERY, "document": _DOCUMENT}
    found = {kind: next((prompts[name] for name in names if name in prompts), prefix) for kind, names in kinds.items()}
    return {"prefix": prefix, **found}
