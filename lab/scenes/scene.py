"""A scene's facts: what is in it, doing what, where, painted how. All that captions and judges know of it.

Place: between chance (`imagine`) and the picture (`layout`, `render`) and its words (`captions`).
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

SHIRT, PAWN = "1F455", "265F"
Event = Literal[
    "scenery", "alone", "beside", "count", "above", "before", "on", "inside", "under", "surround",
    "ride", "hold", "eat", "cards", "chess", "music", "ball",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One thing, as it is: recoloured, "tiny" or "huge", dressed in an outfit's clothes, wearing a hat or the like.

    Whoever is drawn as a head only gets a body by the outfit SHIRT; `colour` is then the shirt's.
    """

    concept: str
    colour: str = ""
    size: str = ""
    outfit: str = ""
    worn: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What happens: `event` says what actors[0] does to actors[1], or that `count` of actors[0] are there.

    scenery: the place alone. beside: from left to right as listed. above, on, inside, under: the first is above
    (on ...) the second. before: the first stands in front. surround: the second's copies stand around the first. ride:
    the first rides or drives the second. hold, eat, music, ball: the first holds (eats, plays) the second. cards,
    chess: all play.
    `painting` is a way of painting, "" for none; `style` the drawing style of the sprites.
    """

    event: Event
    actors: tuple[Actor, ...]
    count: int = 1
    place: str = "plain"
    condition: str = ""
    painting: str = ""
    style: str


def line(scene: Scene) -> str:
    """The facts as a line of JSON."""
    return json.dumps(asdict(scene), ensure_ascii=False)


def from_line(text: str) -> Scene:
    """What `line` wrote. Raises ValueError, TypeError or KeyError for what it did not."""
    values = json.loads(text)
    return Scene(**values | {"actors": tuple(Actor(**actor) for actor in values["actors"])})


def concepts(scene: Scene) -> set[str]:
    """Every sprite that a scene's figures are made of."""
    found = {key for actor in scene.actors for key in (actor.concept, actor.outfit, actor.worn) if key}
    return found | {PAWN} if scene.event == "chess" else found


Combination = tuple[str, str, str]  # kind ("pair", "ride", "dress", "place"), two names


def combinations(scene: Scene) -> list[Combination]:
    """Everything that meets in a scene, the parts of a pair in alphabetic order."""
    things = [actor.concept for actor in scene.actors]
    found: list[Combination] = []
    if scene.event == "ride":
        found.append(("ride", things[0], things[1]))
    else:
        pairs = {(min(a, b), max(a, b)) for i, a in enumerate(things) for b in things[i + 1 :] if a != b}
        found += [("pair", *pair) for pair in sorted(pairs)]
    found += [("dress", actor.concept, actor.outfit) for actor in scene.actors if actor.outfit not in ("", SHIRT)]
    if scene.place != "plain":
        found += [("place", concept, scene.place) for concept in dict.fromkeys(things)]
    return found
