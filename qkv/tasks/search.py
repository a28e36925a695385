"""Finding texts by what they mean: `qkv search QUERY FOLDER`.

query ─ embed ─┐
passages ─ embed, each one once (vectors.py) ─ cosine, or as the model says ─ the nearest first
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qkv import device as devices
from qkv.errors import InputError, shorten
from qkv.index.passages import Passage, Skipped, read_passages
from qkv.index.vectors import VectorCache, cosine, dot, key_of
from qkv.loaded.sentence import Similarity
from qkv.tasks.embed import Embedder, Vectors, load_embedder

CHUNK = 512  # passages whose vectors are kept at once: what an interruption costs at most


@dataclass(frozen=True)
class SearchProgress:
    """`done` of `total` passages have vectors."""

    done: int
    total: int


@dataclass(frozen=True)
class Hit:
    """A passage and how near it is to the query: by the cosine, or as the model says."""

    passage: Passage
    score: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """The nearest passages, the nearest first; of how many; what was passed over, and what was bent."""

    hits: tuple[Hit, ...]
    passages: int
    computed: int
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]


def search(query: str, place: str | Path, **options: object) -> Found:
    """The passages in a file or folder that are nearest to `query`; the options are those of `searching`."""
    *_, found = searching(query, place, **options)  # type: ignore[arg-type]
    assert isinstance(found, Found)
    return found


def searching(
    query: str,
    place: str | Path,
    *,
    top: int = 10,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Iterator[SearchProgress | Found]:
    """`SearchProgress` as vectors are made, then what was found.

    InputError for an empty query, or a place without any text; NotFoundError, CheckpointError, ConfigError.
    """
    check_query(query, top)
    passages, skipped = [], []
    for one in read_passages(Path(place)):
        passages.append(one) if isinstance(one, Passage) else skipped.append(one)
    if not passages:
        why = f": {skipped[0].file.name}: {skipped[0].reason}" if skipped else ""
        raise InputError(f"there is no text in {shorten(str(place))!r}{why}; name a text file, or a folder of them")
    embedder = load_embedder(model, device=device, dtype=dtype, offline=offline)
    with devices.threads(threads):
        asked = embedder.embed([query], "query")
    index = _TextIndex(embedder)
    yield from devices.on_threads(threads, index.fill([passage.text for passage in passages]))
    scores = similarity(index.vectors, asked.vectors[0], embedder.config.similarity)
    order = np.argsort(-scores, kind="stable")[:top]
    yield Found(
        hits=tuple(Hit(passages[i], float(scores[i])) for i in order),
        passages=len(passages),
        computed=index.computed,
        skipped=tuple(skipped),
        warnings=(*asked.warnings, *embedder.warnings(index.cut, index.computed), *index.kept.warnings),
    )


def check_query(query: str, top: int) -> None:
    """InputError unless something is asked for."""
    if not 1 <= top <= 10_000:
        raise InputError(f"top={top} is out of range; it must be 1 to 10000")
    if not query.strip():
        raise InputError("the query is empty; say what to look for")


class _TextIndex:
    """The vectors (N, D) of all passages, out of the store or made and kept now."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.computed = self.cut = 0
        prompt = embedder.prompt("document").encode()
        stamp = f"{embedder.stamp}-{key_of(prompt).hex()}" if prompt else embedder.stamp
        self.kept = VectorCache(embedder.name, stamp, embedder.dim)
        self.vectors = np.empty((0, embedder.dim), np.float32)

    def fill(self, texts: Sequence[str]) -> Iterator[SearchProgress]:
        keys = [key_of(text.encode("utf-8", "replace")) for text in texts]
        of = dict(zip(keys, texts))  # a text that is there twice is computed once
        row = {key: number for number, key in enumerate(of)}
        vectors = np.empty((len(of), self.embedder.dim), np.float32)
        if here := [key for key in of if key in self.kept]:
            vectors[[row[key] for key in here]] = self.kept.get(here)
        missing = sorted(of.keys() - set(here), key=lambda key: (len(of[key]), key))
        yield SearchProgress(len(here), len(of))
        for start in range(0, len(missing), CHUNK):
            some = missing[start : start + CHUNK]
            made = self.embedder.embed([of[key] for key in some], "document")
            vectors[[row[key] for key in some]] = made.vectors
            self.cut += made.cut
            self.computed += len(some)
            self.kept.add(some, made.vectors)
            yield SearchProgress(len(here) + self.computed, len(of))
        self.vectors = vectors[[row[key] for key in keys]]


def similarity(vectors: Vectors, query: Vectors, name: Similarity) -> Vectors:
    """(N, D) and (D,) -> (N,), the greatest the nearest; a distance counts as its negative."""
    if name == "dot":
        return dot(vectors, query)
    if name in ("euclidean", "manhattan"):
        return np.asarray(-np.linalg.norm(vectors - query, ord=1 if name == "manhattan" else 2, axis=1), np.float32)
    return cosine(vectors, query)
