"""Debian packages as data: fetched by the user's own apt, taken apart here, never installed.

We name no mirror, and apt checks each package against the lists that its distribution signed: so no hashes stand here,
and a newer version of Debian gives newer files. deb(5): an `ar` archive that holds the files as a tarball.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qkv.atomic import new_folder
from qkv.errors import CheckpointError, MissingDependencyError, NotFoundError, shorten
from qkv.fetch.notice import announce


def fetch(packages: Sequence[str], cache: Path) -> dict[str, Path]:
    """A folder under `cache` with the files of each package, named by its version; fetched if it is not there yet.

    Raises MissingDependencyError without apt-get, NotFoundError if apt cannot fetch, CheckpointError if what it fetched
    cannot be read, OutputError if `cache` cannot be written.
    """
    missing = [package for package in packages if _newest(package, cache) is None]
    if missing:
        with tempfile.TemporaryDirectory(prefix="qkv-") as scratch:
            for archive in _download(missing, Path(scratch), cache):
                name, version, _ = archive.stem.split("_")
                with new_folder(cache / f"{name}_{version}", replace=True) as made:
                    unpack(archive, made)
    found = {package: _newest(package, cache) for package in packages}
    return {package: path for package, path in found.items() if path is not None}


def _newest(package: str, cache: Path) -> Path | None:
    return max(cache.glob(f"{package}_*"), default=None, key=lambda path: path.stat().st_mtime)


def unpack(archive: Path, folder: Path) -> Path:
    """The files of a .deb in the new `folder`. Raises CheckpointError."""
    try:
        with archive.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise CheckpointError(f"{archive.name} is not a Debian package")
            while len(head := file.read(60)) == 60:  # name (16), ..., size (10) at 48
                size, start = int(head[48:58]), file.tell()
                if start + size > archive.stat().st_size:
                    raise CheckpointError(f"{archive.name} is cut; fetch it again")
                if head[:16].startswith(b"data.tar"):
                    with tarfile.open(fileobj=file, mode="r|*") as files:
                        files.extractall(folder, filter="data")  # refuses paths and links that lead out
                    return folder
                file.seek(start + size + size % 2)
    except (tarfile.TarError, EOFError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(f"cannot unpack {archive.name}: {shorten(str(error))}") from error
    raise CheckpointError(f"{archive.name} holds no files")


def _download(packages: Sequence[str], scratch: Path, cache: Path) -> list[Path]:
    if os.environ.get("NPM_CONFIG_OFFLINE") == "true":  # --offline
        raise NotFoundError(f"{' '.join(packages)} is not here yet, and the network may not be used")
    apt = shutil.which("apt-get")
    if apt is None:
        raise MissingDependencyError("apt-get is not installed: this data comes out of Debian's packages")
    sizes = [line.split()[2] for line in _run(apt, "--print-uris", *packages, cwd=scratch).stdout.splitlines()]
    announce(" ".join(packages), sum(map(int, filter(str.isdigit, sizes))), "Debian", cache)
    result = _run(apt, *packages, cwd=scratch)
    archives = list(scratch.glob("*.deb"))
    if result.returncode != 0 or len(archives) != len(packages):
        reason = next((line for line in result.stderr.splitlines() if line.startswith("E:")), "nothing was written")
        raise NotFoundError(
            f"apt-get cannot fetch {' '.join(packages)}: {shorten(reason)}; check the network and run: apt-get update"
        )
    return archives


def _run(apt: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [apt, "download", *arguments],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
