"""Vectors on disk under the hash of what they are vectors of, so that nothing is computed twice; and how near they are.

Two files grow at their ends: `vectors`, then `keys`. Only rows with a key count, so a process that is killed in between
leaves a tail that the next one writes over, and an index that was broken off goes on where it was. One process
writes at a time; others wait. A store belongs to one model in one state: its folder's name says which.
Left out: forgetting what is not asked for any more (the folder may be deleted at any time), and approximate search,
which pays from about a million vectors on.
"""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qkv import registry
from qkv.errors import CheckpointError, OutputError

Vectors = npt.NDArray[np.float32]
KEY = 16  # bytes


def key_of(content: bytes) -> bytes:
    """The key that a content is found by."""
    return hashlib.blake2b(content, digest_size=KEY).digest()


def cosine(vectors: Vectors, query: Vectors) -> Vectors:
    """How near each of (N, D) is to (D,): (N,)."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.asarray(dot(vectors, query) / np.maximum(lengths, 1e-12), np.float32)


def dot(vectors: Vectors, query: Vectors) -> Vectors:
    """(N, D) and (D,) -> (N,). The bits of vectors @ query are others for another N."""
    return np.asarray(np.einsum("nd,d->n", vectors, query), np.float32)


def store_folder(model: str, stamp: str) -> Path:
    """Where the vectors of a model lie, in the data home."""
    return registry.home() / "vectors" / f"{model}-{stamp}"


class VectorStore:
    """The vectors of width `dim` in a folder, which is made at the first `add`. CheckpointError if it is broken."""

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        self._rows: dict[bytes, int] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def get(self, keys: Sequence[bytes]) -> Vectors:
        """(N, D), for keys that are all here."""
        rows = [self._rows[key] for key in keys]
        if not rows:
            return np.empty((0, self.dim), np.float32)
        mapped = np.memmap(self.folder / "vectors", np.float32, "r", shape=(max(rows) + 1, self.dim))
        return np.asarray(mapped[rows])

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keeps (N, D) vectors under N keys; what another process kept meanwhile is kept. OutputError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "keys").open("ab") as names, (self.folder / "vectors").open("ab") as values:
                fcntl.flock(names, fcntl.LOCK_EX)
                self._read()
                new = {key: vector for key, vector in zip(keys, vectors, strict=True) if key not in self._rows}
                count = os.fstat(names.fileno()).st_size // KEY
                _append(values, count * self.dim * 4, np.ascontiguousarray(list(new.values()), np.float32).tobytes())
                _append(names, count * KEY, b"".join(new))
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from error
        self._rows |= {key: count + i for i, key in enumerate(new)}

    def _read(self) -> None:
        """Takes up the keys that are not known yet."""
        path, known = self.folder / "keys", len(self._rows)
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(known * KEY)
            data = file.read()
        added = len(data) // KEY
        size = (self.folder / "vectors").stat().st_size if (self.folder / "vectors").is_file() else 0
        if size < (known + added) * self.dim * 4:
            raise CheckpointError(f"{self.folder} is broken: fewer vectors than keys; delete it, and it is made again")
        self._rows |= {data[i * KEY : (i + 1) * KEY]: known + i for i in range(added)}


class VectorCache:
    """The store of a model, as far as there can be one: where it is broken or cannot be written, `warnings` says so
    and nothing is kept."""

    def __init__(self, model: str, stamp: str, dim: int) -> None:
        self.warnings: list[str] = []
        self._store: VectorStore | None = None
        try:
            self._store = VectorStore(store_folder(model, stamp), dim)
        except (CheckpointError, OSError) as error:
            self._give_up(error)

    def __contains__(self, key: bytes) -> bool:
        return self._store is not None and key in self._store

    def get(self, keys: Sequence[bytes]) -> Vectors:
        """(N, D), for keys that are all here."""
        assert self._store is not None
        return self._store.get(keys)

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keeps (N, D) vectors under N keys, if it can."""
        if self._store is not None:
            try:
                self._store.add(keys, vectors)
            except OutputError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._store = None
        self.warnings.append(f"the vectors are not kept for the next search: {error}")


def _append(file: BinaryIO, end: int, data: bytes) -> None:
    """Writes at `end`, over what a killed process left there."""
    file.truncate(end)
    file.write(data)
    file.flush()
