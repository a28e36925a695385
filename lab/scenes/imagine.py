"""Chance: from (seed, number) to the facts of a scene.

Place: the first step of drawing a scene. Which kind, which things, where and painted how are drawn anew for every
number; a scene with a held-out combination is thrown away and drawn again, or kept alone where such are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from lab.scenes.heldout import SHOWN, held_out
from lab.scenes.places import PLACES
from lab.scenes.scene import SHIRT, Actor, Event, Scene, concepts
from lab.scenes.sprites import STYLES
from lab.scenes.vocabulary import Vocabulary
from qkv.errors import InputError

STYLE_SHARES = dict(zip(STYLES, (0.34, 0.18, 0.22, 0.12, 0.14)))  # noto and gradient are the house's own
PAINTINGS = ("photo", "oil", "watercolour", "pencil", "pixel", "comic", "sepia")
PAINTED = 0.22  # of the scenes
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "grey", "white")
HEADS_ONLY = ("person", "face-costume", "face-hat")  # Unicode's subgroups
ROUNDS = 400  # tries until a scene is one that was asked for


def imagine(
    vocabulary: Vocabulary,
    seed: int,
    number: int,
    *,
    kinds: frozenset[str] | None = frozenset(),
    painted: bool = True,
    styles: Mapping[str, float] = STYLE_SHARES,
) -> Scene:
    """The facts of scene `number`. `kinds`: of combinations that must be held out ("pair" ...), all others seen; with
    none every combination is one that training may see. None itself asks for any combination, held out or not, and
    for nothing more often than chance has it. Raises InputError if there seems to be no such scene."""
    for turn in range(ROUNDS):
        scene = _scene(vocabulary, Random(f"{seed} {number} {turn}"), kinds, styles)
        drawn = all((scene.style, concept) in vocabulary.drawn for concept in concepts(scene))
        if drawn and kinds in (None, held_out(scene)):
            return scene if painted else replace(scene, painting="")
    raise InputError(f"no scene whose held-out combinations are {sorted(kinds or ())} was found in {ROUNDS} tries")


def _scene(vocabulary: Vocabulary, rng: Random, kinds: frozenset[str] | None, styles: Mapping[str, float]) -> Scene:
    shares = {event: share for event, share in SHARES.items() if _may(event, kinds)}
    event = rng.choices(list(shares), list(shares.values()))[0]
    if event == "shown":
        return _shown(rng)
    style = rng.choices(list(styles), list(styles.values()))[0]
    plain = rng.random() < 0.25 and "place" not in (kinds or ()) and event != "scenery"
    place = "plain" if plain else rng.choice(list(PLACES)[1:])
    actors, count = EVENTS[event](vocabulary, rng, style, place)
    return Scene(
        event=_event(event, actors),
        actors=actors,
        count=count,
        place=place,
        condition=_condition(place, rng),
        painting=rng.choice(PAINTINGS) if rng.random() < PAINTED else "",
        style=style,
    )


def _shown(rng: Random) -> Scene:
    """A scene that one of the README's prompts asks for: as any other, only more often."""
    shown = rng.choice(SHOWN)
    place = rng.choice(shown.places)
    return Scene(
        event=shown.event,
        actors=tuple(Actor(concept=key, outfit=shown.outfit) for key in shown.concepts),
        count=rng.randint(2, 4) if shown.event == "cards" else 1,
        place=place,
        condition=_condition(place, rng),
        painting=shown.painting if rng.random() < 0.7 else rng.choice(("", *PAINTINGS)),
        style=rng.choices(list(STYLE_SHARES), list(STYLE_SHARES.values()))[0],
    )


def _may(event: str, kinds: frozenset[str] | None) -> bool:
    """Whether an event can hold combinations of all the kinds."""
    if not kinds:
        return event != "shown" or kinds is not None
    if event in ("scenery", "shown"):
        return False
    holds = {"ride": {"ride"}, "dressed": {"dress"}, "alone": set(), "count": set(), "people": set()}.get(
        event, {"pair"}
    )
    return kinds <= holds | {"place"}


def _event(event: str, actors: tuple[Actor, ...]) -> Event:
    return "alone" if event in ("dressed", "accessory", "people") else event  # type: ignore[return-value]


def _condition(place: str, rng: Random) -> str:
    conditions = PLACES[place].conditions
    return conditions[0] if conditions[0] == "day" and rng.random() < 0.4 else rng.choice(conditions)


Cast = tuple[tuple[Actor, ...], int]


