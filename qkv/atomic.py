"""Files and folders that are there whole or not at all: made under a hidden name beside their own, flushed to the disk,
renamed.

Place: on the ground, under every room that writes. A killed process leaves what was there before, and at most a hidden
`.NAME.*.part` beside it.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qkv.errors import OutputError

PARTS = ".*.part"  # the pattern of what killed processes left


def write_file(path: Path, data: bytes) -> None:
    """`data` as the file `path`, there whole or not at all; its folder is made if need be. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends: it is there whole or not at all.

    If the block raises, or the disk is full, what was at `path` stays and nothing is left beside it. OSError
    becomes OutputError.
    """
    part = _part(path)
    try:
        try:
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        with contextlib.suppress(PermissionError):  # of a folder that may be written into, but not read
            _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False, advice: str = "") -> Iterator[Path]:
    """An empty folder that becomes `path` when the block ends, with all that was put into it; parents are made.

    If the block raises, nothing is left and what was at `path` stays. What is at `path` when the block ends goes if
    `replace`, else that is an error. OSError becomes OutputError, and `advice` ends its message.
    """
    part = _part(path)
    try:
        part.mkdir(parents=True)
        yield part
        for made in (*part.rglob("*"), part):
            _flush(made)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        _flush(path.parent)
    except OutputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _cannot_write(path, error.__cause__, advice) from error  # the same without the hidden name
    except OSError as error:
        raise _cannot_write(path, error, advice) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cannot_write(path: Path, error: OSError, advice: str = "") -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}{advice}")


def _part(path: Path) -> Path:
    # A name has at most 255 bytes, and a character up to 4 of them.
    return path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}.part")


def _flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk: else a power cut could undo a renaming, or
    leave the name without the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
