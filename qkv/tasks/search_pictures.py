"""Finding pictures by words or by a picture: `qkv search QUERY FOLDER`.

query ─ text tower or picture tower ─┐
pictures ─ picture tower, each one once (vectors.py) ─ cosine ─ the nearest first ─ a contact sheet

A picture's vector is kept under the hash of its file's content, a batch at a time, so that a search that was broken off
goes on where it was, and a file that was moved is not computed again. Bad pictures are named and passed over.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from qkv import device as devices
from qkv.atomic import replacing
from qkv.errors import InputError, shorten
from qkv.index.passages import Skipped
from qkv.index.vectors import VectorCache, Vectors, cosine, key_of
from qkv.pictures.files import (
    SHEET,
    Opened,
    PictureFile,
    UnreadableError,
    decode,
    find_pictures,
    open_picture,
    picture_named,
    read_file,
    thumbnail,
)
from qkv.pictures.sheet import contact_sheet
from qkv.tasks.embed_clip import ClipEmbedder, Pixels, load_clip_embedder
from qkv.tasks.search import SearchProgress, check_query

CHUNK = 64  # pictures that are read, computed and kept at once: what an interruption costs at most
SHOWN = 100  # pictures on a contact sheet
SIDE = 160  # pixels of each


@dataclass(frozen=True)
class PictureHit:
    """A picture's file and its cosine to the query."""

    file: Path
    score: float


@dataclass(frozen=True, kw_only=True)
class FoundPictures:
    """The nearest pictures, the nearest first; of how many; how many were computed now, and not out of the store; what
    was passed over, and what was bent."""

    hits: tuple[PictureHit, ...]
    pictures: int
    computed: int
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    def sheet(self) -> Image.Image:
        """The first 100 of them on a contact sheet, their cosines and names under them. InputError if all are gone."""
        shown = [(hit, one) for hit in self.hits[:SHOWN] if (one := _small(hit.file))]
        if not shown:
            raise InputError("no picture that was found can be read any more; search again")
        captions = [f"{hit.score:.3f} {hit.file.name}" for hit, _ in shown]
        return contact_sheet([one for _, one in shown], captions, columns=5)


def search_pictures(query: str | Path, place: str | Path, **options: object) -> FoundPictures:
    """The pictures in a folder that are nearest to `query`, words or a picture's file; the options are those of
    `searching_pictures`."""
    *_, found = searching_pictures(query, place, **options)  # type: ignore[arg-type]
    assert isinstance(found, FoundPictures)
    return found


