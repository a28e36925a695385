"""Encoder-decoders as transformers publishes them: a folder of config.json and safetensors <-> `Translator`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.weights.configs import write_json
from qkv.weights.families import load_model, save_model
from qkv.weights.folder import Folder


def load_translator(folder: Folder, *, dtype: torch.dtype | None = None, check_finite: bool = False) -> Translator:
    """The encoder-decoder in a folder; as `load_model`."""
    return load_model(folder, TranslatorConfig, Translator, dtype=dtype, check_finite=check_finite)


def save_translator(
    translator: Translator,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, generation_config.json and model.safetensors, which transformers opens.

    `dtype` converts, `also` are further keys of generation_config.json, such as num_beams. ConfigError if no family is
    published like this; OutputError.
    """
    config = translator.config
    save_model(translator, config, path, family=family, dtype=dtype)
    tokens = {"decoder_start_token_id": "start", "eos_token_id": "end", "forced_eos_token_id": "end"}
    ids = {key: getattr(config, ours) for key, ours in (tokens | {"pad_token_id": "pad"}).items()}
    search = {"bad_words_ids": [[config.pad]], "max_length": min(512, config.context)}
    write_json(Path(path) / "generation_config.json", ids | search | dict(also or {}))
