"""A model's files: when they were last changed, how large its weights are, and what they hold.

A stamp costs a look at each file's size and time, and decides whether what is in memory is still what lies there. A
fingerprint is of the content, every byte of every file that decides a result, and tells models apart for good: copies
have the same, on any machine. Large files are hashed once; the hashes are kept in the data home.
"""

import contextlib
import hashlib
import os
from collections import defaultdict
from pathlib import Path

from qkv import registry
from qkv.atomic import write_file
from qkv.errors import CheckpointError, OutputError

WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"}
DIGITS = 12  # of a fingerprint
KEPT = 1 << 20  # bytes from which on a file's hash is worth keeping
_TELLING_NOTHING = {registry.SOURCE, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", ".gitattributes"}


def as_folder(path: Path) -> Path:
    """CheckpointError unless there is a folder."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a model folder; give a folder with {registry.CONFIG}")
    return path


def files_of(path: Path) -> list[Path]:
    """A model's files: those in its folder and in the folders there, or the one file."""
    if not path.is_dir():
        return [path]
    return sorted(file for level in ("*", "*/*") for file in path.glob(level) if file.is_file())


def stamp(*paths: Path) -> str:
    """What changes if a file of a model is changed, comes or goes."""
    return "-".join(map(_stamp, paths))


def _stamp(path: Path) -> str:
    status = [(file, file.stat()) for file in files_of(path)]
    facts = [(str(file), known.st_size, known.st_mtime_ns) for file, known in status]
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


def weight_bytes(*paths: Path) -> int:
    """About how large a model is: its files of weights. Of weights in several formats, those of the largest."""
    found: dict[tuple[Path, str], int] = defaultdict(int)
    for path in paths:
        for file in files_of(path):
            if file.suffix in WEIGHTS:
                found[path, file.suffix] += file.stat().st_size
    return sum(max((size for (of, _), size in found.items() if of == path), default=0) for path in paths)


def fingerprint(path: Path, *, without: str | None = None) -> str:
    """Tells a model from any other by what its files hold: weights, configurations, scheduler and tokenizer, but for
    those in the folder `without`."""
    found = hashlib.sha256()
    for file in files_of(path):
        left_out = without is not None and file.parent == path / without
        if file.name not in _TELLING_NOTHING and not left_out:
            name = file.relative_to(path).as_posix() if path.is_dir() else ""
            found.update(f"{name}\0{_hash(file)}\n".encode())
    return found.hexdigest()[:DIGITS]


def _hash(file: Path) -> str:
    """The SHA-256 of a file's content, out of the data home unless it is small, or was changed."""
    known = file.stat()
    if known.st_size < KEPT:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    state = (str(file.absolute()), known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
    kept = registry.home() / "hashes" / hashlib.sha256(repr(state).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        if len(digest := kept.read_text("ascii")) == 64:
            return digest
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if os.stat(file).st_ctime_ns == known.st_ctime_ns:
        with contextlib.suppress(OutputError):  # the data home may be read-only: then it is hashed again
            write_file(kept, digest.encode())
    return digest
