"""An encoder-decoder of many tasks ready to write: found by name, read, and kept in memory for the next text."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qkv import device as devices
from qkv import registry
from qkv.errors import ConfigError, NotFoundError
from qkv.fetch.pull import find
from qkv.loaded import generation, models
from qkv.loaded.files import as_folder
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import AUTO, Where
from qkv.models.packed import place
from qkv.models.translator import Translator
from qkv.sample.translation_beam import Search
from qkv.text.unigram import Unigram
from qkv.weights.folder import Folder
from qkv.weights.translator import load_translator


@dataclass(frozen=True, eq=False, kw_only=True)
class Writer:
    """A model in memory, with what its folder says about it."""

    name: str
    model: Translator
    tokenizer: Unigram
    search: Search
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return module_bytes(self.model)


def load_writer(model: str | Path | None = None, *, where: Where = AUTO, offline: bool = False) -> Writer:
    """The model of that name or in that folder, or one that is here. NotFoundError, CheckpointError, ConfigError."""
    path = as_folder(find(model, "writing", offline=offline) if model is not None else _any()).absolute()
    place = devices.find_device(where.device)
    dtype = devices.find_small_dtype(where.dtype, place)
    return models.get(What("writing", path), Where.of(place, dtype), lambda: _load(path, place, dtype))


def _any() -> Path:
    found = next((each.path for each in registry.listing() if each.kind == "writing"), None)
    if found is None:
        raise NotFoundError("no model that writes one text for another is here; name one, such as google/flan-t5-small")
    return found


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Writer:
    folder = Folder(path)
    model = place(load_translator(folder, dtype=dtype), device, dtype)
    tokenizer = Unigram.load(path)
    if tokenizer.vocab > model.config.vocab:
        raise ConfigError(f"{path}: the tokenizer has {tokenizer.vocab} tokens, the model {model.config.vocab}")
    told = generation.read(folder)
    search = generation.translation_search(told, end=model.config.end)
    search = search if told.beams is not None else replace(search, beams=1)  # as transformers writes
    return Writer(name=path.name, model=model, tokenizer=tokenizer, search=search, warnings=told.warnings)
