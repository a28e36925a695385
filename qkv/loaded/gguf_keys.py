"""The keys of a GGUF file's metadata that are not its architecture's (gguf_decoder.py has those) or its tokenizer's
tables: one column each, and how llama.cpp would draw by default. Source: the gguf package's constants."""

import re
from collections.abc import Mapping
from typing import Any

from qkv.errors import ConfigError
from qkv.published import Keys

_SAMPLED = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SAMPLED |= {"penalty_repeat": "repetition_penalty"}
_SOURCES = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
KEYS = Keys(
    fields={f"general.sampling.{theirs}": ours for theirs, ours in _SAMPLED.items()},
    read={
        *("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count"),
        *("tokenizer.chat_template", "general.sampling.penalty_last_n", "general.name"),
        *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "scores", "merges")),
        *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "seperator")),
        *("tokenizer.ggml.padding_token_id", "tokenizer.ggml.mask_token_id"),
        *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"),
    },
    fixed={
        "general.type": ("model",),
        "general.sampling.xtc_probability": (0.0,),
        "general.sampling.mirostat": (0,),
        "tokenizer.ggml.add_eos_token": (False,),
        "tokenizer.ggml.add_sep_token": (False,),
        "tokenizer.rwkv.world": (None,),
        "tokenizer.ggml.precompiled_charsmap": (None,),
    },
    # Where a file comes from, what quantised it, and what its vocabulary says itself.
    harmless={
        *("general.quantization_version", "general.file_type", "general.author", "general.version", "general.tags"),
        *("general.organization", "general.finetune", "general.basename", "general.description", "general.size_label"),
        *("general.quantized_by", "general.license", "general.license.name", "general.license.link", "general.url"),
        *("general.doi", "general.uuid", "general.repo_url", "general.languages"),
        *(f"general.source.{name}" for name in ("url", "doi", "uuid", "repo_url", "huggingface.repository")),
        *("general.base_model.count", "general.dataset.count"),
        *(f"general.{kind}.{{id}}.{name}" for kind in ("base_model", "dataset") for name in _SOURCES),
        *("general.sampling.sequence", "general.sampling.xtc_threshold"),
        *("general.sampling.mirostat_tau", "general.sampling.mirostat_eta"),
        *("tokenizer.ggml.token_type_count", "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.huggingface.json"),
        *("tokenizer.chat_template.{name}", "tokenizer.chat_templates"),
        *(f"tokenizer.ggml.fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
        *(f"tokenizer.ggml.{name}_token_id" for name in ("prefix", "suffix", "middle", "unk", "separator", "cls")),
        *(f"quantize.imatrix.{name}" for name in ("file", "dataset", "entries_count", "chunks_count")),
    },
)


def read_keys(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of Sampling that the file sets, and a warning that names what no column above does. ConfigError."""
    architecture = f"{metadata.get('general.architecture')}."
    given = {_general(key): _plain(value) for key, value in metadata.items() if not key.startswith(architecture)}
    sampled = KEYS.ours(given)
    last = given.get("general.sampling.penalty_last_n", -1)
    if sampled.get("repetition_penalty", 1.0) != 1.0 and last != -1:
        raise ConfigError(f"general.sampling.penalty_last_n={last} is not supported; it must be -1, the whole text")
    return sampled, KEYS.unknown(given, "its metadata")


def _general(key: str) -> str:
    """A key with what it counts or names left open."""
    key = re.sub(r"^general\.(base_model|dataset)\.\d+\.", r"general.\1.{id}.", key)
    return re.sub(r"^tokenizer\.chat_template\.\w+$", "tokenizer.chat_template.{name}", key)


def _plain(value: Any) -> Any:
    """Arrays are only looked for, not looked at."""
    return value if isinstance(value, str | int | float | bool) else "an array"
