"""What `python -m lab eval scenes` asks for: prompts, the scenes that they mean, and the captions held against them.

Place: before anything is drawn. Everything follows from SEED, the tables and the vocabulary; the scenes are those of
no training. A prompt says place and way of painting, not the time of day nor the drawing style, and of two beside each
other who is on the left, so that every fact that is asked about was said.
"""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as numbers
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from lab.emblem.splits import fraction
from lab.judge.facts import said
from lab.judge.questions import Questions, fair
from lab.scenes import render
from lab.scenes.captions import HOUSE, caption
from lab.scenes.dataset import Scenes
from lab.scenes.imagine import COLOURS
from lab.scenes.places import PLACES
from lab.scenes.scene import Actor, Event, Scene, concepts
from qkv.config import build
from qkv.errors import InputError

SEED = 20260115
TOLD = {"place": 1.0, "condition": 0.0, "painting": 1.0, "style": 0.0}
SIDES = {"en": ("left", "right"), "de": ("links", "rechts"), "fr": ("gauche", "droite"), "zh-hant": ("左", "右")}

Facts = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, the noise it is drawn with, the scene that it means, and the true caption's facts before others'."""

    prompt: str
    scene: Scene
    number: int
    question: Sequence[Facts]
    language: str = "en"
    negative: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row of scene_prompts.toml, which explains the fields."""

    text: str
    event: Event
    actors: tuple[Actor, ...] = ()
    count: int = 1
    place: str = "plain"
    condition: str = ""
    painting: str = ""
    negative: str | None = None
    said: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    def slots(self) -> list[str]:
        """What a picture of the prompt must show."""
        silent = {*self.silent, *(("condition",) if "place" in self.silent else ())}
        return [slot for slot in dict.fromkeys((*said(self._scene()), *self.said)) if slot not in silent]

    def _scene(self) -> Scene:
        row = {key: getattr(self, key) for key in ("event", "actors", "count", "place", "condition", "painting")}
        return Scene(style=HOUSE[0], **row)

    def scene(self, turn: int) -> Scene:
        """A scene that the prompt means; what it does not say is left to chance."""
        rng = Random(f"{SEED} {self.text} {turn}")
        place = rng.choice(list(PLACES)) if "place" in self.silent else self.place
        condition = self.condition or rng.choice(PLACES[place].conditions)
        return replace(self._scene(), place=place, condition=condition, style=rng.choice(HOUSE))


def prompts() -> list[Prompt]:
    """The six that the project began with, then the others."""
    table = tomllib.loads(Path(__file__).with_name("scene_prompts.toml").read_text(encoding="utf-8"))
    return [build(Prompt, row, f"prompts[{i}]") for i, row in enumerate(table["prompts"])]


