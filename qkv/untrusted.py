"""Files from strangers, opened and read: regular ones only and bounded, so that none hangs, acts or grows meanwhile.

Under every reader of models, tokenizers and pictures; torch-free, since a GGUF file is read without it.
"""

import contextlib
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from qkv.errors import CheckpointError, shorten
from qkv.textfiles import refuse_pointer

Header = TypeVar("Header")

MAX_BYTES = 24 << 20  # of a text; the longest published tokenizers have 17 MB. As JSON it may grow twentyfold in memory


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """`path` opened for reading if it is a regular file, never waiting for a pipe or a device. CheckpointError else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: opening alone makes some devices act
            raise CheckpointError(f"{_shown(path)} is not a regular file")
        # Without waiting, and looking again, in case the file was exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{_shown(path)} is not a regular file")
            refuse_pointer(file.peek(64))
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot read {_shown(path)}: {reason}") from error


def map_regular(path: Path, read: Callable[[BinaryIO, int], Header], access: int) -> tuple[mmap.mmap, Header]:
    """The bytes of a regular file, mapped, and what `read` makes of its start, given the file and its size.

    CheckpointError as `open_regular`, and if the file changes meanwhile.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        header = read(file, before.st_size)
        mapped = mmap.mmap(file.fileno(), before.st_size, access=access)
        now = path.stat()
        if (before.st_ino, before.st_size, before.st_mtime_ns) != (now.st_ino, now.st_size, now.st_mtime_ns):
            raise CheckpointError(f"{path} changed while it was opened; load it again once it is complete")
    return mapped, header


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file. CheckpointError if it has more than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{_shown(path)} is larger than {limit:,} bytes, which are read at most")
    return data


def read_text(path: Path) -> str:
    """The text of a file. CheckpointError."""
    try:
        return read_bytes(path, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{_shown(path)} is not UTF-8 text; get it again") from error


def read_json(
    path: Path, *, optional: bool = False, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The JSON object in a file, {} for none where it is `optional`. CheckpointError.

    Of a key that is there twice the last counts, as in the publishers' own readers, unless `pairs` refuses it. `NaN`
    and `Infinity` pass, since published configurations hold them.
    """
    if optional and not path.is_file():
        return {}
    return parse_json(read_text(path), _shown(path), pairs)


def parse_json(
    text: str | bytes, where: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The JSON object that `where` holds. CheckpointError."""
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else shorten(str(error), 200)
        raise CheckpointError(f"{where} is not JSON that can be read: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds {type(value).__name__}, not a JSON object; get it again")
    return value


def _shown(path: Path) -> str:
    return shorten(str(path), 200)
