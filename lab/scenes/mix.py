"""What text and U-Net are shown: kinds of scenes and single drawings in set shares, with captions drawn anew each time.

Place: between the encoded pictures (`latents`) and whatever is trained on them. Whose caption names no drawing style is
drawn in one of the house's own, so that a prompt without a style word does not ask for the mean of all. Latents are
given in units of their own channels: `Channels` says of which, and an autoencoder `fold`ed by it encodes and decodes
such, in a plain folder whose scaling is 1 and has no shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lab.emblem import captions
from lab.emblem.captions import Mix
from lab.emblem.items import Item
from lab.scenes.captions import HOUSE, caption
from lab.scenes.latents import Latents, SceneLatents
from lab.scenes.scene import SHIRT, Scene
from lab.scenes.vocabulary import Vocabulary
from lab.train.batches import Draw
from lab.train.latents import SEEN
from qkv.errors import ConfigError, InputError
from qkv.models.vae import VAE

HELD = 128  # scenes, the first ones, and drawings that only measurements see
SAMPLE = 4000  # scenes that measures of all are taken from; what is appended later changes none of them


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How likely a picture is of each kind, relative to the others. Raises ConfigError for shares that are none."""

    drawing: float = 0.25  # a single one, on white, as in emblem's data set
    ground: float = 0.14  # one thing on a coloured ground
    place: float = 0.18  # one thing in a place, or the place alone
    several: float = 0.15  # two or three things, or many of one
    doing: float = 0.06  # holding, eating, playing
    dressed: float = 0.09  # in an outfit, or with a hat or the like
    riding: float = 0.05
    recoloured: float = 0.04
    people: float = 0.04  # of named parts

    def __post_init__(self) -> None:
        if min(self.all().values()) < 0 or not sum(self.all().values()):
            raise ConfigError(f"mix={self.all()}; no share may be below 0, and not all may be 0")

    def all(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def kind(scene: Scene) -> str:
    """Which of the shares a scene falls under."""
    first = scene.actors[0] if scene.actors else None
    if scene.event == "ride":
        return "riding"
    if scene.event in ("hold", "eat", "cards", "chess", "music", "ball"):
        return "doing"
    if first is None:
        return "place"
    if scene.event not in ("alone", "count"):
        return "several"
    if first.outfit == SHIRT and scene.event == "alone":
        return "people"
    if first.outfit or first.worn:
        return "dressed"
    if first.colour:
        return "recoloured"
    if scene.event == "count":
        return "several"
    return "ground" if scene.place == "plain" else "place"


@dataclass(frozen=True)
class Channels:
    """Mean and deviation (C,) of each channel of the unscaled latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, latents: Latents) -> "Channels":
        """Of latents (N, C, y, x)."""
        wide = latents.astype(np.float32)
        mean, std = wide.mean((0, 2, 3)), wide.std((0, 2, 3))
        return cls(tuple(map(float, mean)), tuple(map(float, std.clip(1e-6))))

    def apply(self, latents: Latents) -> Tensor:
        """Unscaled latents (B, C, y, x) in these units."""
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (self.mean, self.std))
        return torch.from_numpy((latents.astype(np.float32) - mean) / std)


def fold(vae: VAE, channels: Channels) -> VAE:
    """The same autoencoder with latents in the units of `channels`, which its innermost two convolutions take up: what
    comes out needs no scaling. Raises ConfigError where it has no such."""
    if not vae.config.latent_convs:
        raise ConfigError("this autoencoder has no convolutions around its latent (latent_convs) to take up its units")
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    after, before = weights["after_encoder.weight"], weights["before_decoder.weight"]  # (2C, 2C, 1, 1), (C, C, 1, 1)
    mean, std = (after.new_tensor(numbers) for numbers in (channels.mean, channels.std))
    size, bias = len(mean), weights["after_encoder.bias"]
    weights["before_decoder.bias"] += before[:, :, 0, 0] @ mean
    before *= std[:, None, None]
    after[:size] /= std[:, None, None, None]
    bias[:size] = (bias[:size] - mean) / std
    bias[size:] -= 2 * std.log()
    folded = VAE(replace(vae.config, scaling=1.0, shift=0.0)).to(after.device)
    folded.load_state_dict(weights)
    return folded.eval()


@dataclass(frozen=True)
class Pool:
    """All that a training of the scenes reads: latents with their facts and their `items`, and the words."""

    latents: SceneLatents
    drawn: Latents  # of the drawings, by their items' rows
    items: Sequence[Item]
    vocabulary: Vocabulary
    channels: Channels

    @classmethod
    def of(cls, latents: SceneLatents, items: Sequence[Item], vocabulary: Vocabulary) -> "Pool":
        """Raises InputError where the drawings' latents are not all there."""
        if latents.drawings is None or max(item.row for item in items) >= len(latents.drawings):
            raise InputError("the folder of latents lacks drawings; run python -m lab data scene-latents on it again")
        pool = cls(latents, latents.drawings, items, vocabulary, Channels((), ()))
        return replace(pool, channels=Channels.of(pool.sample()))

    def drawings(self, *splits: str) -> list[Item]:
        return [item for item in self.items if item.split in splits]

    def sample(self) -> Latents:
        """Unscaled latents of scenes and of a third as many drawings that training sees, the same ones at all times."""
        count = min(SAMPLE, len(self.latents))
        rows = [item.row for item in self.drawings("train")]
        rows = rows[:: max(1, 3 * len(rows) // count)]
        return np.concatenate([self.latents.at(np.arange(count)), self.drawn[rows]])

    def held(self) -> dict[str, tuple[list[str], Tensor]]:
        """Captions and latents that training never sees: of scenes whose like it sees, and of unseen concepts."""
        scenes = np.arange(min(HELD, len(self.latents)))
        said = [caption(self.latents.scene(int(row)), self.vocabulary, Random(int(row)), share=1.0) for row in scenes]
        unseen = [item for item in self.drawings("validation") if not item.tone][:HELD]
        rows = [item.row for item in unseen]
        return {
            "scenes": (said, self.channels.apply(self.latents.at(scenes))),
            "drawings": (
                [captions.plain_caption(item) for item in unseen],
                self.channels.apply(self.drawn[rows]),
            ),
        }


class Mixed:
    """A batch of scenes and drawings by `shares`, said as `mix` has it; a function of (seed, step) and of the pool."""

    def __init__(self, pool: Pool, shares: Shares, mix: Mix, *, batch: int, seed: int, house: float = 1.0) -> None:
        """`house`: how much likelier a drawing in one of the house's styles is than one in another."""
        self.pool, self.mix, self.batch, self.seed = pool, mix, batch, seed
        items = {item.row: item for item in pool.drawings(*SEEN)}
        weights = [item.weight * (house if item.style in HOUSE else 1.0) for item in items.values()]
        self.items, self.draw = items, Draw.of(list(items), weights, batch, seed)
        self.rows = self._rows()
        odds = {name: share for name, share in shares.all().items() if name == "drawing" or name in self.rows}
        self.kinds, total = list(odds), sum(odds.values())
        self.odds = [share / total for share in odds.values()]

    def _rows(self) -> dict[str, npt.NDArray[np.int64]]:
        """The rows of scenes of each kind."""
        found: dict[str, list[int]] = {}
        for row in range(min(HELD, len(self.pool.latents) // 2), len(self.pool.latents)):
            found.setdefault(kind(self.pool.latents.scene(row)), []).append(row)
        return {name: np.array(rows, np.int64) for name, rows in sorted(found.items())}

    def at(self, step: int) -> tuple[list[str], Tensor]:
        """The captions of B pictures, and their latents (B, C, y, x); the kinds in random order."""
        rng, words = np.random.default_rng((self.seed, step, 1)), Random(f"{self.seed} {step}")
        drawings = iter(self.draw.at(step))
        said, latents = [], []
        for chosen in rng.choice(len(self.kinds), self.batch, p=self.odds):
            if self.kinds[chosen] == "drawing":
                row = int(next(drawings))
                said.append(self.mix(self.items[row], words))
                latents.append(self.pool.drawn[row])
            else:
                row = int(rng.choice(self.rows[self.kinds[chosen]]))
                said.append(self._say(self.pool.latents.scene(row), words))
                latents.append(self.pool.latents.one(row))
        return said, self.pool.channels.apply(np.stack(latents))

    def _say(self, scene: Scene, rng: Random) -> str:
        if rng.random() < self.mix.empty:
            return ""
        language = rng.choice(self.mix.languages) if rng.random() < self.mix.foreign else "en"
        return caption(scene, self.pool.vocabulary, rng, language=language)
