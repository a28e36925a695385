"""Which models are here, by name: the shipped ones (a row each) and those in the user's data home.

A name is looked up in these listings and never joined to a path, so `../../x` is just a name that nobody has. Only
`resolve`, for people at a keyboard, also takes a folder. Nothing here imports torch: `qkv models` answers at once.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qkv.errors import InputError, NotFoundError, OutputError, shorten, unknown

ASSETS = Path(__file__).with_name("assets")
INDEX = "model_index.json"  # what a pipeline's folder has


@dataclass(frozen=True)
class Shipped:
    """A model that comes with the package."""

    folder: str  # under assets/
    licence: str
    about: str


SHIPPED = {
    "emblem": Shipped("emblem", "Apache-2.0", "draws emoji-like pictures of 128 x 128 from a text"),
}


@dataclass(frozen=True)
class Model:
    """A model that is here."""

    name: str
    path: Path
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
    return [*_shipped(), *_own()]


def _shipped() -> Iterator[Model]:
    for name, row in SHIPPED.items():
        path = ASSETS / row.folder
        if (path / INDEX).is_file():
            yield Model(name, path, _size(path), row.licence, shipped=True)


def _own() -> Iterator[Model]:
    folder = home() / "models"
    try:
        found = sorted(path for path in folder.iterdir() if path.name not in SHIPPED and (path / INDEX).is_file())
    except OSError:  # there is none yet, or it may not be read
        return
    for path in found:
        yield Model(path.name, path, _size(path), _licence(path), shipped=False)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _licence(path: Path) -> str:
    """The `license:` line of the model card's front matter."""
    try:
        with (path / "README.md").open(encoding="utf-8", errors="replace") as card:
            found = re.search(r"^license:\s*(\S+)", card.read(1 << 14), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else "unknown"


def named(name: str) -> Path:
    """The folder of the model of that name. Raises NotFoundError, with the nearest names."""
    here = {model.name: model.path for model in listing()}
    if name in SHIPPED and name not in here:
        raise NotFoundError(f"the model {name} is not in this installation: {ASSETS / SHIPPED[name].folder} is missing")
    if name not in here:
        raise NotFoundError(unknown("model", name, {*SHIPPED, *here}))
    return here[name]


def resolve(name_or_folder: str | Path) -> Path:
    """The folder of a model by its name, or the folder itself; a name wins over a folder of that name.

    Raises NotFoundError.
    """
    text = os.fspath(name_or_folder)
    is_name = isinstance(name_or_folder, str) and (text in SHIPPED or any(text == model.name for model in _own()))
    if is_name or not os.path.isdir(text):
        if os.sep in text:
            raise NotFoundError(f"there is no model folder {shorten(text)!r}; `qkv models` lists what is here")
        return named(text)
    return Path(text)


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
