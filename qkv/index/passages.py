"""The passages of files: the paragraphs of text files, the lines of JSON-lines files.

A paragraph ends at an empty line; one that is longer than a model reads at once goes on as the next. Files that are
no text are named with the reason and passed over: one bad file among thousands ends nothing. So are links, which may
lead out of the folder or in circles. Names that begin with a dot are left out.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qkv.errors import InputError, NotFoundError, shorten
from qkv.text.words import valid_text
from qkv.textfiles import NotTextError, lines, read_stream

MAX_FILE = 64 << 20  # bytes
LONGEST = 1000  # characters of a passage: about as many as 256 tokens spell
JSON_LINES = (".jsonl", ".ndjson")
LINK = "it is a link; search what it leads to"


@dataclass(frozen=True)
class Passage:
    """A text, and where it begins."""

    text: str
    file: Path
    line: int


@dataclass(frozen=True)
class Skipped:
    """A file, or a line of one, that was not read, and why."""

    file: Path
    reason: str


def read_passages(place: Path) -> Iterator[Passage | Skipped]:
    """Everything in a file, or in the files of a folder in the order of their names. NotFoundError."""
    if place.is_dir():
        for file in walk(place):
            yield from [Skipped(file, LINK)] if file.is_symlink() else _read(file)
    elif place.exists():
        yield from _read(place)
    else:
        raise NotFoundError(f"there is no file or folder {shorten(str(place))!r} to search")


def read_lines(file: Path) -> list[str]:
    """The lines of a file, the empty ones too; of a JSON-lines file the `text` of each that has one.

    InputError if it is no text.
    """
    found = [] if file.suffix in JSON_LINES else _text(file)
    if isinstance(found, Skipped):
        raise InputError(f"cannot read {file}: {found.reason}")
    if file.suffix not in JSON_LINES:
        return found
    texts = []
    for passage in _read(file):
        if isinstance(passage, Skipped):
            raise InputError(f"cannot read {file}: {passage.reason}")
        texts.append(passage.text)
    return texts


def walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and the folders in it, in the order of their names; no hidden ones. Links too, which nobody
    is to follow: not into folders here, not to what they lead to there."""
    for at, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # links to others are not walked
        for name in sorted([*files, *links]):
            if not name.startswith("."):
                yield Path(at, name)


def _read(file: Path) -> Iterator[Passage | Skipped]:
    lines = _text(file)
    if isinstance(lines, Skipped):
        yield lines
        return
    if file.suffix in JSON_LINES:
        yield from _json_lines(file, lines)
        return
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield from _passages(paragraph, file, number - len(paragraph))
            paragraph = []


def _json_lines(file: Path, lines: list[str]) -> Iterator[Passage | Skipped]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Skipped(file, f"line {number} is not JSON")
            continue
        match value:
            case str(text) | {"text": str(text)} if text.strip():
                yield Passage(valid_text(text.strip()), file, number)
            case _:
                yield Skipped(file, f'line {number} has no "text"')


def _text(file: Path) -> list[str] | Skipped:
    """The lines of a text file, or why they are not to be had."""
    if not file.is_file():  # a pipe or a device would never end
        return Skipped(file, "it is not a regular file")
    try:
        with file.open("rb") as stream:
            return lines(read_stream(stream, limit=MAX_FILE))
    except NotTextError as error:
        return Skipped(file, str(error))
    except OSError as error:
        return Skipped(file, error.strerror or str(error))


def _passages(lines: list[str], file: Path, first: int) -> Iterator[Passage]:
    """A paragraph, in as many passages as its length asks for; each begins at a line or, in a long line, at a word."""
    text, start = "", first
    for number, line in enumerate(lines, first):
        if text and len(text) + 1 + len(line) > LONGEST:
            yield Passage(text, file, start)
            text = ""
        start = start if text else number
        text = f"{text} {line}" if text else line
        while len(text) > LONGEST:
            cut = text.rfind(" ", LONGEST // 2, LONGEST) + 1 or LONGEST
            yield Passage(text[:cut].rstrip(), file, start)
            text, start = text[cut:].lstrip(), number
    if text:
        yield Passage(text, file, start)
