"""Figures: sprites put together, a head on an outfit, a rider on its mount, players round a table.

Place: between a scene's facts and its layers. A figure is a list of parts, boxes in units of its own, that `layout`
scales and moves as one. Where sprites touch is read from the tables of anchors and from the sprites' upper edges.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from lab.scenes.scene import PAWN, SHIRT, Actor
from lab.scenes.sprites import Sprites
from lab.scenes.vocabulary import Vocabulary

SINK = 0.2  # of a rider's height, that is hidden behind its mount's lower part
FRONT = 0.02  # of a mount's height: how far below the seat its lower part begins


@dataclass(frozen=True, kw_only=True)
class Part:
    """A sprite, or with "@" a shape that `shapes` draws, in the box from (x, y), its upper left, y downwards.

    Of the sprite only the rows from `top` to `low` are shown, and within `oval` (centre and radius in units of the
    width) if that is given. `bitten` takes a bite out of it. `skin` is a head, whose colour its wearer's neck takes.
    """

    concept: str
    x: float
    y: float
    width: float
    height: float
    colour: str = ""
    mirrored: bool = False
    top: float = 0.0
    low: float = 1.0
    oval: tuple[float, float, float] | None = None
    bitten: bool = False
    skin: str = ""


Figure = tuple[Part, ...]


def bounds(figure: Iterable[Part]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is shown."""
    parts = list(figure)
    return (
        min(part.x for part in parts),
        min(part.y + part.top * part.height for part in parts),
        max(part.x + part.width for part in parts),
        max(part.y + part.low * part.height for part in parts),
    )


def moved(figure: Figure, scale: float, x: float, y: float) -> Figure:
    """The figure scaled about (0, 0), then moved."""
    return tuple(
        replace(part, x=part.x * scale + x, y=part.y * scale + y, width=part.width * scale, height=part.height * scale)
        for part in figure
    )


def stood(figure: Figure, size: float, x: float, y: float) -> Figure:
    """The figure with its longer side `size`, the middle of its bottom at (x, y)."""
    left, top, right, bottom = bounds(figure)
    scale = size / max(right - left, bottom - top)
    return moved(figure, scale, x - scale * (left + right) / 2, y - scale * bottom)


def mirrored(figure: Figure) -> Figure:
    """Left and right exchanged, about x = 0."""
    return tuple(
        replace(
            part,
            x=-part.x - part.width,
            mirrored=not part.mirrored,
            oval=(1 - part.oval[0], *part.oval[1:]) if part.oval else None,
        )
        for part in figure
    )


