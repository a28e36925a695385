"""What training never sees together, though it sees both apart: pairs, riders and mounts, heads and outfits, things and
places; and what it sees more often than chance would have it.

Place: `imagine` asks it of every scene. The choice is a hash of the two names, so that it does not move when things are
added. What the README's prompts ask for is NOT held out (an astronaut on a horse and on mars, a dog in a suit, dogs at
cards, a castle in a forest, an impressionist city): whoever tries the project should get them right, so two scenes of
a hundred are such. What the tables say of held-out combinations is therefore told from other prompts, and the table of
the README's prompts is one of things often seen.
"""

from dataclasses import dataclass

from lab.emblem.splits import fraction
from lab.scenes.scene import Actor, Combination, Event, Scene, combinations

SEED = 20261130
SHARES = {"pair": 0.05, "ride": 0.08, "dress": 0.08, "place": 0.04}
KINDS = tuple(SHARES)
HORSE, ASTRONAUT, DOG, SUIT, CASTLE, TREES = "1F40E", "1F9D1-200D-1F680", "1F436", "1F935", "1F3F0", ("1F332", "1F333")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A scene that a prompt of the README asks for, in one of `places`."""

    event: Event
    concepts: tuple[str, ...] = ()
    outfit: str = ""
    places: tuple[str, ...]
    painting: str = ""


SHOWN = (
    Shown(event="ride", concepts=(ASTRONAUT, HORSE), places=("mars", "mars", "plain", "moon", "desert")),
    Shown(event="scenery", places=("city",), painting="oil"),
    Shown(event="alone", concepts=(DOG,), outfit=SUIT, places=("plain", "plain", "city", "room", "street")),
    Shown(event="cards", concepts=(DOG,), places=("plain", "room", "room", "street")),
    Shown(event="alone", concepts=(CASTLE,), places=("forest",)),
    *(Shown(event="surround", concepts=(CASTLE, tree), places=("plain", "meadow")) for tree in TREES),
)
PROMPTED: set[Combination] = {
    combination
    for shown in SHOWN
    for place in shown.places
    for combination in combinations(
        Scene(
            event=shown.event,
            actors=tuple(Actor(concept=key, outfit=shown.outfit) for key in shown.concepts),
            place=place,
            style="",
        )
    )
}


def is_held_out(combination: Combination) -> bool:
    """Whether training must not see the two together."""
    return combination not in PROMPTED and fraction(SEED, *combination) < SHARES[combination[0]]


def held_out(scene: Scene) -> set[str]:
    """The kinds of held-out combinations in a scene; training may see it if there are none."""
    return {combination[0] for combination in combinations(scene) if is_held_out(combination)}
