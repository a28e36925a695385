"""A scene's facts as a judge is asked about them: a class for each of a fixed list of slots.

Place: between a scene and the judge of scenes. A slot is one thing that a caption may say (what happens, who is the
second, which colour has the first), a class one of its values. All scenes have all slots, "" where there is nothing, so
that any two captions differ in the slots that they say otherwise, and in no others. Things go by their English names:
a dog and a dog's face are both a dog. Left out: plants and clouds, which belong to the place.
"""

from collections.abc import Iterable, Mapping

from lab.scenes.imagine import COLOURS, PAINTINGS
from lab.scenes.places import PLACES
from lab.scenes.scene import SHIRT, Actor, Event, Scene
from lab.scenes.sprites import HIDDEN, STYLES
from lab.scenes.vocabulary import Vocabulary

ACTORS = 3
PARTS = ("name", "colour", "size", "outfit", "worn")  # of each actor; their slots are "name 0" ...
WHOLE = ("event", "count", "place", "condition", "painting", "style")
SLOTS = (*WHOLE, *(f"{part} {i}" for i in range(ACTORS) for part in PARTS))

COLOURLESS = ("pencil", "sepia")  # ways of painting

Facts = Mapping[str, str]  # by slot, the slots that are not said left out


def kind(slot: str) -> str:
    """Which classes a slot has: "name" of "name 0"."""
    return slot.split()[0]


def classes(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Every class of each kind of slot."""
    concepts = {*vocabulary.things, *vocabulary.heads, *vocabulary.people}
    conditions = {condition for place in PLACES.values() for condition in place.conditions}
    return {
        "event": tuple(Event.__args__),  # type: ignore[attr-defined]
        "count": tuple("12345"),
        "place": tuple(PLACES),
        "condition": tuple(sorted(conditions)),
        "painting": ("", *PAINTINGS),
        "style": (*STYLES, *HIDDEN),
        "name": ("", *sorted({vocabulary.name(concept, "en") for concept in concepts})),
        "colour": ("", *COLOURS),
        "size": ("", "tiny", "huge"),
        "outfit": ("", SHIRT, *sorted(vocabulary.outfits)),
        "worn": ("", *sorted(vocabulary.worn)),
    }


def facts(scene: Scene, vocabulary: Vocabulary) -> dict[str, str]:
    """The class of every slot."""
    found = {
        "event": scene.event, "count": str(scene.count), "place": scene.place, "condition": scene.condition,
        "painting": scene.painting, "style": scene.style,
    }  # fmt: skip
    for i in range(ACTORS):
        actor = scene.actors[i] if i < len(scene.actors) else Actor(concept="")
        name = vocabulary.name(actor.concept, "en") if actor.concept else ""
        values = (name, actor.colour, actor.size, actor.outfit, actor.worn)
        found |= {f"{part} {i}": value for part, value in zip(PARTS, values)}
    return found


def said(scene: Scene) -> list[str]:
    """The slots that a prompt for the scene speaks of and a picture shows: not the time, nor a shirt that is only a
    body, nor the number of those who play; size and way of painting where there is one, colours where any is seen."""
    grey = scene.painting in COLOURLESS
    silent = {"style"} | {f"size {i}" for i in range(ACTORS)}
    silent |= {"condition"} if grey or scene.place != "plain" else set()
    silent |= {"painting"} if not scene.painting else set()
    silent |= {"count"} if scene.event != "count" else set()
    silent |= {f"colour {i}" for i in range(ACTORS)} if grey else set()
    for i, actor in enumerate(scene.actors):
        silent |= {f"outfit {i}", f"colour {i}"} if actor.outfit == SHIRT else set()
        silent -= {f"size {i}"} if actor.size else set()
    return [slot for slot in SLOTS if slot not in silent]


def only(facts: Facts, slots: Iterable[str]) -> dict[str, str]:
    """Of the facts those in `slots`."""
    return {slot: facts[slot] for slot in slots}
