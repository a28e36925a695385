"""Which of some labels fits a picture, without training for them: `qkv classify PICTURE --labels ...`.

CLIP (2103.00020), section 3.1: the cosines of the picture with each label, times the learnt scale, through a softmax.
The probabilities are shares among the labels given: where none of them fits, one still has the most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from qkv import device as devices
from qkv.errors import InputError, shorten
from qkv.index.vectors import cosine
from qkv.pictures.files import Opened, open_picture, upright
from qkv.tasks.embed_clip import ClipEmbedder, load_clip_embedder

MAX_LABELS = 10_000


@dataclass(frozen=True)
class Label:
    """A label, its probability among all that were given, and its cosine to the picture."""

    label: str
    probability: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The labels, the likeliest first; the model's name, and what was bent."""

    labels: tuple[Label, ...]
    model: str
    warnings: tuple[str, ...]


def classify(
    picture: str | Path | Image.Image,
    labels: Sequence[str],
    *,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Classified:
    """The labels with their probabilities, the likeliest first. `picture` is a file or a Pillow image; `model` a CLIP
    folder or name, None the one that ships.

    InputError for fewer than 2 labels, more than 10,000, an empty one, one that is there twice, or a file that is no
    picture; NotFoundError, CheckpointError, ConfigError.
    """
    check_labels(labels)
    opened = Opened(upright(picture), False) if isinstance(picture, Image.Image) else open_picture(picture)
    embedder = load_clip_embedder(model, device=device, dtype=dtype, offline=offline)
    with devices.threads(threads):
        return _classify(embedder, opened, labels)


def check_labels(labels: Sequence[str]) -> None:
    """InputError unless a choice can be made among the labels."""
    if isinstance(labels, str):
        raise InputError(f"labels={shorten(labels)!r} is one text; give a list of two or more")
    if len(labels) > MAX_LABELS:
        raise InputError(f"there are {len(labels):,} labels; give at most {MAX_LABELS:,}")
    first: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        if not isinstance(label, str) or not label.strip():
            what = "is empty" if isinstance(label, str) else f"is no text but {type(label).__name__}"
            raise InputError(f"label {number} of {len(labels)} {what}; give labels with words in them")
        # As the tokenizer sees it, which knows neither case nor runs of blanks.
        if (before := first.setdefault(" ".join(label.split()).casefold(), number)) != number:
            raise InputError(f"labels {before} and {number} are both {shorten(label)!r}; give each label once")
    if len(labels) < 2:
        raise InputError(f"{len(labels) or 'no'} label leaves no choice; give two or more")


def _classify(embedder: ClipEmbedder, opened: Opened, labels: Sequence[str]) -> Classified:
    read = embedder.embed_texts(labels)
    seen = embedder.embed_pixels([embedder.see(opened.image)])[0]
    scores = torch.from_numpy(cosine(read.vectors, seen)).double()  # (N,)
    likely = F.log_softmax(embedder.scale * scores, dim=-1).exp()
    order = torch.argsort(-likely, stable=True).tolist()
    first = ("the picture is animated; only its first frame was looked at",) if opened.animated else ()
    return Classified(
        labels=tuple(Label(labels[i], float(likely[i]), float(scores[i])) for i in order),
        model=embedder.name,
        warnings=(*embedder.warnings(read.cut), *first),
    )