def _alone(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    return (_actor(vocabulary, rng, style, place),), 1


def _scenery(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    return (), 1


def _beside(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    return _distinct(vocabulary, rng, style, place, 2 if rng.random() < 0.75 else 3), 1


def _two(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    return _distinct(vocabulary, rng, style, place, 2), 1


def _above(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    flying = rng.choice(vocabulary.by_where["air"]) if rng.random() < 0.6 else _thing(vocabulary, rng, place)
    low = _other(vocabulary, rng, place, flying)
    return (Actor(concept=flying), Actor(concept=low)), 1


def _count(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    return (_actor(vocabulary, rng, style, place, sized=False),), rng.randint(2, 5)


def _pair_with(role: str) -> Callable[[Vocabulary, Random, str, str], Cast]:
    """A thing of the place, and one of a role's."""

    def cast(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
        second = rng.choice(vocabulary.roles[role])
        small = [key for key, thing in vocabulary.things.items() if thing.size <= 0.42 and key != second]
        return (Actor(concept=rng.choice(small)), Actor(concept=second)), 1

    return cast


def _between(first: str, second: str) -> Callable[[Vocabulary, Random, str, str], Cast]:
    """Somebody of one role with something of another."""

    def cast(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
        who = rng.choice(vocabulary.roles[first])
        what = rng.choice([key for key in vocabulary.roles[second] if key != who])
        return (_somebody(vocabulary, rng, who), Actor(concept=what)), 1

    return cast


def _eat(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    who, what = rng.choice(vocabulary.roles["players"]), rng.choice(vocabulary.roles["foods"])
    return (Actor(concept=who), Actor(concept=what)), 1


def _ride(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    mount = rng.choice([key for key, row in vocabulary.mounts.items() if row.at(style)])
    rider = rng.choice([key for key in vocabulary.roles["riders"] if key != mount])
    return (_somebody(vocabulary, rng, rider), Actor(concept=mount)), 1


def _dressed(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    outfit = rng.choice([key for key, row in vocabulary.outfits.items() if row.at(style)])
    return (Actor(concept=rng.choice(list(vocabulary.heads)), outfit=outfit),), 1


def _accessory(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    worn = rng.choice(list(vocabulary.worn))
    heads = [key for key, head in vocabulary.heads.items() if head.at[1] or vocabulary.worn[worn].on != "eyes"]
    return (Actor(concept=rng.choice(heads), worn=worn),), 1


def _people(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    """Somebody of named parts: the hair or beard of a head, a shirt, something worn."""
    who = rng.choice([key for key, row in vocabulary.people.items() if row.at(style)])
    worn = rng.choice(list(vocabulary.worn)) if rng.random() < 0.75 else ""
    return (Actor(concept=who, outfit=SHIRT, colour=rng.choice(COLOURS), worn=worn),), 1


def _game(vocabulary: Vocabulary, rng: Random, style: str, place: str) -> Cast:
    """Two to four of one kind, or two different ones."""
    players = vocabulary.roles["players"]
    if rng.random() < 0.6:
        return (_somebody(vocabulary, rng, rng.choice(players)),), rng.randint(2, 4)
    return tuple(_somebody(vocabulary, rng, key) for key in rng.sample(players, 2)), 1


def _somebody(vocabulary: Vocabulary, rng: Random, concept: str) -> Actor:
    """Who does something: with a shirt if the drawings show a head only."""
    if vocabulary.things[concept].subgroup in HEADS_ONLY:
        return Actor(concept=concept, outfit=SHIRT, colour=rng.choice(COLOURS))
    return Actor(concept=concept)


def _actor(vocabulary: Vocabulary, rng: Random, style: str, place: str, *, sized: bool = True) -> Actor:
    """A thing that may be in `place`, now and then recoloured, tiny or huge."""
    if rng.random() < 0.16:
        return Actor(concept=rng.choice(vocabulary.roles["recoloured"]), colour=rng.choice(COLOURS))
    concept = _thing(vocabulary, rng, place)
    if vocabulary.things[concept].subgroup == "person" and rng.random() < 0.7:
        return _somebody(vocabulary, rng, concept)
    size = rng.choice(("tiny", "huge")) if sized and rng.random() < 0.1 else ""
    return Actor(concept=concept, size=size)


def _distinct(vocabulary: Vocabulary, rng: Random, style: str, place: str, count: int) -> tuple[Actor, ...]:
    actors: dict[str, Actor] = {}
    while len(actors) < count:
        actor = _actor(vocabulary, rng, style, place, sized=False)
        actors.setdefault(actor.concept, actor)
    return tuple(actors.values())


def _thing(vocabulary: Vocabulary, rng: Random, place: str) -> str:
    """A concept for a place: what swims mostly in water, all else anywhere."""
    water = PLACES[place].floats
    odds = {"ground": 0.3, "air": 0.1, "water": 0.6} if water else {"ground": 0.88, "air": 0.1, "water": 0.02}
    where = rng.choices(list(odds), list(odds.values()))[0]
    return rng.choice(vocabulary.by_where[where] or vocabulary.by_where["ground"])


def _other(vocabulary: Vocabulary, rng: Random, place: str, than: str) -> str:
    while (found := _thing(vocabulary, rng, place)) == than or vocabulary.things[found].where == "air":
        pass
    return found


SHARES: dict[str, float] = {
    "shown": 0.02,
    "scenery": 0.04,
    "alone": 0.23,
    "beside": 0.13,
    "above": 0.04,
    "before": 0.03,
    "on": 0.03,
    "inside": 0.03,
    "under": 0.02,
    "surround": 0.02,
    "count": 0.08,
    "dressed": 0.09,
    "accessory": 0.035,
    "people": 0.05,
    "ride": 0.07,
    "hold": 0.02,
    "eat": 0.02,
    "cards": 0.02,
    "chess": 0.005,
    "music": 0.01,
    "ball": 0.01,
}
EVENTS: Mapping[str, Callable[[Vocabulary, Random, str, str], Cast]] = {
    "scenery": _scenery,
    "alone": _alone,
    "beside": _beside,
    "above": _above,
    "before": _two,
    "on": _pair_with("supports"),
    "inside": _pair_with("containers"),
    "under": _pair_with("covers"),
    "surround": _two,
    "count": _count,
    "dressed": _dressed,
    "accessory": _accessory,
    "people": _people,
    "ride": _ride,
    "hold": _between("holders", "held"),
    "eat": _eat,
    "cards": _game,
    "chess": _game,
    "music": _between("holders", "instruments"),
    "ball": _between("players", "balls"),
}