def searching_pictures(
    query: str | Path,
    place: str | Path,
    *,
    top: int = 10,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Iterator[SearchProgress | FoundPictures]:
    """`SearchProgress` as vectors are made, then what was found. `model` is a CLIP's folder or name; None: what ships.

    A query that is the name of a picture's file is that picture; else it is words. InputError for an empty query, or a
    place without any picture; NotFoundError, CheckpointError, ConfigError.
    """
    check_query(str(query), top)
    files, skipped = [], []
    for one in find_pictures(Path(place)):
        files.append(one.file) if isinstance(one, PictureFile) else skipped.append(one)
    if not files:
        raise _nothing(place, skipped)
    named = picture_named(str(query))
    seen = None if named is None else open_picture(named)
    embedder = load_clip_embedder(model, device=device, dtype=dtype, offline=offline)
    with devices.threads(threads):
        asked, warnings = _ask(embedder, str(query), seen)
    index = _PictureIndex(embedder)
    yield from devices.on_threads(threads, index.fill(files))
    if not index.files:
        raise _nothing(place, [*skipped, *index.skipped])
    scores = cosine(index.vectors, asked)
    order = np.argsort(-scores, kind="stable")[:top]
    yield FoundPictures(
        hits=tuple(PictureHit(index.files[i], float(scores[i])) for i in order),
        pictures=len(index.files),
        computed=index.computed,
        skipped=(*skipped, *index.skipped),
        warnings=(*warnings, *index.warnings()),
    )


def _nothing(place: str | Path, skipped: Sequence[Skipped]) -> InputError:
    why = f": {shorten(skipped[0].file.name)}: {skipped[0].reason}" if skipped else ""
    return InputError(f"there is no picture in {shorten(str(place))!r}{why}; name a folder with PNG, JPEG, WebP files")


def _ask(embedder: ClipEmbedder, query: str, seen: Opened | None) -> tuple[Vectors, tuple[str, ...]]:
    """The query's vector (P,), and what was bent or left out."""
    if seen is not None:
        return embedder.embed_pixels([embedder.see(seen.image)])[0], embedder.warnings(0)
    read = embedder.embed_texts([query])
    return read.vectors[0], embedder.warnings(read.cut)


class _Seen(NamedTuple):
    """A file as it was read: its key, and unless its vector was there already, what the tower reads."""

    key: bytes
    pixels: Pixels | None
    animated: bool


class _PictureIndex:
    """The pictures that can be read, `files`, and their vectors (N, P), out of the store or made and kept now."""

    def __init__(self, embedder: ClipEmbedder) -> None:
        self.embedder = embedder
        self.files: list[Path] = []
        self.skipped: list[Skipped] = []
        self.computed = self.animated = 0
        self.kept = VectorCache(embedder.name, embedder.stamp, embedder.dim)
        self.vectors = np.empty((0, embedder.dim), np.float32)

    def fill(self, files: Sequence[Path]) -> Iterator[SearchProgress]:
        yield SearchProgress(0, len(files))
        parts = [self.vectors]
        with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:  # decoding leaves Python's lock alone
            for start in range(0, len(files), CHUNK):
                parts.append(self._take(files[start : start + CHUNK], pool))
                yield SearchProgress(min(start + CHUNK, len(files)), len(files))
        self.vectors = np.concatenate(parts)

    def _take(self, files: Sequence[Path], pool: ThreadPoolExecutor) -> Vectors:
        """The vectors of those of the files that can be read."""
        read: list[_Seen] = []
        looked = list(pool.map(self._look, files))
        for file, one in zip(files, looked):
            if isinstance(one, Skipped):
                self.skipped.append(one)
            else:
                read.append(one)
                self.files.append(file)
                self.animated += one.animated
        missing = {one.key: one.pixels for one in read if one.pixels is not None}  # equal files are computed once
        made = self.embedder.embed_pixels(list(missing.values()))
        if here := [one.key for one in read if one.pixels is None]:
            known = dict(zip(here, self.kept.get(here)))
        else:
            known = {}
        self.kept.add(list(missing), made)
        self.computed += len(missing)
        known |= dict(zip(missing, made))
        return np.array([known[one.key] for one in read], np.float32).reshape(-1, self.embedder.dim)

    def _look(self, file: Path) -> _Seen | Skipped:
        try:
            data = read_file(file)
            key = key_of(data)
            if key in self.kept:
                return _Seen(key, None, False)
            opened = decode(data)
            return _Seen(key, self.embedder.see(opened.image), opened.animated)
        except UnreadableError as error:
            return Skipped(file, str(error))
        except InputError as error:
            return Skipped(file, str(error).rpartition(": ")[2])

    def warnings(self) -> list[str]:
        """What a user should hear."""
        moving = [f"{self.animated} pictures are animated; only their first frames were looked at"]
        return [*(moving if self.animated else ()), *self.kept.warnings]


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a contact sheet as a PNG file that `find_pictures` knows for what it is. OutputError."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*SHEET)
    with replacing(path) as file:
        sheet.save(file, format="PNG", pnginfo=mark)


def _small(file: Path) -> Image.Image | None:
    """A picture for the sheet, unless it is gone or was changed meanwhile."""
    try:
        return thumbnail(open_picture(file).image, SIDE)
    except InputError:
        return None
