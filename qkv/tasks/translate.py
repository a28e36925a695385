"""`qkv translate`: lines in one language in, the same lines in another out, as they come.

A line is cut into sentences, since translators read one at a time; the sentences of many lines go through the model
together, sorted by length, and every line comes out whole, in its place. The first line is translated alone, so that it
is there soon, then ever more at once.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from qkv import device as devices
from qkv import registry
from qkv.config import build
from qkv.errors import ConfigError, InputError, NotFoundError, shorten
from qkv.fetch.pull import find
from qkv.loaded import generation
from qkv.models.translator import Translator
from qkv.sample.translation_beam import Search, search_texts
from qkv.tasks.embed import stamp
from qkv.text.moses import from_moses, to_moses
from qkv.text.pieces import FILES, Pieces, read_pieces
from qkv.text.sentences import sentences
from qkv.text.words import valid_text
from qkv.weights.folder import Folder
from qkv.weights.translator import load_translator

MAX_LINE = 100_000  # characters
WINDOW = 512  # lines that are translated together at most


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """`qkv.json` in a translator's folder: what its texts are made of, and how they are best searched."""

    text: Literal["plain", "moses-lower"] = "plain"
    beams: int = 4
    length_penalty: float = 0.6
    penalty: Literal["paper", "power"] = "paper"


