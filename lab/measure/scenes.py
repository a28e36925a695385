"""`python -m lab eval scenes`: how well scenes are drawn, as the judge of scenes sees it.

The way: scenes that no training saw give prompts -> drawings (by the public drawing function) -> the facts that the
judge reads in them -> the true caption among others. Beside each score stand the one of real pictures of the same
scenes (the ceiling), the one of copying the training scene with the nearest caption, and chance. If the judge itself
fails on real scenes that it never saw, all of it is void. Drawings are kept one by one, so that an ended run goes on
where it was. Left out: what people think of the pictures; `blind` draws them for somebody to describe.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from lab.judge.files import READER, load_reader
from lab.judge.questions import COUNT
from lab.judge.reader import Reader, read
from lab.measure.drawings import Draw, drawer, line, pair_sheet, write_png
from lab.measure.metrics import Pictures, Score, percent, plain, top_k
from lab.measure.nearest import Nearest
from lab.measure.scene_sets import DIFFERING, Asked, Prompt, Sets, prompts
from lab.scenes import dataset
from lab.scenes.autoencoder import redraw
from lab.scenes.captions import caption
from lab.scenes.dataset import Scenes
from lab.scenes.render import KEPT
from lab.scenes.vocabulary import LANGUAGES
from lab.train.batches import to_signed
from qkv.atomic import replacing
from qkv.errors import InputError, NotFoundError
from qkv.loaded.files import fingerprint
from qkv.models.vae import VAE
from qkv.pictures.sheet import to_images
from qkv.progress import Bar
from qkv.registry import resolve
from qkv.text.weighting import escape
from qkv.weights.configs import write_json
from qkv.weights.folder import Folder
from qkv.weights.vae import load_vae

TRUSTED = 0.9  # what the judge must reach on real scenes
EXAMINED = 500  # real scenes that it must reach it on
FULL = 200  # drawings of seen combinations; the other sets in proportion
TRAINED = 0  # the seed of the scenes that the generator is trained on
COPIED = 10_000  # of them the copying baseline chooses from
KINDS = {"pair": "pairs", "ride": "riders and mounts", "dress": "heads and outfits", "place": "things in places"}
HELD = {"pair": 100, "ride": 60, "dress": 60, "place": 60}
SPOKEN = 60  # drawings a language, of the first seen scenes
DIFFER = 40  # drawings of each set whose captions differ in one thing
SEEDS = 16  # of each prompt of the table


def run(
    model: str = "emblem",
    *,
    folder: Path | None = None,
    sheet: Path | None = None,
    count: int = FULL,
    progress: bool = True,
    draw: Draw | None = None,
    judge: Path = READER,
    scenes: Scenes | None = None,
) -> dict[str, Any]:
    """Evaluates `model`; the figures as plain values, for `table` or JSON.

    `count` scenes of seen combinations are drawn, and of the other sets in proportion. Drawings and figures go to
    `folder`, by default runs/scenes-MODEL, contact sheets to `sheet`. Raises NotFoundError without model, judge or
    data, CheckpointError, InputError for too small a count, OutputError.
    """
    if count < 10:
        raise InputError(f"count={count} is too few for a share; give at least 10")
    if not (judge / "config.json").is_file():
        raise NotFoundError(f"no judge of scenes in {judge}; train one: python -m lab train recipes/scenes-judge.toml")
    weights = resolve(model) if draw is None else None
    folder = folder or Path("runs") / f"scenes-{Path(model).name}"
    sets = Sets(scenes or dataset.load(0, progress=progress))
    asked = ask(sets, count / FULL)
    # Before the long work, so that an unwritable folder costs nothing.
    write_json(folder / "prompts.json", {name: [one.prompt for one in rows] for name, rows in asked.items()})
    album = Album(folder / "drawn", fingerprint(weights) if weights else "", draw or drawer(model))
    drawn = album.draw_all(asked, progress)
    evaluation = Evaluation(load_reader(judge), sets)
    trust = evaluation.trust(EXAMINED)
    rows = {name: evaluation.examine(drawn[name], rows) for name, rows in asked.items()}
    result = {"model": model, "count": count, "void": trust.value < TRUSTED, "judge": plain(trust), "sets": rows}
    if weights:
        result["redrawn"] = plain(evaluation.redrawn(load_vae(Folder(weights)).float().eval(), asked["seen"]))

    write_json(folder / "metrics.json", result)
    with replacing(folder / "table.txt") as file:
        file.write(table(result).encode())
    for name, rows_of in asked.items() if sheet else ():
        labels = [text for one in rows_of for text in (one.prompt, "real")]
        pair_sheet((sheet or folder) / f"{_file(name)}.png", drawn[name], sets.real(rows_of), labels)
    return result


def ask(sets: Sets, scale: float) -> dict[str, list[Asked]]:
    """Everything that is drawn and asked, by the names of the table's rows; equal prompts are drawn once."""

    def some(count: int) -> int:
        return max(2, round(scale * count))

    found = {"seen": sets.of_kinds(frozenset(), some(FULL))}
    found |= {kind: sets.of_kinds(frozenset([kind]), some(HELD[kind])) for kind in KINDS}
    found |= {code: sets.of_kinds(frozenset(), some(SPOKEN), code) for code in LANGUAGES}
    found |= {name: sets.differing(name, some(DIFFER)) for name in DIFFERING}
    return found | {title(i, row): sets.of_prompt(row, some(SEEDS)) for i, row in enumerate(prompts())}


def title(number: int, prompt: Prompt) -> str:
    """A prompt's row of the table."""
    return f"{number + 1}. {prompt.text}" + (f', not "{prompt.negative}"' if prompt.negative else "")


