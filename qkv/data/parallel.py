"""Texts in two languages that are translations of each other, line by line.

A folder holds a file a part and language, `train.en`, `train.de`, `val.en` ..., plain or as .gz: what `qkv data
libreoffice-help` builds, and how published sets lie (Multi30k: `test_2016_flickr.en.gz`).
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from qkv.errors import InputError, NotFoundError
from qkv.textfiles import NotTextError, lines, read_stream

MAX_BYTES = 4 << 30  # of a file


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str


def read_pairs(folder: Path, part: str, source: str, target: str) -> list[Pair]:
    """The pairs of a part ("train", "val" ...) in two languages ("en", "de"), neither side empty.

    Raises NotFoundError if there is no such file, InputError if it is no text or the two have unequal numbers of lines.
    """
    sides = [read_lines(_find(folder, f"{part}.{language}")) for language in (source, target)]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(f"{part}.{name} has {len(side)} lines" for name, side in zip((source, target), sides))
        raise InputError(f"{folder}: {counts}; line n of one must translate line n of the other")
    return [Pair(*pair) for pair in zip(*sides) if all(pair)]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, also a .gz, without the space around them. Raises InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = read_stream(cast(BinaryIO, file), limit=MAX_BYTES)
    except (OSError, EOFError, NotTextError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return [line.strip() for line in lines(text)]


def write_pairs(folder: Path, part: str, source: str, target: str, pairs: Sequence[Pair]) -> None:
    """Two files of a part, a line a pair."""
    for language, side in zip((source, target), ([pair.source for pair in pairs], [pair.target for pair in pairs])):
        (folder / f"{part}.{language}").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise NotFoundError(f"{folder} has no {name} or {name}.gz")
