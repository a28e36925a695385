"""Encoder-decoders as transformers publishes them: a folder of config.json and safetensors <-> `Translator`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.weights.configs import write_json
from qkv.weights.families import load_model, save_model
from qkv.weights.folder import Folder


def load_translator(folder: Folder, **options: Any) -> Translator:
    """The encoder-decoder in a folder; options as `load_model`."""
    return load_model(folder, TranslatorConfig, Translator, **options)


def save_translator(
    translator: Translator,
    path: str | Path,
    *,
    also: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Writes a folder that transformers opens, with a generation_config.json, of which `also` are further keys, such as
    num_beams; options as `save_model`."""
    config = translator.config
    save_model(translator, config, path, **options)
    tokens = {"decoder_start_token_id": "start", "eos_token_id": "end", "forced_eos_token_id": "end"}
    ids = {key: getattr(config, ours) for key, ours in (tokens | {"pad_token_id": "pad"}).items()}
    search = {"bad_words_ids": [[config.pad]], "max_length": min(512, config.context)}
    write_json(Path(path) / "generation_config.json", ids | search | dict(also or {}))