@dataclass(frozen=True)
class Sets:
    """Rows of the table over the vocabulary and the sprites of `scenes`."""

    scenes: Scenes
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", Questions(self.scenes))

    def of_kinds(self, kinds: frozenset[str], count: int, language: str = "en") -> list[Asked]:
        """One of 100 captions, for scenes with these held-out combinations, or with none."""
        found = self._found(lambda scene: True, kinds)
        return [
            self._asked(scene, number, self.questions.of(scene, number), language)
            for (scene, number), _ in zip(found, range(count))
        ]

    def differing(self, name: str, count: int) -> list[Asked]:
        """Captions that differ in one thing only, as DIFFERING says."""
        events, change = DIFFERING[name]
        rows: list[Asked] = []
        for scene, number in self._found(lambda scene: scene.event in events, frozenset()):
            others = change(self.questions, scene)
            if others:
                rows.append(self._asked(scene, number, self.questions.between(scene, others), "en"))
            if len(rows) == count:
                break
        return rows

    def of_prompt(self, prompt: Prompt, seeds: int) -> list[Asked]:
        """A prompt of the table, drawn with the seeds 1, 2 ..., one of 100 captions. InputError if it asks for what no
        scene shows."""
        scenes = [self._housed(prompt.scene(turn)) for turn in range(seeds)]
        return [
            Asked(
                prompt=prompt.text,
                negative=prompt.negative,
                scene=scene,
                number=turn,
                seed=turn + 1,
                question=self.questions.of(scene, turn, slots=prompt.slots()),
            )
            for turn, scene in enumerate(scenes)
        ]

    def _housed(self, scene: Scene) -> Scene:
        """The scene in a style of the house that training sees its things in."""
        drawn = self.scenes.vocabulary.drawn
        styles = [style for style in HOUSE if all((style, key) in drawn for key in concepts(scene))]
        if not styles:
            raise InputError(f"no scene shows all of {sorted(concepts(scene))} in {' or '.join(HOUSE)}; ask for others")
        return scene if scene.style in styles else replace(scene, style=styles[0])

    def real(self, asked: Sequence[Asked]) -> npt.NDArray[np.uint8]:
        """A real picture of each scene, (N, 128, 128, 3)."""
        vocabulary, cut = self.scenes.vocabulary, self.scenes.sprites
        return np.stack([render.draw(one.scene, cut, vocabulary, Random(f"{SEED} {one.number}")) for one in asked])

    def _found(self, wanted: Callable[[Scene], bool], kinds: frozenset[str]) -> Iterator[tuple[Scene, int]]:
        scenes = replace(self.scenes, seed=SEED, kinds=kinds)
        for number in numbers():
            scene = scenes.facts(number)
            if fair(scene) and wanted(scene):
                yield scene, number

    def _asked(self, scene: Scene, number: int, question: Sequence[Facts], language: str) -> Asked:
        """The same noise in every language."""
        seed = int(fraction(SEED, "noise", str(number)) * 2**32)
        prompt = spoken(self.scenes, scene, number, language)
        return Asked(prompt=prompt, scene=scene, number=number, language=language, seed=seed, question=question)


def spoken(scenes: Scenes, scene: Scene, number: int, language: str = "en") -> str:
    """A caption of the scene that says all that is asked about: the first by chance that does."""
    for turn in numbers():
        text = caption(scene, scenes.vocabulary, Random(f"{SEED} {number} {turn}"), language=language, share=TOLD)
        if scene.event != "beside" or any(side in text for side in SIDES[language]):
            return text
    raise AssertionError("unreachable")


Change = Callable[[Questions, Scene], list[Scene]]


def _reversed(questions: Questions, scene: Scene) -> list[Scene]:
    return [replace(scene, actors=scene.actors[::-1])] if len(scene.actors) == 2 else []


def _other_event(questions: Questions, scene: Scene) -> list[Scene]:
    return [replace(scene, event="under" if scene.event == "on" else "on")]


def _changed(thing: str) -> Change:
    return lambda questions, scene: questions.changed(scene, Random(0))[thing]


def _recoloured(questions: Questions, scene: Scene) -> list[Scene]:
    """A single thing in each other colour."""
    (actor,) = scene.actors
    if not actor.colour or "colour 0" not in said(scene):
        return []
    return [replace(scene, actors=(replace(actor, colour=colour),)) for colour in COLOURS if colour != actor.colour]


ANY = frozenset(Event.__args__)  # type: ignore[attr-defined]
DIFFERING: dict[str, tuple[frozenset[str], Change]] = {  # the events, and the captions held against the true one
    "left, right": (frozenset({"beside"}), _reversed),
    "above, below": (frozenset({"above"}), _reversed),
    "on, under": (frozenset({"on", "under"}), _other_event),
    "in front, behind": (frozenset({"before"}), _reversed),
    "rider, mount": (frozenset({"ride"}), _reversed),
    "how many of 2 to 5": (frozenset({"count"}), _changed("count")),
    "which of 12 colours": (frozenset({"alone"}), _recoloured),
    "painted how, of 8 ways": (ANY, _changed("painting")),
    "where, of 16 places": (ANY, _changed("place")),
}