@dataclass(frozen=True)
class Album:
    """Drawings of 128 pixels that are kept under what they depend on."""

    folder: Path
    model: str  # its fingerprint, "" where nothing is kept
    draw: Draw

    def draw_all(self, asked: Mapping[str, Sequence[Asked]], progress: bool) -> dict[str, Pictures]:
        """What is drawn for each set, (N, 128, 128, 3)."""
        found: dict[tuple[str, str | None, int], Pictures] = {}
        with Bar("drawing", sum(map(len, asked.values())), shown=progress) as bar:
            for one in (one for rows in asked.values() for one in rows):
                key = (one.prompt, one.negative, one.seed)
                if key not in found:
                    found[key] = self._drawn(one)
                bar.advance()
        return {
            name: np.stack([found[one.prompt, one.negative, one.seed] for one in rows]) for name, rows in asked.items()
        }

    def _drawn(self, one: Asked) -> Pictures:
        said = "\0".join((self.model, one.prompt, one.negative or "", str(one.seed)))
        path = self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.png"
        if self.model and path.is_file():
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        # The judge knows one size, whatever the model's.
        drawn = self.draw(escape(one.prompt), one.negative, one.seed).convert("RGB")
        picture = drawn.resize((KEPT, KEPT), Image.Resampling.LANCZOS)
        if self.model:
            write_png(path, picture)
        return np.asarray(picture)


@dataclass(frozen=True)
class Evaluation:
    """The judge with what it judges by."""

    judge: Reader
    sets: Sets
    searches: dict[str, Nearest] = field(default_factory=dict, init=False)

    def trust(self, count: int) -> Score:
        """How often the judge picks the caption of a real scene that it never saw, out of 100."""
        asked = self.sets.of_kinds(frozenset(), count)
        return self._score(self.sets.real(asked), asked)

    def examine(self, drawn: Pictures, asked: Sequence[Asked]) -> dict[str, Any]:
        """A row of the table."""
        shown = {"drawn": drawn, "real": self.sets.real(asked), "copying": self.copies(asked)}
        chance = float(np.mean([1 / len(one.question) for one in asked]))
        scores = {name: plain(self._score(pictures, asked)) for name, pictures in shown.items()}
        return {"count": len(asked), "of": len(asked[0].question), **scores, "chance": chance}

    def redrawn(self, vae: VAE, asked: Sequence[Asked]) -> Score:
        """The score of real pictures that the model's own autoencoder has redrawn: what its latents can show."""
        again = redraw(vae, to_signed(self.sets.real(asked)))
        return self._score(np.stack([np.asarray(image) for image in to_images(again)]), asked)

    def _score(self, pictures: Pictures, asked: Sequence[Asked]) -> Score:
        return top_k(read(self.judge, pictures).ranks([one.question for one in asked]), 1)

    @cached_property
    def trained(self) -> Scenes:
        """What the generator is trained on."""
        return replace(self.sets.scenes, seed=TRAINED, kinds=frozenset())

    def search(self, language: str) -> Nearest:
        """Finds among their captions in a language."""
        if language not in self.searches:
            scenes, said = self.trained, range(COPIED)
            facts = (scenes.facts(number) for number in said)
            texts = [caption(row, scenes.vocabulary, Random(i), language=language) for i, row in zip(said, facts)]
            self.searches[language] = Nearest(texts)
        return self.searches[language]

    def copies(self, asked: Iterable[Asked]) -> Pictures:
        """For each prompt the training scene whose caption, in its language, is nearest."""
        return np.stack([self.trained.picture(self.search(one.language).find(one.prompt)) for one in asked])


def table(result: Mapping[str, Any]) -> str:
    """The figures for people: shares in percent, each with its standard error."""
    judged = f"The judge on real scenes it never saw, right of {COUNT} captions: {percent(result['judge'])}"
    lines = [f"{judged}; {TRUSTED:.0%} is needed."]
    if result["void"]:
        lines.insert(0, "VOID: the judge fails on real scenes that it never saw. None of these figures counts.")
    sets = result["sets"]
    titles = {"seen": "seen combinations", **{kind: f"held-out {text}" for kind, text in KINDS.items()}}
    titles |= {code: f"the first of the seen, asked in {code}" for code in LANGUAGES}
    lines += ["", line(f"right of {COUNT} captions", HEAD), *(_line(titles[name], sets[name]) for name in titles)]
    if "redrawn" in result:
        lines.append(line("seen combinations, real and redrawn by its autoencoder", (percent(result["redrawn"]),)))
    lines += ["", line("captions that differ in one thing", HEAD), *(_line(name, sets[name]) for name in DIFFERING)]
    lines += ["", line(f"prompts, right of {COUNT} captions", PROMPT_HEAD)]
    lines += [_prompt_line(name, row) for name, row in sets.items() if name not in titles and name not in DIFFERING]
    return "\n".join(lines) + "\n"


HEAD = ("drawn", "of real", "real", "copying", "chance")
PROMPT_HEAD = ("drawn", "real", "copying")


def _line(title: str, row: Mapping[str, Any]) -> str:
    ratio = row["drawn"]["value"] / max(row["real"]["value"], 1e-12)
    scores = (percent(row["drawn"]), f"{ratio:.0%}", percent(row["real"]), percent(row["copying"]))
    return line(f"{title} ({row['count']})", (*scores, f"{row['chance']:.0%}"))


def _prompt_line(title: str, row: Mapping[str, Any]) -> str:
    right = [f"{round(row[name]['value'] * row['count'])} of {row['count']}" for name in ("drawn", "real", "copying")]
    return f"{title:<72}" + "".join(f"{cell:>10}" for cell in right)


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name.casefold())[:60].strip("-")
