"""The scenes as a data set: numbers in, facts, pictures and captions out, all from (seed, number).

Place: what training, measuring and `python -m lab data scenes` read. Nothing but the sprites is stored: a core draws a
hundred scenes a second, so that no training has to see one twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np
from PIL.Image import Image, fromarray

from lab.emblem import dataset
from lab.scenes import sprites, vocabulary
from lab.scenes.captions import caption
from lab.scenes.imagine import STYLE_SHARES, imagine
from lab.scenes.render import KEPT, Picture, draw
from lab.scenes.scene import Scene
from lab.scenes.sprites import STYLES, Sprites
from lab.scenes.vocabulary import Vocabulary
from qkv.pictures.sheet import contact_sheet

NOTE = "The scenes are composed of these works, cut out, scaled, mirrored and recoloured; each keeps its own licence."


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Scenes of one seed. `kinds`: of combinations that are held out in all of them (see `imagine`); none: as training
    may see them. `painted`: some are painted in one of the ways of painting. `styles`: the drawing styles' shares."""

    sprites: Sprites
    vocabulary: Vocabulary
    seed: int
    kinds: frozenset[str] | None = frozenset()
    painted: bool = True
    styles: Mapping[str, float] = field(default_factory=lambda: STYLE_SHARES)

    def facts(self, number: int) -> Scene:
        return imagine(self.vocabulary, self.seed, number, kinds=self.kinds, painted=self.painted, styles=self.styles)

    def picture(self, number: int, side: int = KEPT) -> Picture:
        """uint8 (Y, X, 3)."""
        return draw(self.facts(number), self.sprites, self.vocabulary, Random(f"{self.seed} {number}"), side)

    def pictures(self, count: int) -> Picture:
        """The first `count`, uint8 (N, Y, X, 3)."""
        return np.stack([self.picture(number) for number in range(count)])

    def caption(self, number: int, rng: Random, *, language: str = "en") -> str:
        return caption(self.facts(number), self.vocabulary, rng, language=language)


def load(seed: int, *, kinds: frozenset[str] = frozenset(), painted: bool = True, progress: bool = True) -> Scenes:
    """The scenes of a seed; renders the sprites first where that was not done yet. Raises what `npm.fetch` raises."""
    cut = sprites.load(progress=progress)
    return Scenes(sprites=cut, vocabulary=vocabulary.load(cut), seed=seed, kinds=kinds, painted=painted)


def painter(seed: int) -> Callable[[int], Picture]:
    """What draws the scenes of a seed, as training sees them."""
    return load(seed, progress=False).picture


def sheet(scenes: Scenes, count: int, *, columns: int = 6) -> Image:
    """A contact sheet of the first `count` scenes at twice their side, each with a caption."""
    pictures = [fromarray(scenes.picture(number)).resize((2 * KEPT, 2 * KEPT)) for number in range(count)]
    return contact_sheet(pictures, [scenes.caption(number, Random(number)) for number in range(count)], columns=columns)


def notice() -> str:
    """Licences and attributions of everything that scenes are made of."""
    table = dataset.table()
    used = [icons for icons in table.sets if icons.style in STYLES]
    return "\n".join([NOTE, *dataset.attributions([*used, table.names])]) + "\n"
