"""Files from strangers, opened for reading: regular ones only, so that none can hang, act or grow while it is read.

Under the readers of safetensors, GGUF and folders; torch-free, since a GGUF file is read without it.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qkv.errors import CheckpointError, shorten
from qkv.textfiles import refuse_pointer


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """`path` opened for reading if it is a regular file, never waiting for a pipe or a device. CheckpointError else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: opening alone makes some devices act
            raise CheckpointError(f"{path} is not a regular file")
        # Without waiting, and looking again, in case the file was exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            refuse_pointer(file.peek(64))
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot read {shorten(repr(str(path)), 200)}: {reason}") from error
