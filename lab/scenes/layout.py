"""Layout: from a scene's facts to figures at their places in the picture, in the order they are pasted.

Place: between `imagine` and `render`. Coordinates are shares of the picture's side, y downwards. Chance is the scene's
own: equal facts with another `rng` give another picture of the same scene.
"""

from collections.abc import Callable
from random import Random

from lab.scenes.figures import Artist, Figure, bounds, mirrored, stood
from lab.scenes.places import PLACES, Place
from lab.scenes.scene import Actor, Scene

SIZES = {"tiny": 0.32, "huge": 1.6, "": 1.0}
LARGEST = 0.86
SINGLE = 1.3  # how much larger than among others a thing alone is drawn
SKY = {"day": (("2600", 0.3), ("2601", 0.7)), "sunset": (("2601", 0.5),), "night": (("1F319", 0.5),),
       "rain": (("2601", 0.6),), "snow": (("2601", 0.4),), "fog": (), "sandstorm": ()}  # fmt: skip
FAR, NEAR = (0.7, 0.77), (0.96, 1.04)  # the feet of plants behind and in front


def layout(scene: Scene, artist: Artist, rng: Random) -> tuple[list[Figure], list[Figure]]:
    """What belongs to the place (behind all), and the figures of the scene, back to front."""
    place = PLACES[scene.place]
    figures = EVENTS[scene.event](scene, artist, place, rng)
    back, front = _plants(scene, artist, place, rng)
    return _sky(scene, artist, rng) + back, figures + front


def _maybe_mirrored(figure: Figure, rng: Random) -> Figure:
    return mirrored(figure) if rng.random() < 0.5 else figure


def _size(scene: Scene, artist: Artist, actor: Actor, factor: float) -> float:
    if actor.outfit or actor.worn:
        return min(LARGEST, 0.5 * factor)
    return min(LARGEST, artist.vocabulary.things[actor.concept].size * factor * SIZES[actor.size])


def _foot(actor: Actor, artist: Artist, place: Place, rng: Random, size: float) -> float:
    """The height of a thing's lower end: on the ground, in the air, or anywhere where nothing has weight."""
    where = artist.vocabulary.things[actor.concept].where if actor.concept in artist.vocabulary.things else "ground"
    if place.weightless:
        return rng.uniform(0.35, 0.65) + size / 2
    if where == "air" and not place.sky and place is PLACES["plain"]:
        return 0.5 + size / 2
    if where == "air":
        return min(0.66, rng.uniform(0.12, 0.28) + size)
    return rng.uniform(*place.ground)


def _is_bust(actor: Actor, artist: Artist) -> bool:
    thing = artist.vocabulary.things.get(actor.concept)
    return bool(actor.outfit) or (thing is not None and thing.subgroup in ("person", "person-role"))