@dataclass(frozen=True)
class Artist:
    """Makes figures of one drawing style."""

    sprites: Sprites
    vocabulary: Vocabulary
    style: str

    def single(self, concept: str, colour: str = "") -> Figure:
        """One sprite, its longer side 1."""
        width, height = self.sprites.get(self.style, concept).size
        longer = max(width, height)
        return (Part(concept=concept, x=0, y=0, width=width / longer, height=height / longer, colour=colour),)

    def actor(self, actor: Actor) -> Figure:
        """A thing as it is: recoloured, dressed, with a hat."""
        if actor.outfit == SHIRT:
            head = self.wearing(actor.concept, actor.worn) if actor.worn else self.head(actor.concept)
            return self.clothed(head, actor.colour)
        if actor.outfit:
            return self.dressed(actor.concept, actor.outfit)
        if actor.worn:
            return self.wearing(actor.concept, actor.worn)
        return self.single(actor.concept, actor.colour)

    def head(self, concept: str) -> Figure:
        """A sprite without the shoulders that some drawings of a head have."""
        (face,) = self.single(concept)
        known = concept in self.vocabulary.people
        return (replace(face, low=self.vocabulary.face(concept, self.style)[2] if known else 1.0),)

    def clothed(self, head: Figure, colour: str) -> Figure:
        """A head on a shirt: half a body for those who are drawn without one."""
        (shirt,), face = self.single(SHIRT, colour), head[0]
        shown = face.low * face.height
        scale = 0.66 * shirt.width / max(face.width, 0.9 * shown)
        chin = 0.17 * shirt.height
        return shirt, *moved(head, scale, (shirt.width - scale * face.width) / 2, chin - scale * shown)

    def dressed(self, head: str, outfit: str) -> Figure:
        """An outfit's body, and its hat, with another head: nothing of the first face stays."""
        (body,), (face,) = self.single(outfit), self.single(head)
        numbers = self.vocabulary.outfits[outfit].at(self.style)
        if self.vocabulary.outfits[outfit].inside:
            return self._helmet(body, face, numbers)
        neck, middle, hat, wide = numbers
        width = wide * body.width
        height = width * face.height / face.width
        chin = (neck + 0.07) * body.height
        placed = replace(face, x=middle * body.width - width / 2, y=chin - height, width=width, height=height)
        figure = (replace(body, top=neck, skin=head), placed)
        if not hat:
            return figure
        brow = placed.y + self.vocabulary.heads[head].at[0] * height + 0.03 * body.height
        return (*figure, replace(body, y=brow - hat * body.height, low=hat))

    def _helmet(self, body: Part, face: Part, numbers: tuple[float, ...]) -> Figure:
        x, y, radius = (number * body.width for number in numbers)
        y = numbers[1] * body.height
        dark = Part(concept="@hollow", x=x - radius, y=y - radius, width=2 * radius, height=2 * radius)
        width = 2.05 * radius / max(1.0, face.height / face.width)
        height = width * face.height / face.width
        oval = (0.5, 0.5 * height / width, radius / width)
        return body, dark, replace(face, x=x - width / 2, y=y - height / 2, width=width, height=height, oval=oval)

    def wearing(self, head: str, worn: str) -> Figure:
        """A head with a hat, glasses or something round its neck."""
        (face,), (item,) = self.head(head), self.single(worn)
        row = self.vocabulary.worn[worn]
        brow, eyes, neck = self.vocabulary.face(head, self.style)
        width = row.wide * face.width
        height = width * item.height / item.width
        top = {
            "hat": (brow + 0.05) * face.height - height,
            "eyes": eyes * face.height - height / 2,
            "neck": 0.94 * neck * face.height - 0.1 * height,
        }[row.on]
        return face, replace(item, x=(face.width - width) / 2, y=top, width=width, height=height)

    def riding(self, rider: Figure, mount: str) -> Figure:
        """The mount, the rider, then the mount's lower part again; who drives looks out behind the roof."""
        (body,), row = self.single(mount), self.vocabulary.mounts[mount]
        (seat,) = row.at(self.style)
        edge = self.edge(mount, seat)
        behind = row.sit == "behind"
        height = 0.52 if behind else 0.66
        left, top, right, bottom = bounds(rider)
        scale = height / max(bottom - top, 1.05 * (right - left))
        tall = (bottom - top) * scale
        foot = edge * body.height + (0.42 if behind else SINK) * tall
        sitting = moved(rider, scale, seat * body.width - scale * (left + right) / 2, foot - scale * bottom)
        if behind:
            return (*sitting, body)
        return (body, *sitting, replace(body, top=min(1.0, edge + FRONT)))

    def holding(self, holder: Figure, held: str, rng: Random) -> Figure:
        """Something in front of a lower corner of the body."""
        body, width, height = _unit(holder)
        item = self._sized(held, 0.5)
        return (*body, replace(item, x=rng.uniform(0.84, 0.94) * width - item.width / 2, y=0.98 * height - item.height))

    def eating(self, eater: str, food: str) -> Figure:
        """A bitten thing at the mouth of a head."""
        (body,), item = self.single(eater), self._sized(food, 0.44)
        person = self.vocabulary.things[eater].subgroup.startswith("person")
        mouth = {"noto": 0.68, "twemoji": 0.68}.get(self.style, 0.66) if person else 0.72
        return body, replace(item, x=0.62 * body.width - item.width / 2, y=mouth * body.height, bitten=True)

    def playing(self, player: Figure, instrument: str) -> Figure:
        """An instrument in front of the body, its lower half."""
        body, width, height = _unit(player)
        item = self._sized(instrument, 0.7)
        return (*body, replace(item, x=0.55 * width - item.width / 2, y=1.02 * height - 0.8 * item.height))

    def at_ball(self, player: Figure, ball: str) -> Figure:
        """A ball at the foot."""
        body, width, height = _unit(player)
        item = self._sized(ball, 0.34)
        return (*body, replace(item, x=width - 0.2 * item.width, y=height - item.height))

    def table(self, players: list[Figure], game: str, rng: Random) -> Figure:
        """Two to four behind a table with what is played on it."""
        figure: Figure = ()
        width = 0.52 if len(players) < 4 else 0.42
        for i, player in enumerate(players):
            figure += stood(player, width, 0.5 + i * width * 0.95, 0.58)
        left, _, right, _ = bounds(figure)
        middle, half = (left + right) / 2, max(0.62, (right - left) / 2 + 0.06)
        top = "@table" if game == "cards" else "@wood"
        figure += (Part(concept=top, x=middle - half, y=0.5, width=2 * half, height=0.5),)
        if game == "chess":
            board = Part(concept="@board", x=middle - 0.26, y=0.53, width=0.52, height=0.16)
            pawns = [stood(self.single(PAWN), 0.2, middle + d, 0.64) for d in (-0.14, 0.02, 0.15)]
            return (*figure, board, *(part for pawn in pawns for part in pawn))
        for i in range(2 * len(players)):
            x = middle + (i - len(players) + 0.5) * half * 0.72 / len(players)
            face = rng.choice(("@card-red", "@card-black"))
            figure += (Part(concept=face, x=x - 0.05, y=0.53 + 0.05 * (i % 2), width=0.1, height=0.13),)
        chips = [("@chip-red", -0.5), ("@chip-blue", 0.5), ("@chip-white", 0.38)]
        return figure + tuple(
            Part(concept=chip, x=middle + d * half - 0.04, y=0.64, width=0.08, height=0.05) for chip, d in chips
        )

    def on(self, thing: Figure, support: str) -> Figure:
        """Something standing on the upper edge of something larger."""
        (body,) = self.single(support)
        edge = self.edge(support, 0.5)
        return (body, *stood(thing, 0.72, body.width / 2, edge * body.height + 0.05))

    def inside(self, thing: Figure, container: str) -> Figure:
        """Something that looks out of a container, whose front hides the lower half."""
        (body,) = self.single(container)
        edge = self.edge(container, 0.5)
        rim = edge + 0.22 * (1 - edge)
        standing = stood(thing, 0.8, body.width / 2, (rim + 0.3 * (1 - rim)) * body.height)
        return (body, *standing, replace(body, top=rim))

    def edge(self, concept: str, x: float) -> float:
        """The height of the sprite's upper edge about a column, as fractions of its sides; 0 the top."""
        return _edge(self.sprites, self.style, concept, x)

    def _sized(self, concept: str, size: float) -> Part:
        (part,) = self.single(concept)
        scale = size / max(part.width, part.height)
        return replace(part, width=part.width * scale, height=part.height * scale)


def _unit(figure: Figure) -> tuple[Figure, float, float]:
    """The figure with its upper left at (0, 0) and its longer side 1; its width and height."""
    left, top, right, bottom = bounds(figure)
    scale = 1 / max(right - left, bottom - top)
    return moved(figure, scale, -left * scale, -top * scale), (right - left) * scale, (bottom - top) * scale


EDGES: dict[tuple[int, str, str, float], float] = {}


def _edge(sprites: Sprites, style: str, concept: str, x: float) -> float:
    key = (id(sprites), style, concept, x)
    if key not in EDGES:
        alpha = np.asarray(sprites.get(style, concept).convert("RGBA").getchannel("A"))
        half = max(1, alpha.shape[1] // 40)
        middle = round(x * (alpha.shape[1] - 1))
        columns = alpha[:, max(0, middle - half) : middle + half + 1] > 128
        tops = np.where(columns.any(0), columns.argmax(0), alpha.shape[0])
        EDGES[key] = float(min(np.median(tops), alpha.shape[0] - 1)) / alpha.shape[0]
    return EDGES[key]
