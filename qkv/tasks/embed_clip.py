"""Pictures and texts as vectors in one space, so that a picture lies near the words for it.

    picture ─ preprocess ─ picture tower ─┐
    text ─ tokens ─ text tower ───────────┴─ cosine

CLIP (2103.00020), section 2.3. The model that ships is the one whose text tower reads emblem's prompts: that tower and
its tokenizer lie in emblem's folder. Left out: prompts around a label ("a photo of a ..."): texts are read as given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from qkv import device as devices
from qkv import registry
from qkv.errors import CheckpointError
from qkv.fetch.pull import find
from qkv.index.vectors import Vectors
from qkv.loaded import models
from qkv.loaded.files import as_folder, stamp
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.models.clip import CLIP
from qkv.models.packed import place
from qkv.models.preprocess import Preprocess
from qkv.pictures.files import to_rgb
from qkv.tasks.embed import check_texts, stacks
from qkv.text.tokenizer import Tokenizer
from qkv.weights import open_clip
from qkv.weights.clip import load_clip, unknown_keys
from qkv.weights.folder import Folder
from qkv.weights.preprocess import read_preprocess
from qkv.weights.preprocess import unknown_keys as unknown_preprocess_keys

Pixels = npt.NDArray[np.float32]  # (3, Y, X), as the picture tower reads them

SHIPPED, TEXTS = registry.ASSETS / "clip", registry.ASSETS / "emblem"
WAY = 1  # from a file to what the tower reads; another number makes vectors that are kept be made again
BATCH = 32  # pictures that are computed at once


class Read(NamedTuple):
    """The vectors (N, P) of N texts, and how many of them were longer than the tower reads."""

    vectors: Vectors
    cut: int


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipEmbedder:
    """Both towers, ready. `stamp` tells them from any others, other precisions and other states of their files."""

    name: str
    clip: CLIP
    tokenizer: Tokenizer
    preprocess: Preprocess
    stamp: str
    unknown: tuple[str, ...] = ()  # warnings: what its files say that is not known here

    @property
    def bytes(self) -> int:
        return module_bytes(self.clip)

    @property
    def dim(self) -> int:
        assert self.clip.text.config.proj_dim
        return self.clip.text.config.proj_dim

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return math.exp(self.clip.log_scale.item())

    def see(self, image: Image.Image) -> Pixels:
        """A picture, in any mode, as the tower reads it."""
        return self.preprocess(to_rgb(image))

    @torch.inference_mode()
    def embed_pixels(self, pixels: Sequence[Pixels]) -> Vectors:
        """N seen pictures as (N, P), of length 1."""
        made = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.stack(pixels[start : start + BATCH])).to(self._parameter)  # (B, 3, Y, X)
            made.append(self.clip.vision.embed(batch).float().cpu().numpy())
        return _normed(np.concatenate(made))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Read:
        """N texts as (N, P), of length 1. InputError names an empty one."""
        check_texts(texts)
        read = [self.tokenizer.encode(text) for text in texts]
        cut = sum(len(ids) > self._room for ids in read)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for rows in stacks([min(len(ids), self._room) + 2 for ids in read]):
            ids = self.tokenizer.rows([read[row] for row in rows], self._room + 2)  # (B, T)
            made = self.clip.text.embed(torch.from_numpy(ids).to(self._parameter.device))
            vectors[rows] = made.float().cpu().numpy()
        return Read(_normed(vectors), cut)

    @property
    def _room(self) -> int:
        context = self.clip.text.config.context
        return min(context, self.tokenizer.context or context) - 2  # beside start and end

    def warnings(self, cut: int) -> tuple[str, ...]:
        """What a user should hear: about the model's files, and texts that were cut."""
        if not cut:
            return self.unknown
        return (
            *self.unknown,
            f"{cut} of the texts have more than {self._room} tokens; only their beginnings were read",
        )

    @property
    def _parameter(self) -> torch.Tensor:
        return self.clip.vision.first


def _normed(vectors: Vectors) -> Vectors:
    """Of length 1 in float32, whatever they were computed in."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def load_clip_embedder(
    model: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> ClipEmbedder:
    """The CLIP of that name or in that folder, transformers' or open_clip's; None is the one that ships. It stays in
    memory for the next call.

    NotFoundError, CheckpointError, ConfigError, InputError.
    """
    torch_device = devices.find_device(device)
    path, precision = as_folder(_find(model, offline)).absolute(), devices.find_dtype(dtype, torch_device)
    texts = TEXTS.absolute() if path == SHIPPED.absolute() else None
    what = What("search", path, () if texts is None else (texts,))
    return models.get(what, Where.of(torch_device, precision), lambda: _load(what, texts, torch_device, precision))


def _find(model: str | Path | None, offline: bool) -> Path:
    if model is None:
        return SHIPPED
    here = registry.here(model)
    if here is not None and (here / open_clip.CONFIG).is_file():  # such a folder may have no config.json
        return here
    return find(model, offline=offline)


def _load(what: What, texts: Path | None, device: torch.device, dtype: torch.dtype) -> ClipEmbedder:
    path, state = what.path, stamp(*what.paths)
    folder = Folder(path)
    if not any(map(folder.has, (registry.CONFIG, open_clip.CONFIG))):
        raise CheckpointError(f"{path} is no CLIP: give a folder with a CLIPModel's config.json or {open_clip.CONFIG}")
    if _of_open_clip(folder):
        clip = open_clip.load_open_clip(folder, dtype=dtype)
        size = clip.vision.config.image_size
        preprocess = open_clip.read_preprocess(folder.json(open_clip.CONFIG), size)
        unknown = open_clip.unknown_keys(folder.json(open_clip.CONFIG))
    else:
        clip = load_clip(folder, texts=None if texts is None else Folder(texts), dtype=dtype)
        preprocess = read_preprocess(folder, clip.vision.config.image_size)
        unknown = [*unknown_keys(folder.json(registry.CONFIG)), *unknown_preprocess_keys(folder)]
    if clip.vision.config.channels != 3:
        raise CheckpointError(f"{path} reads pictures of {clip.vision.config.channels} channels; they have 3 here")
    tokenizer = Tokenizer.load(path if texts is None else texts / "tokenizer")
    _check_tokens(tokenizer, clip, path)
    return ClipEmbedder(
        name=path.name,
        clip=place(clip, device, dtype),
        tokenizer=tokenizer,
        preprocess=preprocess,
        stamp=f"{state}-{WAY}-{str(dtype).removeprefix('torch.')}",
        unknown=(*unknown, *tokenizer.warnings),
    )


def _of_open_clip(folder: Folder) -> bool:
    """Some publish both kinds in one folder: then transformers' is read."""
    return folder.has(open_clip.CONFIG) and not folder.has("model.safetensors")


def _check_tokens(tokenizer: Tokenizer, clip: CLIP, path: Path) -> None:
    config = clip.text.config
    if tokenizer.vocab > config.vocab:
        raise CheckpointError(f"the tokenizer in {path} has {tokenizer.vocab} tokens, the model {config.vocab}")
    if config.end not in (tokenizer.end, 2):  # 2 means the largest, see TextTower.pool
        raise CheckpointError(f"the tokenizer in {path} ends texts with {tokenizer.end}, the model with {config.end}")