def _alone(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    (actor,) = scene.actors
    figure = _maybe_mirrored(artist.actor(actor), rng)
    if _is_bust(actor, artist) and not actor.size and not place.weightless and rng.random() < 0.6:
        return [stood(figure, rng.uniform(0.66, 0.84), rng.uniform(0.42, 0.58), 1.01)]  # a portrait
    if scene.place == "plain":
        size = min(LARGEST, rng.uniform(0.55, 0.8) * SIZES[actor.size])
        return [stood(figure, size, rng.uniform(0.45, 0.55), 0.5 + size / 2 + rng.uniform(-0.04, 0.06))]
    size = _size(scene, artist, actor, rng.uniform(1.0, SINGLE))
    return [stood(figure, size, rng.uniform(0.34, 0.66), _foot(actor, artist, place, rng, size))]


def _beside(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    count = len(scene.actors)
    figures = []
    for i, actor in enumerate(scene.actors):
        size = min(0.46 if count == 2 else 0.34, _size(scene, artist, actor, 1.0 if count == 2 else 0.8))
        x = (i + 0.5) / count + rng.uniform(-0.02, 0.02)
        foot = _foot(actor, artist, place, rng, size)
        figures.append(stood(_maybe_mirrored(artist.actor(actor), rng), size, x, foot))
    return figures


def _above(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    high, low = (_maybe_mirrored(artist.actor(actor), rng) for actor in scene.actors)
    x = rng.uniform(0.4, 0.6)
    small = min(0.38, _size(scene, artist, scene.actors[0], 0.85))
    large = min(0.44, _size(scene, artist, scene.actors[1], 0.9))
    return [
        stood(low, large, x + rng.uniform(-0.06, 0.06), rng.uniform(*place.ground)),
        stood(high, small, x, rng.uniform(0.06, 0.1) + small),
    ]


def _before(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    near, far = (_maybe_mirrored(artist.actor(actor), rng) for actor in scene.actors)
    side = rng.choice((-1, 1))
    foot = place.ground[0]
    back = stood(far, min(0.66, 1.3 * _size(scene, artist, scene.actors[1], 1.0)), 0.5 + side * 0.1, foot)
    return [back, stood(near, min(0.4, _size(scene, artist, scene.actors[0], 0.9)), 0.5 - side * 0.12, foot + 0.14)]


def _whole(scene: Scene, figure: Figure, place: Place, rng: Random, size: float) -> list[Figure]:
    """One figure in the middle of the ground."""
    foot = 0.5 + size / 2 if place.weightless or scene.place == "plain" else rng.uniform(*place.ground)
    return [stood(_maybe_mirrored(figure, rng), size, rng.uniform(0.44, 0.56), max(foot, size + 0.04))]


def _on(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    return _whole(scene, artist.on(artist.actor(scene.actors[0]), scene.actors[1].concept), place, rng, 0.74)


def _inside(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    return _whole(scene, artist.inside(artist.actor(scene.actors[0]), scene.actors[1].concept), place, rng, 0.62)


def _under(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    cover = stood(artist.actor(scene.actors[1]), 0.78, 0.5, min(0.92, place.ground[1]))
    size = min(0.34, _size(scene, artist, scene.actors[0], 0.75))
    side = rng.choice((-1, 1)) * rng.uniform(0.1, 0.16)
    below = stood(_maybe_mirrored(artist.actor(scene.actors[0]), rng), size, 0.5 + side, bounds(cover)[3] + 0.02)
    return [cover, below]


def _surround(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    """Copies of the second in a ring that lies on the ground, or stands upright where nothing has weight."""
    middle = artist.actor(scene.actors[0])
    other = artist.actor(scene.actors[1])
    flat = place.weightless or scene.place == "plain"
    y = 0.5 if flat else 0.7
    ring = [(-0.38, 0.0), (-0.26, -0.1), (0.26, -0.1), (0.38, 0.0), (-0.28, 0.14), (0.0, 0.2), (0.28, 0.14)]
    if flat:
        ring = [(0, -0.36), (-0.31, -0.18), (0.31, -0.18), (-0.31, 0.18), (0.31, 0.18), (0, 0.36)]
    size = 0.2
    low = size / 2 if flat else 0.06
    copies = [
        (dy, stood(_maybe_mirrored(other, rng), size, 0.5 + dx + rng.uniform(-0.02, 0.02), y + dy + low))
        for dx, dy in ring
    ]
    centre = stood(middle, 0.4, 0.5, y + (0.2 if flat else 0.1))
    return [figure for dy, figure in copies if dy < 0] + [centre] + [figure for dy, figure in copies if dy >= 0]


SPOTS: dict[int, list[tuple[float, float]]] = {
    2: [(0.28, 0.0), (0.72, 0.0)],
    3: [(0.2, 0), (0.5, 0.03), (0.8, 0)],
    4: [(0.3, -0.3), (0.72, -0.3), (0.26, 0), (0.74, 0)],
    5: [(0.3, -0.3), (0.7, -0.3), (0.18, 0), (0.5, 0), (0.82, 0)],
}


def _count(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    """Equal things, apart from one another, so that they can be counted."""
    (actor,) = scene.actors
    size = {2: 0.42, 3: 0.29, 4: 0.33, 5: 0.28}[scene.count]
    size *= rng.uniform(0.8, 1.0)
    foot = 0.86 if scene.count > 3 or not (place.weightless or scene.place == "plain") else 0.64
    return [
        stood(_maybe_mirrored(artist.actor(actor), rng), size, x + rng.uniform(-0.02, 0.02), foot + dy + 0.04)
        for x, dy in SPOTS[scene.count]
    ]


def _ride(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
    rider = artist.actor(scene.actors[0])
    return _whole(scene, artist.riding(rider, scene.actors[1].concept), place, rng, rng.uniform(0.66, 0.8))


def _doing(make: Callable[[Scene, Artist, Random], Figure], size: float) -> Callable[..., list[Figure]]:
    """An event that one figure shows."""

    def event(scene: Scene, artist: Artist, place: Place, rng: Random) -> list[Figure]:
        return _whole(scene, make(scene, artist, rng), place, rng, size * rng.uniform(0.9, 1.1))

    return event


def _with(scene: Scene, artist: Artist) -> tuple[Figure, str]:
    return artist.actor(scene.actors[0]), scene.actors[1].concept


def _players(scene: Scene, artist: Artist) -> list[Figure]:
    return [artist.actor(actor) for actor in scene.actors] * scene.count


def _plants(scene: Scene, artist: Artist, place: Place, rng: Random) -> tuple[list[Figure], list[Figure]]:
    """What grows in a place: behind the things, and at the sides before them."""
    there = {actor.concept for actor in scene.actors}
    plants = [key for key in place.plants if (artist.style, key) in artist.vocabulary.drawn and key not in there]
    dense = scene.place == "forest"
    if not plants or (not dense and rng.random() < 0.45):
        return [], []
    behind = rng.randint(5, 7) if dense else rng.randint(1, 2)
    back = []
    for i in range(behind):
        x = (i + rng.uniform(0.2, 0.8)) / behind
        if place.weightless and scene.place == "space":
            x = rng.choice((rng.uniform(0.05, 0.2), rng.uniform(0.8, 0.95)))
            back.append(stood(artist.single(rng.choice(plants)), rng.uniform(0.12, 0.22), x, rng.uniform(0.2, 0.95)))
            continue
        low = FAR if scene.place not in ("room", "underwater") else (0.8, 0.86)
        size = rng.uniform(0.3, 0.46) if dense else rng.uniform(0.14, 0.3)
        back.append(stood(artist.single(rng.choice(plants)), size, x, rng.uniform(*low)))
    if not dense or rng.random() < 0.3:
        return back, []
    sides = [(rng.uniform(0.0, 0.08), 0.5), (rng.uniform(0.92, 1.0), 0.5)]
    return back, [stood(artist.single(rng.choice(plants)), size, x, rng.uniform(*NEAR)) for x, size in sides]


def _sky(scene: Scene, artist: Artist, rng: Random) -> list[Figure]:
    """Sun, moon and clouds."""
    there = {actor.concept for actor in scene.actors}
    if not PLACES[scene.place].sky:
        return []
    found = []
    for concept, odds in SKY[scene.condition]:
        if rng.random() < odds and concept not in there and (artist.style, concept) in artist.vocabulary.drawn:
            for _ in range(1 if concept != "2601" else rng.randint(1, 2)):
                x = rng.choice((rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92)))
                found.append(stood(artist.single(concept), rng.uniform(0.12, 0.2), x, rng.uniform(0.18, 0.3)))
    return found


EVENTS: dict[str, Callable[[Scene, Artist, Place, Random], list[Figure]]] = {
    "scenery": lambda scene, artist, place, rng: [],
    "alone": _alone,
    "beside": _beside,
    "count": _count,
    "above": _above,
    "before": _before,
    "on": _on,
    "inside": _inside,
    "under": _under,
    "surround": _surround,
    "ride": _ride,
    "hold": _doing(lambda scene, artist, rng: artist.holding(*_with(scene, artist), rng), 0.74),
    "eat": _doing(lambda scene, artist, rng: artist.eating(scene.actors[0].concept, scene.actors[1].concept), 0.7),
    "music": _doing(lambda scene, artist, rng: artist.playing(*_with(scene, artist)), 0.76),
    "ball": _doing(lambda scene, artist, rng: artist.at_ball(*_with(scene, artist)), 0.7),
    "cards": _doing(lambda scene, artist, rng: artist.table(_players(scene, artist), "cards", rng), 0.84),
    "chess": _doing(lambda scene, artist, rng: artist.table(_players(scene, artist), "chess", rng), 0.84),
}
