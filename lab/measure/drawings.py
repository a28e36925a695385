"""`python -m lab eval emblem`: how well the prompts are drawn, as the judge sees it.

The way: pictures of the data set give prompts -> drawings (by the public drawing function, nothing else of the model)
-> the judge's features -> 100 captions each, one of them true. Every score stands beside the one that the real
pictures get (the ceiling), the one of copying the training picture with the nearest caption, and chance. If the judge
itself fails on real pictures that it never saw, all of it is void. Prompts and questions are fixed by committed seeds.
Left out: what people think of the pictures.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lab.emblem import dataset
from lab.emblem.candidates import COUNT, SEED, Candidates
from lab.emblem.captions import plain_caption
from lab.emblem.items import Item, Split
from lab.emblem.raster import SIZE
from lab.emblem.splits import fraction
from lab.judge.files import JUDGE, load_judge
from lab.judge.network import Judge, ranks
from lab.judge.training import HELD_OUT, picture_features
from lab.measure import metrics
from lab.measure.metrics import Pictures, Score, copy_distance, jackknife, percent, plain, share, top_k, yellow_share
from lab.measure.nearest import Nearest
from qkv.atomic import replacing, write_file
from qkv.errors import InputError
from qkv.pictures.sheet import contact_sheet
from qkv.progress import Bar
from qkv.tasks.draw import draw as public_draw
from qkv.text.tokenizer import Tokenizer
from qkv.text.weighting import escape
from qkv.weights.configs import write_json

Draw = Callable[[str, str | None, int], Image.Image]  # prompt, negative prompt, seed

LANGUAGES = ("zh-hant", "de", "fr")
TRUSTED = 0.9  # what the judge must reach on real pictures of either held-out split
REFERENCE = 1000  # real training pictures that the distances are measured from
MISTAKEN = 0.01  # of pictures that cannot be copies lie this near to a training picture: the threshold of a copy
SHOWN = 64  # drawings on a contact sheet

YELLOW = (
    "sun", "lemon", "banana", "star", "cheese wedge", "sunflower", "front-facing baby chick", "hatching chick",
    "ear of corn", "coin", "key", "trophy", "crown", "bell", "light bulb", "full moon face", "crescent moon",
    "glowing star", "grinning face", "taxi",
)  # fmt: skip
YELLOW_STYLE = "flat style"


@dataclass(frozen=True)
class Exam:
    """A row of the table: `samples` pictures of `split`, right where the true caption is among the first `k`."""

    split: Split
    k: int
    samples: int
    title: str


EXAMS = {
    "seen": Exam("train", 1, 200, "seen concepts"),
    "cells": Exam("heldout_cell", 1, 150, "held-out: concept x style"),
    "tones": Exam("heldout_tone", 1, 80, "held-out: profession x tone"),
    "unseen": Exam("test", 5, 150, "concepts never seen"),
}
SPOKEN = 60  # drawings a language, of the first seen concepts


class WantedDrawing(NamedTuple):
    """A drawing to be made."""

    prompt: str
    negative: str | None
    seed: int


def run(
    model: str = "emblem",
    *,
    folder: Path | None = None,
    seed: int = 0,
    samples: int = EXAMS["seen"].samples,
    progress: bool = True,
    draw: Draw | None = None,
    judge: Path = JUDGE,
) -> dict[str, Any]:
    """Evaluates `model`; the figures as plain values, for `table` or JSON.

    `samples` seen concepts are drawn and the other sets in proportion; `seed` is added to every drawing's own.
    Prompts, figures (metrics.json, table.txt) and contact sheets go to `folder`, by default runs/eval-MODEL. `draw` is
    `qkv.draw` unless a test says otherwise. Raises NotFoundError without model or data set, CheckpointError without
    judge, InputError for too few samples, OutputError.
    """
    if samples < 10:
        raise InputError(f"samples={samples} are too few for a share; give at least 10")
    scale = samples / EXAMS["seen"].samples
    judged = JudgedData(*load_judge(judge), dataset.load())
    chosen = {name: pick(judged.items(exam.split), round(scale * exam.samples)) for name, exam in EXAMS.items()}
    spoken = [item for item in chosen["seen"] if all(code in item.words for code in LANGUAGES)][: round(scale * SPOKEN)]
    yellow = [f"{name}, {YELLOW_STYLE}" for name in YELLOW[: max(2, round(scale * len(YELLOW)))]]

    orders = {name: [_order(item, "en", seed) for item in items] for name, items in chosen.items()}
    orders |= {code: [_order(item, code, seed) for item in spoken] for code in LANGUAGES}
    orders |= {
        name: [WantedDrawing(prompt, negative, _seed(seed, prompt)) for prompt in yellow]
        for name, negative in (("yellow", None), ("not yellow", "yellow"))
    }
    folder = folder or Path("runs") / f"eval-{Path(model).name}"
    # Before the long work, so that an unwritable folder costs nothing.
    write_json(folder / "prompts.json", {name: [order._asdict() for order in group] for name, group in orders.items()})
    drawn = _draw_all(orders, draw or drawer(model), progress)
    trust = {split: judged.trust(split) for split in HELD_OUT}
    in_english = drawn["seen"][[chosen["seen"].index(item) for item in spoken]]
    result = {
        "model": model,
        "seed": seed,
        "samples": samples,
        "void": any(score.value < TRUSTED for score in trust.values()),
        "judge": {split: plain(score) for split, score in trust.items()},
        "sets": {name: judged.examine(drawn[name], chosen[name], exam.k) for name, exam in EXAMS.items()},
        "languages": {
            code: judged.examine(pictures, spoken, EXAMS["seen"].k, language=code)
            for code, pictures in {"en": in_english, **{code: drawn[code] for code in LANGUAGES}}.items()
        },
        "distances": judged.distances(drawn["seen"], chosen["seen"]),
        "copies": {"threshold": judged.threshold, "found": plain(judged.found_copies(chosen["seen"]))},
        "yellow": yellow_cut(drawn["yellow"], drawn["not yellow"]),
    }

    write_json(folder / "metrics.json", result)
    with replacing(folder / "table.txt") as file:
        file.write(table(result).encode())
    for name in (*EXAMS, *LANGUAGES):
        items = chosen.get(name, spoken)  # their English names stand beside, since the sheet's font has no Chinese
        labels = [text for order, item in zip(orders[name], items) for text in (order.prompt, f"real: {item.name}")]
        pair_sheet(folder / f"{name}.png", drawn[name], judged.real(items), labels)
    labels = [text for prompt in yellow for text in (prompt, "not yellow")]
    pair_sheet(folder / "yellow.png", drawn["yellow"], drawn["not yellow"], labels)
    return result


def _order(item: Item, language: str, seed: int) -> WantedDrawing:
    """The same noise in every language."""
    return WantedDrawing(plain_caption(item, language=language), None, _seed(seed, item.style, item.icon))


def _seed(seed: int, *names: str) -> int:
    return seed + int(fraction(SEED, "noise", *names) * 2**32)


def _draw_all(orders: Mapping[str, Sequence[WantedDrawing]], draw: Draw, progress: bool) -> dict[str, Pictures]:
    """What is drawn for each list of orders, (N, 128, 128, 3)."""
    drawn: dict[str, list[npt.NDArray[np.uint8]]] = defaultdict(list)
    with Bar("drawing", sum(map(len, orders.values())), shown=progress) as bar:
        for name, order in ((name, order) for name, group in orders.items() for order in group):
            image = draw(escape(order.prompt), order.negative, order.seed)
            # The judge knows one size, whatever the model's.
            drawn[name].append(np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)))
            bar.advance()
    return {name: np.stack(pictures) for name, pictures in drawn.items()}


def pick(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, the same on every machine: from each (base, style) one, then a second one ...

    Within a cell they come by their weight, so that people are not all toned. A larger count only adds to the end.
    """
    cells = defaultdict(list)
    for item in items:
        # Weighted order without replacement: u^(1/w), largest first (Efraimidis and Spirakis 2006).
        place = fraction(SEED, "item", item.style, item.icon) ** (1 / item.weight)
        cells[item.base, item.style].append((-place, item.icon, item))
    rounds = [
        (turn, fraction(SEED, "cell", *cell), found[-1])
        for cell, members in cells.items()
        for turn, found in enumerate(sorted(members, key=lambda member: member[:2]))
    ]
    return [item for *_, item in sorted(rounds, key=lambda entry: entry[:2])][:count]


