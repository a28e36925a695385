"""Models on the Hugging Face hub, by `owner/name`, `owner/name@revision` or `owner/name/FILE.gguf`.

Place: the other way in of `pull`. Files go where the hub's own client keeps them and every other tool looks (HF_HOME;
HF_TOKEN and HF_ENDPOINT count too), so what transformers fetched is here already, and the reverse. The configuration
comes last: a folder without it is no model, so a cut download leaves nothing that loads.

Left out: pickles, single-file checkpoints, ONNX and other frameworks' weights, the safety checker. A connection that
breaks is taken up again where it broke; a later run begins the broken file anew and keeps the whole ones (the client
gives every download a file of its own).
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qkv.errors import CheckpointError, MissingDependencyError, NotFoundError, QkvError, shorten
from qkv.registry import CONFIG, INDEX, parts

TEXTS = (".json", ".txt", ".jinja", ".spm")  # configuration, vocabulary, chat template, pieces
CARDS = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
STEMS = ("model", "diffusion_pytorch_model")  # of weights, as `Folder` reads them
SKIPPED = ("safety_checker", "feature_extractor", "onnx", "original")
TIMEOUT = 15.0  # seconds for an answer of the hub about a model


@dataclass(frozen=True)
class Id:
    """A model of the hub, or one GGUF file of it."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class Offer:
    """The files that the hub has under an id, the configuration last, each with its SHA-256 if the hub knows it."""

    id: Id
    commit: str
    files: dict[str, str | None]
    bytes: int  # that are not here yet
    licence: str


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}))?(?:/(?P<file>{_NAME}\.gguf))?")


def parse(text: str) -> Id | None:
    """The id that `text` spells, or None."""
    match = _ID.fullmatch(text)
    return Id(match["repo"], match["revision"] or "main", match["file"]) if match else None


def wanted(what: str, names: Iterable[str]) -> list[str]:
    """Which of a model's files we read, the one last that makes it a model. Raises CheckpointError if it is none."""
    names = sorted(names)
    mark = next((name for name in (INDEX, CONFIG) if name in names), None)
    chosen = [name for name in names if _readable(name, pipeline=mark == INDEX)]
    chosen = [name for name in chosen if name == _plain(name) or _plain(name) not in chosen]
    weights = [name for name in chosen if name.endswith(".safetensors")]
    if mark is None or not weights:
        raise CheckpointError(_nothing(what, names, mark))
    for (name, shards), found in _shards(weights).items():
        if found < shards:
            raise CheckpointError(f"{what} is not complete: of {name} there are {found} shards of {shards}")
    return [*(name for name in chosen if name != mark), mark]


def _readable(name: str, *, pipeline: bool) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 2 or path.is_absolute() or ".." in path.parts or path.parts[0] in SKIPPED:
        return False
    if path.suffix == ".safetensors":  # at a pipeline's top lie single-file checkpoints, which hold it all once more
        return path.name.startswith(STEMS) and not (pipeline and len(path.parts) == 1)
    return path.suffix in TEXTS or name in CARDS


def _plain(name: str) -> str:
    """The name without its variant: `unet/model.fp16.safetensors` and its like are second copies."""
    return re.sub(r"\.\w+(?=(-\d{5}-of-\d{5})?\.safetensors)|(?<=\.index)\.\w+(?=\.json)", "", name)


def _shards(weights: list[str]) -> Counter[tuple[str, int]]:
    """How many shards are there of each file of weights, by its name and how many it says that it has."""
    matches = (re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.safetensors", name) for name in weights)
    return Counter((match[1], int(match[2])) for match in matches if match)


def _nothing(what: str, names: list[str], mark: str | None) -> str:
    if ggufs := _some(names, ".gguf"):
        return f"{what} holds GGUF files, of which one must be named, as {what}/FILE: {ggufs}"
    if mark and (pickles := _some(names, ".bin", ".pt", ".pth", ".ckpt")):
        return f"{what} has its weights as pickles only ({pickles}), which can run code; safetensors are needed"
    return f"{what} is not a model that we read: it has no {CONFIG} or {INDEX} with safetensors beside it"


def _some(names: Iterable[str], *endings: str) -> str:
    return ", ".join([shorten(name) for name in names if name.endswith(endings)][:8])


def cached(id: Id) -> Path | None:
    """The model's folder, or the GGUF file, in the hub's cache if it is there whole. Never uses the network."""
    if id.file and not all(_kept(id.repo, name, id.revision) for name in parts(id.file)):
        return None
    for name in (id.file,) if id.file else (INDEX, CONFIG):
        if path := _kept(id.repo, name, id.revision):
            return path if id.file else _whole(path.parent)
    return None


def _kept(repo: str, name: str, revision: str) -> Path | None:
    path = _client().try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) else None  # else None, or a mark that the hub hasn't got it


