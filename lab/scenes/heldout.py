"""What training never sees together, though it sees both apart: pairs, riders and mounts, heads and outfits, things and
places.

Place: `imagine` asks it of every scene. The choice is a hash of the two names, so that it does not move when things are
added. The combinations that the README's prompts ask for are NOT held out (an astronaut on a horse and on mars, a dog
in a suit, dogs at cards, a castle in a forest): whoever tries the project should get them right, so what the tables say
about held-out combinations says nothing about those prompts, and their own table is one of seen things.
"""

from lab.emblem.splits import fraction
from lab.scenes.scene import Combination, Scene, combinations

SEED = 20261130
SHARES = {"pair": 0.05, "ride": 0.08, "dress": 0.08, "place": 0.04}
KINDS = tuple(SHARES)
HORSE, ASTRONAUT, DOG_FACE = "1F40E", "1F9D1-200D-1F680", "1F436"
PROMPTED: set[Combination] = {
    ("ride", ASTRONAUT, HORSE),
    ("place", ASTRONAUT, "mars"),
    ("place", HORSE, "mars"),
    ("place", "1F3F0", "forest"),
    *(("dress", DOG_FACE, outfit) for outfit in ("1F935", "1F9D1-200D-1F4BC")),
    *(("place", dog, place) for dog in (DOG_FACE, "1F415") for place in ("room", "city", "street")),
    *(("pair", min("1F3F0", tree), max("1F3F0", tree)) for tree in ("1F332", "1F333")),
}


def is_held_out(combination: Combination) -> bool:
    """Whether training must not see the two together."""
    return combination not in PROMPTED and fraction(SEED, *combination) < SHARES[combination[0]]


def held_out(scene: Scene) -> set[str]:
    """The kinds of held-out combinations in a scene; training may see it if there are none."""
    return {combination[0] for combination in combinations(scene) if is_held_out(combination)}
