"""Texts as vectors: what they mean, so that texts that mean the same lie close.

    tokens ─ sorted by length ─ texts of one length stacked, so that nothing is padding ─ BERT ─ pooled ─ in your order

Sentence-BERT (1908.10084). How a checkpoint pools, whether it normalises, and how much it reads stand in its own files
(loaded/sentence.py).
On a processor that computes bfloat16 the vectors are made in it: their cosine to float32's is above 0.999.
Left out: layers behind the pooling, several poolings side by side.
"""

import itertools
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from qkv import device as devices
from qkv import registry
from qkv.errors import InputError
from qkv.fetch.pull import find
from qkv.loaded import models
from qkv.loaded.encoder import read_encoder
from qkv.loaded.files import as_folder, stamp
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.sentence import SentenceConfig, read_sentence
from qkv.loaded.where import Where
from qkv.models.bert import Bert, pool_states
from qkv.text.bert import BertTokenizer
from qkv.weights.bert import load_bert
from qkv.weights.folder import Folder

Vectors = npt.NDArray[np.float32]

Kind = Literal["prefix", "query", "document"]  # any text, one to search with, one to search through

BATCH = 4096  # tokens that are computed at once: enough to fill the processor, few enough to stay in its caches


class Embedded(NamedTuple):
    """Some of the texts: their places in the list, and their vectors (rows, D)."""

    rows: list[int]
    vectors: Vectors


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The vectors (N, D) of N texts, how many tokens of each were read, how many texts were cut for it, and that in
    words."""

    vectors: Vectors
    tokens: tuple[int, ...]
    cut: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedder:
    """A model that is ready, and what its folder says about vectors. `context`: the most tokens of a text, with both
    ends; `stamp` tells it from any other model, precision and state of its files."""

    name: str
    tokenizer: BertTokenizer
    bert: Bert
    config: SentenceConfig
    context: int
    stamp: str

    @property
    def bytes(self) -> int:
        return module_bytes(self.bert)

    @property
    def dim(self) -> int:
        return self.bert.config.dim

    def prompt(self, kind: Kind = "prefix") -> str:
        """What comes before texts of this kind."""
        found: str = getattr(self.config, kind)
        return found.lower() if self.config.lower else found

    def read(self, texts: Sequence[str], kind: Kind = "prefix") -> tuple[list[list[int]], int]:
        """The tokens of each text, and how many texts were cut. InputError names an empty one."""
        check_texts(texts)
        given = [self.prompt(kind) + (text.lower() if self.config.lower else text) for text in texts]
        read = self.tokenizer.encode_batch(given)
        long = [row for row, ids in enumerate(read) if len(ids) > self.context]
        for row in long:
            read[row] = [*read[row][: self.context - 1], self.tokenizer.last]
        return read, len(long)

    @torch.inference_mode()
    def compute(self, read: Sequence[list[int]], kind: Kind = "prefix") -> Iterator[Embedded]:
        """The vectors of tokens that `read` gave, a batch at a time, the longest first."""
        unpooled = 0 if self.config.pools_prompt else len(self.tokenizer.encode(self.prompt(kind))) - 1
        device = self.bert.token.weight.device
        for rows in stacks([len(ids) for ids in read]):
            states = self.bert(torch.tensor([read[row] for row in rows], device=device))  # (B, T, D)
            mask = _behind(states, unpooled) if self.prompt(kind) else None
            vectors = pool_states(states.float(), mask, self.config.pooling)  # (B, D)
            vectors = F.normalize(vectors, dim=-1) if self.config.normalise else vectors
            yield Embedded(rows, vectors.cpu().numpy())

    def embed(self, texts: Sequence[str], kind: Kind = "prefix") -> Embeddings:
        """All texts. InputError names an empty one."""
        read, cut = self.read(texts, kind)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for part in self.compute(read, kind):
            vectors[part.rows] = part.vectors
        return Embeddings(
            vectors=vectors, tokens=tuple(map(len, read)), cut=cut, warnings=self.warnings(cut, len(texts))
        )

    def warnings(self, cut: int, texts: int) -> tuple[str, ...]:
        """What a user should hear about texts that were cut."""
        if not cut:
            return self.config.warnings
        said = f"{cut} of {texts} texts have more than {self.context} tokens; only their beginnings were read"
        return (*self.config.warnings, said)


def check_texts(texts: Sequence[str]) -> None:
    """InputError names a text without words."""
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            what = "is empty" if isinstance(text, str) else f"is no text but {type(text).__name__}"
            raise InputError(f"text {number} of {len(texts)} {what}; give texts with words in them")


def _behind(states: torch.Tensor, unpooled: int) -> torch.Tensor | None:
    """(B, T): the states (B, T, D) behind a prompt that is read and not pooled, if they are fewer."""
    if not unpooled:
        return None
    places = torch.arange(states.shape[1], device=states.device) >= min(unpooled, states.shape[1] - 1)
    return places.expand(len(states), -1)


def stacks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that are computed at once: of one length, so that nothing is padding; the longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for length, group in itertools.groupby(order, key=lambda row: lengths[row]):
        rows, most = list(group), max(1, BATCH // length)
        yield from (rows[i : i + most] for i in range(0, len(rows), most))


def embed(
    texts: str | Sequence[str],
    *,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Vectors:
    """One vector (D,) for one text, (N, D) for several, in float32.

    `model` is what `qkv embed --model` takes; the default one is fetched once, unless `offline`. Texts longer than the
    model reads are cut, with a Python warning. InputError, NotFoundError, CheckpointError, ConfigError.
    """
    embedder = load_embedder(model, device=device, dtype=dtype, offline=offline)
    with devices.threads(threads):
        made = embedder.embed([texts] if isinstance(texts, str) else list(texts))
    for warning in made.warnings:
        python_warnings.warn(warning, stacklevel=2)
    return made.vectors[0] if isinstance(texts, str) else made.vectors


def load_embedder(
    model: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> Embedder:
    """The model of that name or in that folder; None is the default one. It stays in memory for the next call.

    NotFoundError, CheckpointError, ConfigError, InputError.
    """
    torch_device = devices.find_device(device)
    name = registry.DEFAULTS["embeddings"] if model is None else model
    path = as_folder(find(name, "embeddings", "fill", offline=offline)).absolute()
    precision = devices.find_dtype(dtype, torch_device)
    return models.get(
        What("embeddings", path), Where.of(torch_device, precision), lambda: _load(path, torch_device, precision)
    )


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Embedder:
    state, said = stamp(path), read_sentence(Folder(path))
    bert, tokenizer, odd = read_encoder(path, load_bert, device, dtype)
    return Embedder(
        name=path.name,
        tokenizer=tokenizer,
        bert=bert,
        config=replace(said, warnings=(*said.warnings, *odd)),
        context=min(said.context or bert.config.context, bert.config.context),
        stamp=f"{state}-{str(dtype).removeprefix('torch.')}",
    )