def _whole(folder: Path) -> Path | None:
    try:
        wanted(folder.name, [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()])
    except CheckpointError:  # another tool wanted less of it, or was stopped
        return None
    return folder


def ask(id: Id) -> Offer:
    """The hub's offer under that id. Raises NotFoundError, CheckpointError, MissingDependencyError."""
    client = _client()
    try:
        info = client.HfApi().model_info(id.repo, revision=id.revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:  # the client's transport, and with it the errors, changed from version to version
        raise _worded(id, error) from error
    found = {file.rfilename: file for file in info.siblings or ()}
    if id.file and id.file not in found:
        raise NotFoundError(f"{id.repo} has no file {id.file}; its GGUF files: {_some(found, '.gguf') or 'none'}")
    names = [*(name for name in parts(id.file) if name != id.file), id.file] if id.file else wanted(id.repo, found)
    if absent := [name for name in names if name not in found]:
        raise NotFoundError(f"{id} is split, and {id.repo} has not all of its parts: no {shorten(', '.join(absent))}")
    commit = str(info.sha)
    missing = sum(found[name].size or 0 for name in names if not _kept(id.repo, name, commit))
    files = {name: getattr(found[name].lfs, "sha256", None) for name in names}
    licences = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return Offer(id, commit, files, missing, licences[0] if licences else "no licence named")


def place() -> Path:
    """The folder in which the hub's client keeps models."""
    return Path(_client().constants.HF_HUB_CACHE)


def fetch(offer: Offer, *, progress: bool) -> Path:
    """Every file of the offer into the hub's cache, verified; the model's folder, or the GGUF file.

    In one thread, so that Ctrl-C ends it at once. Raises NotFoundError, CheckpointError; OSError if the disk fails.
    """
    client, id = _client(), offer.id
    bar = None if progress else _silent(client.utils.tqdm)
    path = Path()
    for name, sha256 in offer.files.items():
        # By the commit, so that all are of one version. The last by its branch, which is what `cached` looks up.
        last = name == next(reversed(offer.files))
        try:
            got = client.hf_hub_download(id.repo, name, revision=id.revision if last else offer.commit, tqdm_class=bar)
        except Exception as error:
            raise _worded(id, error) from error
        path = Path(got)
        if sha256 and _sha256(path) != sha256:
            os.unlink(os.path.realpath(path))
            raise CheckpointError(f"{id}: {name} came damaged, with another SHA-256 than the hub says; pull it again")
    if not id.file and path.parent.name != offer.commit:
        raise CheckpointError(f"{id} was changed on the hub in the meantime; pull it again")
    return path if id.file else path.parent


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(tqdm: Any) -> Any:
    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

    return Silent


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub is not installed; run: pip install huggingface_hub") from error
    return huggingface_hub


def _worded(id: Id, error: Exception) -> Exception:
    """The hub client's error as one line of ours."""
    errors = _client().errors
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return NotFoundError(f"{id} is gated: accept its terms on its page on the hub and set HF_TOKEN to your token")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"{id.repo} has no revision {id.revision!r} on the hub")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return NotFoundError(f"{id} is not on the hub, or private: check the name, or set HF_TOKEN to your token")
    if isinstance(error, QkvError | MemoryError):
        return error
    if isinstance(error, OSError) and error.errno and status is None and not isinstance(error, ConnectionError):
        return error  # of the disk
    reason = f"it answered {status}" if status else f"{type(error).__name__}: {error}"
    return NotFoundError(f"cannot fetch {id} from the hub: {shorten(reason, 200)}; check the network and HF_ENDPOINT")
