"""A translator ready to translate: found by name or by its languages, read, and kept in memory for the next text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from qkv import device as devices
from qkv import registry
from qkv.config import build
from qkv.errors import ConfigError, InputError, NotFoundError, shorten
from qkv.fetch.pull import find
from qkv.loaded import generation, models
from qkv.loaded.encoder import unknown_keys
from qkv.loaded.files import as_folder
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.models.packed import place
from qkv.models.translator import Translator
from qkv.sample.translation_beam import Search
from qkv.text.moses import from_moses, to_moses
from qkv.text.pieces import FILES, Pieces, read_pieces
from qkv.text.words import valid_text
from qkv.weights.folder import Folder
from qkv.weights.translator import load_translator


@dataclass(frozen=True, kw_only=True)
class TranslationDefaults:
    """`qkv.json` in a translator's folder: what its texts are made of, and how they are best searched."""

    text: Literal["plain", "moses-lower"] = "plain"
    beams: int = 4
    length_penalty: float = 0.6
    penalty: Literal["paper", "power"] = "paper"


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedTranslator:
    """A translator in memory, with what its folder says about it."""

    name: str
    model: Translator
    pieces: Pieces
    source: str | None  # languages, as the folder calls them
    target: str | None
    text: Literal["plain", "moses-lower"] = "plain"
    search: Search = field(default_factory=Search)
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return module_bytes(self.model)

    @property
    def targets(self) -> set[str]:
        """The languages that it translates into: its own, or those that a mark before a text chooses."""
        marked = {piece[2:-2] for piece in self.pieces.ids if piece.startswith(">>") and piece.endswith("<<")}
        return marked or ({self.target} if self.target else set())


def encode(ready: LoadedTranslator, text: str) -> list[int]:
    text = valid_text(text)
    return ready.pieces.encode(to_moses(text, ready.source or "en") if ready.text == "moses-lower" else text)


def decode(ready: LoadedTranslator, ids: Sequence[int]) -> str:
    """The text of ids, on one line: a model may well spell the byte of a line end."""
    text = " ".join(ready.pieces.decode(ids).splitlines())
    return from_moses(text, ready.target or "en") if ready.text == "moses-lower" else text


def load_ready(
    model: str | Path | None = None,
    *,
    to: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> LoadedTranslator:
    """The translator of that name or in that folder, or one that is here and translates into `to`.

    Raises NotFoundError, CheckpointError, ConfigError, and InputError if it does not translate into `to`.
    """
    path = as_folder(find(model, "translation", offline=offline) if model is not None else _any(to)).absolute()
    torch_device = devices.find_device(device)
    narrow = devices.find_small_dtype(dtype, torch_device)
    ready = models.get(
        What("translation", path), Where.of(torch_device, narrow), lambda: _load(path, torch_device, narrow)
    )
    if to is not None and to not in ready.targets:
        known = ", ".join(sorted(ready.targets)) or "a language that it does not name; ask for none"
        raise InputError(f"the model {ready.name} does not translate into {shorten(to)!r}, but into {known}")
    return ready


def _any(to: str | None) -> Path:
    """The first model that is here and translates into `to`."""
    targets: dict[str, Path] = {}
    for each in registry.listing():
        if each.kind == "translation":
            languages = Folder(each.path).json("tokenizer_config.json")
            targets.setdefault(str(languages.get("target_lang")), each.path)
    if not targets:
        raise NotFoundError(
            "no translator is here; name a model: a folder that holds a MarianMTModel, or one of the hub, OWNER/NAME"
        )
    if to is None:
        return next(iter(targets.values()))
    if to not in targets:
        known = ", ".join(sorted(targets))
        raise NotFoundError(f"no model here translates into {shorten(to)!r}; there is {known}, or name a model")
    return targets[to]


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> LoadedTranslator:
    folder = Folder(path)
    model = place(load_translator(folder, dtype=dtype), device, dtype)
    pieces = read_pieces(*map(folder.bytes, FILES))
    if pieces.vocab != model.config.vocab:
        raise ConfigError(f"{path}: vocab.json has {pieces.vocab} tokens, the model {model.config.vocab}")
    languages = folder.json("tokenizer_config.json") if folder.has("tokenizer_config.json") else {}
    source, target = (languages.get(key) for key in ("source_lang", "target_lang"))
    ready = LoadedTranslator(name=path.name, model=model, pieces=pieces, source=source, target=target)
    return _own_manner(ready, folder) if folder.has("qkv.json") else _published_manner(ready, folder)


def _own_manner(ready: LoadedTranslator, folder: Folder) -> LoadedTranslator:
    own = build(TranslationDefaults, folder.json("qkv.json"), "qkv.json")
    banned = (ready.model.config.pad,)
    search = Search(beams=own.beams, length_penalty=own.length_penalty, penalty=own.penalty, banned=banned)
    return replace(ready, text=own.text, search=search)


def _published_manner(ready: LoadedTranslator, folder: Folder) -> LoadedTranslator:
    """As transformers translates."""
    told = generation.read(folder)
    search = generation.translation_search(told, end=ready.model.config.end)
    return replace(ready, search=search, warnings=(*unknown_keys(folder), *told.warnings))