class Ready(NamedTuple):
    """A translator in memory, with what its folder says about it."""

    name: str
    model: Translator
    pieces: Pieces
    source: str | None  # languages, as the folder calls them
    target: str | None
    text: Literal["plain", "moses-lower"]
    search: Search
    warnings: tuple[str, ...] = ()

    @property
    def targets(self) -> set[str]:
        """The languages that it translates into: its own, or those that a mark before a text chooses."""
        marked = {piece[2:-2] for piece in self.pieces.ids if piece.startswith(">>") and piece.endswith("<<")}
        return marked or ({self.target} if self.target else set())


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A line and its translation, sentence by sentence. `score` is the mean log-probability of its sentences, penalised
    by their lengths; NaN where there was nothing to translate."""

    source: str
    text: str
    sentences: tuple[tuple[str, str], ...]
    score: float
    model: str
    warnings: tuple[str, ...] = ()


def translate(text: str, **options: Any) -> Translation:
    """`text`, of one line or many, in another language; `translating` says what may be asked and raised."""
    lines = list(translating(text.split("\n"), **options))
    scores = [line.score for line in lines if not math.isnan(line.score)]
    return Translation(
        source=text,
        text="\n".join(line.text for line in lines),
        sentences=tuple(pair for line in lines for pair in line.sentences),
        score=sum(scores) / len(scores) if scores else math.nan,
        model=lines[0].model,
        warnings=tuple(dict.fromkeys(warning for line in lines for warning in line.warnings)),
    )


def translating(
    lines: Iterable[str],
    *,
    to: str | None = None,
    model: str | Path | None = None,
    beams: int | None = None,
    length_penalty: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Iterator[Translation]:
    """Every line translated, in order, as soon as it is.

    `to` is a language such as "de" (None: what the model translates into), `model` a name, a folder, or OWNER/NAME of
    the hub, fetched once unless `offline` (None: one that is here and translates into `to`); the others are the model's
    own where they are None. Raises InputError, NotFoundError, CheckpointError, ConfigError.
    """
    ready = load_ready(model, to=to, device=device, dtype=dtype, offline=offline)
    asked: dict[str, Any] = {"beams": beams, "length_penalty": length_penalty}
    search = replace(ready.search, **{name: value for name, value in asked.items() if value is not None})
    given, size, number = iter(lines), 1, 0
    while window := list(islice(given, size)):
        for i, line in enumerate(window, number + 1):
            if not isinstance(line, str):
                raise InputError(f"line {i} is no text but {type(line).__name__}")
            if len(line) > MAX_LINE:
                raise InputError(f"line {i} has {len(line)} characters; at most {MAX_LINE} are translated at once")
        found = _translated(ready, window, search, to)
        if number == 0 and ready.warnings and (first := next(found, None)):
            yield replace(first, warnings=(*ready.warnings, *first.warnings))
        yield from found
        number, size = number + len(window), min(2 * size, WINDOW)


def _translated(ready: Ready, lines: Sequence[str], search: Search, to: str | None) -> Iterator[Translation]:
    """Lines that go through the model together."""
    mark = f">>{to}<< " if f">>{to}<<" in ready.pieces.ids else ""
    limit = ready.model.config.context
    cut = [[_fitting(ready, sentence, limit, mark) for sentence in sentences(line)] for line in lines]
    flat = [part for line in cut for parts in line for part in parts]
    ids = [encode(ready, mark + part) for part in flat]
    found = dict(search_texts(ready.model, ids, search))
    said = iter([(decode(ready, found[i][0].ids), found[i][0].score) for i in range(len(flat))])
    for line, parts in zip(lines, cut):
        sources = [part for sentence in parts for part in sentence]
        results = list(islice(said, len(sources)))
        long = any(len(sentence) > 1 for sentence in parts)
        indent, tail = line[: len(line) - len(line.lstrip())], line[len(line.rstrip()) :] if sources else ""
        yield Translation(
            source=line,
            text=indent + " ".join(text for text, _ in results) + tail,
            sentences=tuple(zip(sources, (text for text, _ in results))),
            score=sum(score for _, score in results) / len(results) if results else math.nan,
            model=ready.name,
            warnings=(f"long-sentence: a sentence of more than {limit} tokens was cut",) if long else (),
        )


def _fitting(ready: Ready, text: str, limit: int, mark: str) -> list[str]:
    """`text`, or pieces of it, each short enough for the model: cut in the middle, at a space if there is one."""
    if len(encode(ready, mark + text)) <= limit or len(text) < 2:
        return [text]
    middle = len(text) // 2
    space = text.find(" ", middle)
    at = space if 0 < space < len(text) - 1 else middle
    return [*_fitting(ready, text[:at], limit, mark), *_fitting(ready, text[at:].lstrip(), limit, mark)]


def encode(ready: Ready, text: str) -> list[int]:
    text = valid_text(text)
    return ready.pieces.encode(to_moses(text, ready.source or "en") if ready.text == "moses-lower" else text)


def decode(ready: Ready, ids: Sequence[int]) -> str:
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
) -> Ready:
    """The translator of that name or in that folder, or one that is here and translates into `to`.

    Raises NotFoundError, CheckpointError, ConfigError, and InputError if it does not translate into `to`.
    """
    path = (find(model, offline=offline) if model is not None else _any(to)).absolute()
    place = devices.find_device(device)
    # Small matrices gain nothing from bfloat16 on a processor.
    narrow = torch.float32 if dtype == "auto" and place.type == "cpu" else devices.find_dtype(dtype, place)
    ready = _load(path, stamp(path), place, narrow)
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


@lru_cache(maxsize=2)
def _load(path: Path, stamp: str, device: torch.device, dtype: torch.dtype) -> Ready:
    """Kept in memory until two others were asked for, or a file of the folder changes, which `stamp` shows."""
    folder = Folder(path)
    model = load_translator(folder, dtype=dtype).to(device)
    pieces = read_pieces(*map(folder.bytes, FILES))
    if pieces.vocab != model.config.vocab:
        raise ConfigError(f"{path}: vocab.json has {pieces.vocab} tokens, the model {model.config.vocab}")
    languages = folder.json("tokenizer_config.json") if folder.has("tokenizer_config.json") else {}
    source, target = (languages.get(key) for key in ("source_lang", "target_lang"))
    ready = Ready(path.name, model, pieces, source, target, "plain", Search())
    return _own_manner(ready, folder) if folder.has("qkv.json") else _published_manner(ready, folder)


def _own_manner(ready: Ready, folder: Folder) -> Ready:
    own = build(Defaults, folder.json("qkv.json"), "qkv.json")
    banned = (ready.model.config.pad,)
    search = Search(beams=own.beams, length_penalty=own.length_penalty, penalty=own.penalty, banned=banned)
    return ready._replace(text=own.text, search=search)


def _published_manner(ready: Ready, folder: Folder) -> Ready:
    """As transformers translates."""
    told = generation.read(folder)
    return ready._replace(
        search=generation.translation_search(told, end=ready.model.config.end), warnings=told.warnings
    )
