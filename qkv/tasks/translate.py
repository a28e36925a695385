"""`qkv translate`: lines in one language in, the same lines in another out, as they come.

A line is cut into sentences, since translators read one at a time; the sentences of many lines go through the model
together, sorted by length, and every line comes out whole, in its place. The first line is translated alone, so that it
is there soon, then ever more at once.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from qkv.errors import InputError
from qkv.loaded.translator import LoadedTranslator, decode, encode, load_ready
from qkv.sample.translation_beam import Search, search_texts
from qkv.text.sentences import sentences

MAX_LINE = 100_000  # characters
WINDOW = 512  # lines that are translated together at most


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


def _translated(ready: LoadedTranslator, lines: Sequence[str], search: Search, to: str | None) -> Iterator[Translation]:
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


def _fitting(ready: LoadedTranslator, text: str, limit: int, mark: str) -> list[str]:
    """`text`, or pieces of it, each short enough for the model: cut in the middle, at a space if there is one."""
    if len(encode(ready, mark + text)) <= limit or len(text) < 2:
        return [text]
    middle = len(text) // 2
    space = text.find(" ", middle)
    at = space if 0 < space < len(text) - 1 else middle
    return [*_fitting(ready, text[:at], limit, mark), *_fitting(ready, text[at:].lstrip(), limit, mark)]
