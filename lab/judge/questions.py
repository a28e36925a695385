"""Questions about a scene: its caption among others, each told by the facts that the true one says.

Place: `python -m lab eval scenes`, and the judge's own validation. A quarter of a question's wrong captions are true in
all but one thing (left and right exchanged, three in place of two, another rider, another place); half of the others
share place and way of painting with the true one, so that these alone do not answer it. All captions of a question say
the same slots. Left out: two different players at a table, whom captions name in any order.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from lab.judge.facts import facts, only, said
from lab.scenes.dataset import Scenes
from lab.scenes.imagine import COLOURS, PAINTINGS
from lab.scenes.places import PLACES
from lab.scenes.scene import SHIRT, Actor, Event, Scene
from lab.scenes.vocabulary import Vocabulary
from qkv.errors import InputError

SEED = 20210226
COUNT = 100
NEAR = 24  # of a question's captions are true but for one thing
IMAGINED = 12_000  # scenes that the other captions are of
SPATIAL: tuple[Event, ...] = ("beside", "above", "before", "on", "inside", "under")
ANY_ORDER = ("cards", "chess")


def fair(scene: Scene) -> bool:
    """Whether a caption of the scene means one picture's facts."""
    return not (scene.event in ANY_ORDER and len(scene.actors) == 2)


class Questions:
    """Questions over the vocabulary of `scenes`; they depend on SEED and that alone."""

    def __init__(self, scenes: Scenes, imagined: int = IMAGINED) -> None:
        self.vocabulary: Vocabulary = scenes.vocabulary
        others = replace(scenes, seed=SEED, kinds=None)
        self.others = [others.facts(number) for number in range(imagined)]
        self.by_event: dict[str, list[Scene]] = {}
        self.cast: dict[tuple[str, int], list[str]] = {}
        for scene in self.others:
            self.by_event.setdefault(scene.event, []).append(scene)
            for i, actor in enumerate(scene.actors):
                self.cast.setdefault((scene.event, i), []).append(actor.concept)

    def of(
        self, scene: Scene, number: int, count: int = COUNT, *, slots: Sequence[str] | None = None
    ) -> list[dict[str, str]]:
        """The true caption's facts, then `count` - 1 others', all in what the caption says, or in `slots`. InputError
        where there are not as many."""
        rng, slots = Random(f"{SEED} {number}"), said(scene) if slots is None else slots
        found: dict[tuple[str, ...], None] = {self._told(scene, slots): None}
        nearly = [rows for rows in self.changed(scene, rng, slots=slots).values() if rows]
        for _ in range(4 * NEAR if nearly else 0):
            if len(found) <= min(NEAR, count // 4):
                found[self._told(rng.choice(rng.choice(nearly)), slots)] = None
        for _ in range(100 * count):
            if len(found) == count:
                return [dict(zip(slots, values)) for values in found]
            found[self._told(self._other(scene, rng), slots)] = None
        raise InputError(f"{len(found)} captions are too few for a question of {count}; use the whole vocabulary")

    def between(self, scene: Scene, others: Sequence[Scene]) -> list[dict[str, str]]:
        """The facts of the scene and of these others, as far as the scene's caption says them."""
        return [dict(zip(said(scene), self._told(one, said(scene)))) for one in (scene, *others)]

    def _told(self, scene: Scene, slots: Sequence[str]) -> tuple[str, ...]:
        return tuple(only(facts(scene, self.vocabulary), slots).values())

    def _other(self, scene: Scene, rng: Random) -> Scene:
        """Another scene, mostly of the same event; half of them in the same place, painted in the same way."""
        other = rng.choice(self.by_event.get(scene.event, self.others) if rng.random() < 0.75 else self.others)
        if rng.random() < 0.5:
            return replace(other, place=scene.place, condition=scene.condition, painting=scene.painting)
        return other

    def changed(self, scene: Scene, rng: Random, *, slots: Sequence[str] | None = None) -> dict[str, list[Scene]]:
        """The scenes that differ from this one in one thing that its caption says (or `slots`), by that thing."""
        slots = said(scene) if slots is None else slots
        found = {
            "order": [replace(scene, actors=scene.actors[::-1])] if scene.event not in ANY_ORDER else [],
            "event": [replace(scene, event=event) for event in self._events(scene)],
            "count": [replace(scene, count=count) for count in range(2, 6)] if scene.event == "count" else [],
            "place": [replace(scene, place=place, condition=row.conditions[0]) for place, row in PLACES.items()],
            "ground": [replace(scene, condition=colour) for colour in PLACES["plain"].conditions]
            if scene.place == "plain"
            else [],
            "painting": [replace(scene, painting=painting) for painting in ("", *PAINTINGS)] if scene.painting else [],
            "thing": [self._another(scene, i, rng) for i in range(len(scene.actors)) for _ in range(8)],
        }
        for part, values in (
            ("colour", COLOURS),
            ("outfit", tuple(self.vocabulary.outfits)),
            ("worn", tuple(self.vocabulary.worn)),
            ("size", ("tiny", "", "huge")),
        ):
            found[part] = [
                _recast(scene, i, replace(actor, **{part: value}))
                for i, actor in enumerate(scene.actors)
                if getattr(actor, part) and f"{part} {i}" in slots
                for value in values
            ]
        true = self._told(scene, slots)
        return {part: [row for row in rows if self._told(row, slots) != true] for part, rows in found.items()}

    def _events(self, scene: Scene) -> Sequence[Event]:
        """What else two could do."""
        if len(scene.actors) != 2 or scene.event in ANY_ORDER:
            return ()
        return SPATIAL if scene.event in SPATIAL else ("beside",)

    def _another(self, scene: Scene, i: int, rng: Random) -> Scene:
        """Somebody, or something, else in an actor's place, as another scene of the same event has there."""
        actor = scene.actors[i]
        others: Sequence[str] = self.cast.get((scene.event, i), self.cast["alone", 0])
        if actor.outfit or actor.worn:
            others = list(self.vocabulary.people if actor.outfit == SHIRT else self.vocabulary.heads)
        return _recast(scene, i, replace(actor, concept=rng.choice(others)))


def _recast(scene: Scene, i: int, actor: Actor) -> Scene:
    return replace(scene, actors=(*scene.actors[:i], actor, *scene.actors[i + 1 :]))
