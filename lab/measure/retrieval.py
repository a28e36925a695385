"""`python -m lab eval clip`: how often the picture of a concept that training never saw finds its caption among all.

The way: pictures of the split "test" without skin tones -> vectors; one caption a concept in the picture's own style,
so that the concept decides -> vectors; the rank of the true one by cosine. Concepts are bases: variants of one thing
(gender, clock, flag) are never held against each other, and a picture's own variant stands for its base. Languages are
measured on the concepts that have a name in all of them, English too, so that their rows compare.
Pictures of one concept are alike, so the standard error counts concepts and not pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lab.emblem import dataset
from lab.emblem.captions import plain_caption
from lab.emblem.dataset import EmblemData
from lab.emblem.items import Item
from lab.measure.metrics import Score, percent, plain
from qkv.errors import InputError
from qkv.index.vectors import Vectors
from qkv.progress import Bar
from qkv.tasks.embed_clip import ClipEmbedder, load_clip_embedder

LANGUAGES = ("zh-hant", "de", "fr")
TOP = (1, 5)
CHUNK = 256  # pictures


def run(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    offline: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """The figures as plain values, for `table` or JSON. `model` is what `qkv search --model` takes.

    NotFoundError without model or data set, CheckpointError, ConfigError, InputError.
    """
    data = dataset.load()
    embedder = load_clip_embedder(model, device=device, dtype=dtype, offline=offline)
    return {"model": str(model or embedder.name), "dtype": dtype} | measure(embedder, data, progress=progress)


def measure(embedder: ClipEmbedder, data: EmblemData, *, progress: bool = False) -> dict[str, Any]:
    """A row for all held-out concepts in English, and one a language. InputError if there are none."""
    items = [item for item in data.items if item.split == "test" and not item.tone]
    spoken = [item for item in items if all(code in item.words for code in LANGUAGES)]
    if len({item.base for item in spoken}) < 2:
        raise InputError("the data set holds out no concepts; run: python -m lab data emblem")
    pictures = dict(zip([item.row for item in items], look(embedder, data, items, progress)))
    groups = {"all": (items, "en"), **{code: (spoken, code) for code in ("en", *LANGUAGES)}}
    return {name: _row(embedder, pictures, group, code) for name, (group, code) in groups.items()}


def look(embedder: ClipEmbedder, data: EmblemData, items: Sequence[Item], progress: bool) -> Vectors:
    """The vectors (N, P) of the items' pictures."""
    parts = []
    with Bar("looking", len(items), shown=progress) as bar:
        for start in range(0, len(items), CHUNK):
            some = [Image.fromarray(data.pictures[item.row]) for item in items[start : start + CHUNK]]
            parts.append(embedder.embed_pixels([embedder.see(image) for image in some]))
            bar.advance(len(some))
    return np.concatenate(parts)


def _row(
    embedder: ClipEmbedder, pictures: Mapping[int, Vectors], items: Sequence[Item], language: str
) -> dict[str, Any]:
    ranks = rank(embedder, pictures, items, language)
    bases = [item.base for item in items]
    count = len(set(bases))
    scores = {f"r{k}": plain(clustered(ranks < k, bases)) for k in TOP}
    return {"pictures": len(items), "concepts": count, **scores, "chance": {f"r{k}": k / count for k in TOP}}


def rank(
    embedder: ClipEmbedder, pictures: Mapping[int, Vectors], items: Sequence[Item], language: str
) -> npt.NDArray[np.int64]:
    """How many concepts' captions are at least as near to each picture (N,) as its own; 0 is right.

    A tie counts against the picture, so that a model without an opinion scores nothing.
    """
    one_of = {item.base: item for item in sorted(items, key=lambda item: (item.base, item.concept), reverse=True)}
    bases = list(one_of)
    asked = {
        style: [plain_caption(replace(one_of[base], style=style), language=language) for base in bases]
        for style in dict.fromkeys(item.style for item in items)
    }
    own = [plain_caption(item, language=language) for item in items]
    texts = list(dict.fromkeys([*own, *(caption for captions in asked.values() for caption in captions)]))
    place = {text: i for i, text in enumerate(texts)}
    vectors = embedder.embed_texts(texts).vectors
    candidates = {style: [place[caption] for caption in captions] for style, captions in asked.items()}
    ranks = []
    for item, caption in zip(items, own):
        true = place[caption]
        others = {row for base, row in zip(bases, candidates[item.style]) if base != item.base} - {true}  # one name
        scores = vectors[[true, *others]] @ pictures[item.row]
        ranks.append(int((scores[1:] >= scores[0]).sum()))
    return np.array(ranks)


def clustered(hits: npt.NDArray[np.bool_], groups: Sequence[str]) -> Score:
    """The share of hits (N,), with the standard error of a mean over groups that are drawn whole."""
    value = float(hits.mean())
    sums: dict[str, float] = {}
    for hit, group in zip(hits, groups):
        sums[group] = sums.get(group, 0.0) + float(hit) - value
    many = len(sums)
    return Score(value, (sum(x * x for x in sums.values()) * many / max(many - 1, 1)) ** 0.5 / len(hits))


def table(result: Mapping[str, Any]) -> str:
    """The figures for people: shares in percent, each with its standard error."""
    titles = {"all": "all, asked in en"} | {code: f"named in all four, {code}" for code in ("en", *LANGUAGES)}
    head = ("pictures", "concepts", "R@1", "chance", "R@5", "chance")
    lines = [f"{result['model']}: pictures of held-out concepts find their captions", "", _line("", head)]
    for name, title in titles.items():
        row = result[name]
        cells = [str(row["pictures"]), str(row["concepts"])]
        for k in TOP:
            score = row[f"r{k}"]
            cells += [percent(score), f"{row['chance'][f'r{k}']:.1%}"]
        lines.append(_line(title, cells))
    return "\n".join(lines) + "\n"


def _line(title: str, cells: Sequence[str]) -> str:
    return (f"{title:<28}" + "".join(f"{cell:>15}" for cell in cells)).rstrip()