@dataclass(frozen=True)
class JudgedData:
    """The judge with the evidence: the data set and what is derived from it once."""

    judge: Judge
    tokenizer: Tokenizer
    data: dataset.EmblemData
    searches: dict[str, Nearest] = field(default_factory=dict, init=False)

    @cached_property
    def candidates(self) -> Candidates:
        return Candidates(self.data.items)

    @cached_property
    def known(self) -> tuple[Tensor, Pictures, npt.NDArray[np.int64]]:
        """All that the generator was trained on: features, and where the pictures are."""
        rows = [item.row for item in self.items("train")]
        return picture_features(self.judge, self.data.pictures, rows), self.data.pictures, np.array(rows)

    @cached_property
    def threshold(self) -> float:
        """A drawing within this distance of a training picture is a copy of it.

        Real pictures of concepts that training never saw are no copies, however alike icons are: 1 % of them
        lie within it.
        """
        pictures = self.real(self.items("test"))
        return float(copy_distance(picture_features(self.judge, pictures), pictures, *self.known).quantile(MISTAKEN))

    def items(self, split: Split) -> list[Item]:
        return [item for item in self.data.items if item.split == split]

    def real(self, items: Sequence[Item]) -> Pictures:
        return self.data.pictures[[item.row for item in items]]

    def trust(self, split: Split) -> Score:
        """Top-1 of the judge on all real pictures of a split that it never saw."""
        items = self.items(split)
        questions = [self.candidates.of(item) for item in items]
        return top_k(ranks(self.judge, self.tokenizer, picture_features(self.judge, self.real(items)), questions), 1)

    def examine(self, pictures: Pictures, items: Sequence[Item], k: int, *, language: str = "en") -> dict[str, Any]:
        """A row of the table for the drawings of `items`, whose prompts were in `language`."""
        shown = {"drawn": pictures, "real": self.real(items), "copying": self.real(self.nearest(items, language))}
        features = {name: picture_features(self.judge, group) for name, group in shown.items()}
        questions = [self.candidates.of(item) for item in items] * len(shown)
        found = ranks(self.judge, self.tokenizer, torch.cat(list(features.values())), questions)
        scores = {name: plain(top_k(part, k)) for name, part in zip(shown, found.chunk(len(shown)))}
        copies = {name: plain(self.copies(features[name], shown[name])) for name in ("drawn", "real")}
        return {"count": len(items), "k": k, **scores, "chance": k / COUNT, "copies": copies}

    def nearest(self, items: Sequence[Item], language: str) -> list[Item]:
        """For each item the one among the generator's training pictures whose caption is nearest."""
        train = self.items("train")
        if language not in self.searches:
            self.searches[language] = Nearest([plain_caption(item, language=language) for item in train])
        search = self.searches[language]
        return [train[search.find(plain_caption(item, language=language))] for item in items]

    def copies(self, features: Tensor, pictures: Pictures) -> Score:
        """The share of pictures that are copies of a training picture."""
        return share(copy_distance(features, pictures, *self.known) <= self.threshold)

    def found_copies(self, items: Sequence[Item]) -> Score:
        """The share of training pictures that count as copies when moved by a pixel and blurred; it should be all."""
        images = [Image.fromarray(picture).resize((SIZE // 2, SIZE // 2)) for picture in self.real(items)]
        altered = np.stack([np.asarray(image.resize((SIZE, SIZE))) for image in images])
        altered = np.roll(altered, (1, 1), axis=(1, 2))
        return self.copies(picture_features(self.judge, altered), altered)

    def distances(self, pictures: Pictures, items: Sequence[Item]) -> dict[str, Any]:
        """Of the drawings from other training pictures, and of the real pictures of the same prompts (the floor)."""
        reference = pick(self.items("train"), len(items) + REFERENCE)[len(items) :]
        target = picture_features(self.judge, self.real(reference))
        found = {"drawn": pictures, "real": self.real(items)}
        features = {name: picture_features(self.judge, group) for name, group in found.items()}
        return {
            measure.__name__.removesuffix("_distance"): {
                name: plain(jackknife(measure, group, target)) for name, group in features.items()
            }
            for measure in (metrics.kernel_distance, metrics.frechet_distance)
        }


def yellow_cut(without: Pictures, avoided: Pictures) -> dict[str, Any]:
    """The mean share of yellow pixels without and with the negative prompt, and by how much it is cut."""
    pairs = torch.stack((yellow_share(without), yellow_share(avoided)), dim=1)  # (N, 2)
    before, after = (jackknife(lambda x: float(x.mean()), column) for column in pairs.unbind(1))
    cut = jackknife(lambda x: 1 - float(x[:, 1].sum() / x[:, 0].sum().clamp(min=1e-12)), pairs)
    return {"count": len(pairs), "without": plain(before), "with": plain(after), "cut": plain(cut)}


def table(result: dict[str, Any]) -> str:
    """The figures for people: shares in percent, each with its standard error."""
    judged = ", ".join(f"{split} {percent(score)}" for split, score in result["judge"].items())
    lines = [f"The judge on real pictures it never saw, top-1 of {COUNT}: {judged}; {TRUSTED:.0%} is needed."]
    if result["void"]:
        lines.insert(0, "VOID: the judge fails on real pictures that it never saw. None of these figures counts.")
    head = ("drawn", "of real", "real", "copying", "chance", "copies", "of real")
    lines += ["", line(f"right of {COUNT} captions", head)]
    rows = [(EXAMS[name].title, row) for name, row in result["sets"].items()]
    rows += [(f"seen concepts, asked in {code}", row) for code, row in result["languages"].items()]
    for title, row in rows:
        ratio = row["drawn"]["value"] / max(row["real"]["value"], 1e-12)
        scores = [percent(row["drawn"]), f"{ratio:.0%}", percent(row["real"]), percent(row["copying"])]
        copies = [percent(row["copies"]["drawn"]), percent(row["copies"]["real"])]
        lines.append(line(f"{title} ({row['count']}, top-{row['k']})", (*scores, f"{row['chance']:.0%}", *copies)))
    lines += ["", line("distance of seen concepts from real ones", ("drawn", "", "real"))]
    for name, row in result["distances"].items():
        lines.append(line(name, (_number(row["drawn"]), "", _number(row["real"]))))
    yellow, copies = result["yellow"], result["copies"]
    lines += [
        "",
        f"yellow pixels over {yellow['count']} prompts: {percent(yellow['without'])}, with the negative prompt "
        f"{percent(yellow['with'])}: cut by {percent(yellow['cut'])}",
        f"a copy lies within {copies['threshold']:.3f} of a training picture; "
        f"{percent(copies['found'])} of training pictures that were moved by a pixel and blurred count as copies",
    ]
    return "\n".join(lines) + "\n"


def line(title: str, cells: Sequence[str]) -> str:
    return (f"{title:<44}" + "".join(f"{cell:>15}" for cell in cells)).rstrip()


def _number(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3g} ± {score['noise']:.1g}"


def drawer(model: str) -> Draw:
    """What `qkv draw` draws with a model."""
    return lambda prompt, negative, seed: public_draw(prompt, negative=negative, model=model, seed=seed)[0].image


def pair_sheet(path: Path, left: Pictures, right: Pictures, labels: Sequence[str]) -> None:
    """Pairs of pictures as a contact sheet, a label under each picture."""
    images = [Image.fromarray(picture) for pair in zip(left[:SHOWN], right[:SHOWN]) for picture in pair]
    write_png(path, contact_sheet(images, labels))


def write_png(path: Path, image: Image.Image) -> None:
    """The picture alone, without a word about it; its folder is made if need be."""
    data = io.BytesIO()
    image.save(data, format="png")
    write_file(path, data.getvalue())
