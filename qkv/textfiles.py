"""Text files as people have them, read in one way: whatever wrote them, nothing of them is taken for what it is not.

A byte order mark says UTF-8, UTF-16 or UTF-32 and is no part of the text; without one a file is UTF-8. A line ends at
a line feed, with or without a carriage return before it, and nowhere else: U+2028 may stand within a line, and does
within JSON. A size is looked at before it is believed, and zero bytes are no text. Text that a model's folder holds is
another matter: its publisher wrote it, weights/folder.py and text/vocabulary.py read it.
"""

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from qkv.errors import InputError, QkvError, shorten

MAX_BYTES = 256 << 20
CHUNK = 1 << 20
MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

T = TypeVar("T")


_POINTER = b"version https://git-lfs.github.com/spec/"


class NotTextError(InputError):
    """Bytes that are no text; the message is the reason alone."""


def decode(data: bytes) -> str:
    """The text that bytes spell, without a byte order mark. NotTextError."""
    mark, encoding = _encoding(data)
    if encoding == "utf-8" and b"\0" in data:
        raise NotTextError("it is binary, not text")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = f"byte {len(mark) + error.start}"
        raise NotTextError(f"it is not {encoding.upper()} text: {place}; save it as UTF-8") from error
    if "\0" in text:
        raise NotTextError("it is binary, not text")
    return text


def _encoding(head: bytes) -> tuple[bytes, str]:
    """The byte order mark that `head` begins with, and what it says."""
    return next(((mark, name) for mark, name in MARKS.items() if head.startswith(mark)), (b"", "utf-8"))


def read_text(path: str | Path, *, limit: int = MAX_BYTES) -> str:
    """The text in a file, or in what a shell gives for one. InputError."""
    try:
        with open(path, "rb") as file:
            return read_stream(file, limit=limit)
    except NotTextError as error:
        raise InputError(f"cannot read {shorten(str(path), 200)}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {shorten(str(path), 200)}: {reason}") from error


def read_stream(stream: BinaryIO, *, limit: int = MAX_BYTES) -> str:
    """All text of a stream. NotTextError."""
    parts, left = list[bytes](), limit + 1
    while left and (part := stream.read(min(left, CHUNK))):  # to ask for the most there may be would take that much
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if not left:
        raise NotTextError(f"it has more than {limit >> 20} MiB")
    return decode(data)


def lines(text: str) -> list[str]:
    """The lines of a text, without their ends; an end behind the last one begins no other."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def json_lines(path: Path, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """`read` of the JSON object on every line, empty lines passed over. InputError that names the file and the line."""
    found = []
    for number, line in enumerate(lines(read_text(path)), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, Mapping):
                raise InputError(f"it holds {type(value).__name__}, not an object")
            found.append(read(value))
        except (ValueError, RecursionError, QkvError) as error:
            what = str(error) if isinstance(error, QkvError) else f"it is not JSON: {shorten(str(error))}"
            raise InputError(f"{path}, line {number}: {what}") from error
    if not found:
        raise InputError(f"{path} is empty; write one JSON object a line")
    return found


def refuse_pointer(head: bytes) -> None:
    """NotTextError for what git-lfs leaves where it did not fetch a file, by the first bytes."""
    if head.startswith(_POINTER):
        raise NotTextError("it is a pointer that git-lfs left in place of the file; run: git lfs pull")


def as_utf8(stream: BinaryIO, chunk: int) -> Iterator[bytes]:
    """The bytes of a stream in UTF-8 without a byte order mark, at most `chunk` read at once and as soon as they come.

    NotTextError for bytes that their mark does not allow; UTF-8 itself is not looked at.
    """
    read = cast("Callable[[int], bytes]", getattr(stream, "read1", None) or stream.read)
    head = b""
    while (data := read(chunk)) and any(mark.startswith(head + data) and mark != head + data for mark in MARKS):
        head += data  # the first bytes of a mark, which may still come to more
    head += data
    mark, encoding = _encoding(head)
    head = head[len(mark) :]
    if encoding == "utf-8":
        yield from filter(None, [head])
        while data := read(chunk):
            yield data
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        yield from filter(None, [decoder.decode(head).encode()])
        while data := read(chunk):
            yield from filter(None, [decoder.decode(data).encode()])
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise NotTextError(f"it is not {encoding.upper()} text; save it as UTF-8") from error
