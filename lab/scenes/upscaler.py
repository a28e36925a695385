"""Recipe 2 of the scenes: an upscaler from 128 to 512 pixels, for what the decoder draws.

Place: after the autoencoder, whose blur it takes away. Pairs are exact: a scene or a single drawing is drawn at 512 and
scaled down to 128, then softened as a decoder's output is: redrawn by an autoencoder, by a share that is drawn by lot,
or in a mild blur with blotches as a stand-in. So it learns every degree between a decoder that is perfect and one that
is not. Every picture gives several crops, since drawing at 512 costs 40 ms. Left out: a feature loss and a
discriminator, which would invent texture where drawings have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from lab.emblem import dataset as emblem
from lab.scenes import sprites, vocabulary
from lab.scenes.autoencoder import HELD_SEED, psnr, redraw
from lab.scenes.dataset import Scenes
from lab.scenes.render import KEPT, Picture
from lab.scenes.sprites import STYLES, Sprites
from lab.train.batches import to_signed
from qkv.models.upscaler import Compact, CompactConfig, Upscaler
from qkv.models.vae import VAE
from qkv.pictures.sheet import contact_sheet, to_images
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.upscaler import FOLDER, published_upscaler
from qkv.weights.vae import load_vae

SCALE = 4
LARGE = SCALE * KEPT  # pixels a side
LOOKED_AT = 8  # pictures of each kind that a validation enlarges
Drawn = tuple[str, str]  # a style and a concept


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`autoencoder` is the folder of one whose redraws are seen in a share of `redrawn` crops; `crops` of `crop` pixels
    a side are cut out of each picture; `single` is the share of single drawings."""

    model: CompactConfig = field(default_factory=CompactConfig)
    autoencoder: Path | None = None
    redrawn: float = 0.5
    pictures: int = 2
    crops: int = 4
    crop: int = 32
    single: float = 0.25
    fit: FitConfig


class Pairs(NamedTuple):
    """What is seen, (B, 3, y, x), and what it was, (B, 3, Y, X), in [0, 1]."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Batches:
    """Pairs of crops, a function of the step alone."""

    scenes: Scenes
    drawings: list[Drawn]
    recipe: Recipe
    vae: VAE | None

    def __call__(self, step: int) -> Pairs:
        rng, r = np.random.default_rng((self.recipe.fit.seed, step)), self.recipe
        numbers = range(step * r.pictures, (step + 1) * r.pictures)
        crops = np.concatenate([self._crop(self._picture(number, rng), rng) for number in numbers])  # (B, Y, X, 3)
        low = small(crops)
        seen = np.stack([soften(picture, rng) for picture in low])
        redrawn = to_unit(seen)
        if self.vae is not None:
            some = rng.random(len(low)) < r.redrawn
            share = torch.from_numpy(np.where(some, rng.random(len(low)), 0)).float()[:, None, None, None]
            again = (redraw(self.vae, to_signed(low)) + 1) / 2
            redrawn = redrawn + share * (again - redrawn)
        return Pairs(redrawn, to_unit(crops))

    def _picture(self, number: int, rng: np.random.Generator) -> Picture:
        """A scene, or a single drawing, mirrored by lot: scenes are as they are."""
        if rng.random() >= self.recipe.single:
            return self.scenes.picture(number, LARGE)
        picture = single(self.scenes.sprites, *self.drawings[rng.integers(len(self.drawings))])
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    def _crop(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """`crops` of them, (N, Y, X, 3); they begin where a pixel of the small picture does."""
        side, free = self.recipe.crop, KEPT - self.recipe.crop
        corners = SCALE * rng.integers(0, free + 1, (self.recipe.crops, 2))
        return np.stack([picture[y : y + SCALE * side, x : x + SCALE * side] for y, x in corners])


def small(pictures: Picture) -> Picture:
    """uint8 (N, Y, X, 3) at a quarter of the side: the means of squares."""
    n, height, width, _ = pictures.shape
    squares = pictures.reshape(n, height // SCALE, SCALE, width // SCALE, SCALE, 3)
    return (squares.mean((2, 4), dtype=np.float32) + 0.5).astype(np.uint8)


def soften(picture: Picture, rng: np.random.Generator, blur: float | None = None) -> Picture:
    """A stand-in for a decoder's output: blotches and a blur of up to 1.2 pixels, one of five as it is."""
    if blur is None:
        blur = max(0.0, rng.uniform(-0.3, 1.2))
    if blur == 0:
        return picture
    blotches = rng.standard_normal(picture.shape, np.float32) * 8 * blur * rng.random()
    noisy = (picture + blotches).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(blur)))


def single(cut: Sprites, style: str, concept: str) -> Picture:
    """A drawing alone on white, 512 pixels a side, centred."""
    sprite = cut.get(style, concept)
    sprite = sprite.resize((max(1, sprite.width * LARGE // cut.side), max(1, sprite.height * LARGE // cut.side)))
    white = Image.new("RGB", (LARGE, LARGE), "white")
    straight = sprite.convert("RGBA")
    white.paste(straight, ((LARGE - straight.width) // 2, (LARGE - straight.height) // 2), straight)
    return np.asarray(white)


def to_unit(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 (N, Y, X, 3) as float (N, 3, Y, X) in [0, 1]."""
    return (to_signed(pictures) + 1) / 2


def load(seed: int, *, painted: bool = True) -> Scenes:
    """Scenes with sprites of 512 pixels, which are rendered first where that was not done yet."""
    cut = sprites.load(LARGE)
    return Scenes(sprites=cut, vocabulary=vocabulary.load(cut), seed=seed, painted=painted)


def split(cut: Sprites) -> tuple[list[Drawn], list[Drawn]]:
    """The single drawings that training sees, and those of emblem's held-out concepts. Scenes may hold either."""
    held = {item.concept for item in emblem.load().items if item.split == "validation"}
    drawn = [(style, concept) for style in STYLES for concept in sorted(cut.images[style])]
    return [each for each in drawn if each[1] not in held], [each for each in drawn if each[1] in held]


def held_out(drawings: list[Drawn], count: int) -> dict[str, Picture]:
    """What it is measured on, uint8 (N, 512, 512, 3): unpainted scenes of a seed of their own, and drawings."""
    scenes = load(HELD_SEED, painted=False)
    some = drawings[:: max(1, len(drawings) // count)][:count]
    return {
        "scenes": np.stack([scenes.picture(number, LARGE) for number in range(count)]),
        "drawings": np.stack([single(scenes.sprites, *each) for each in some]),
    }


def as_seen(high: Picture, vae: VAE | None) -> dict[str, Tensor]:
    """The small pictures of large ones (N, 3, y, x): exact, softened, and redrawn by an autoencoder."""
    low = small(high)
    soft = np.stack([soften(picture, np.random.default_rng(i), 0.8) for i, picture in enumerate(low)])
    seen = {"exact": to_unit(low), "soft": to_unit(soft)}
    return seen if vae is None else {**seen, "redrawn": (redraw(vae, to_signed(low)) + 1) / 2}


def enlarge(low: Tensor, by: Upscaler | str) -> Tensor:
    """Pictures (N, 3, y, x) four times as large, by a network, or "nearest" or "bicubic"; one at a time."""
    if isinstance(by, str):
        return F.interpolate(low, scale_factor=float(SCALE), mode=by).clamp(0, 1)
    device = next(by.parameters()).device
    with torch.inference_mode():
        return torch.cat([by(part.to(device)).cpu().clamp(0, 1) for part in low.split(1)])


def compare(held: dict[str, Picture], vae: VAE | None, ways: Mapping[str, Upscaler | str]) -> dict[str, float]:
    """The PSNR against the originals, its mean over pictures, by "way kind seen"."""
    found = {}
    for kind, high in held.items():
        original = to_unit(high)
        for how, low in as_seen(high, vae).items():
            for way, by in ways.items():
                found[f"{way}_{kind}_{how}"] = float(psnr(2 * enlarge(low, by), 2 * original).mean())
    return found


def beside(held: dict[str, Picture], vae: VAE | None, network: Upscaler, count: int) -> Image.Image:
    """A sheet: in each row what was seen, bicubic, ours and the original, of `count` pictures of each kind."""
    rows = []
    for high in held.values():
        for how, low in as_seen(high[:count], vae).items():
            if how != "exact":
                parts = [enlarge(low, by) for by in ("nearest", "bicubic", network)]
                rows.append(torch.stack([*parts, to_unit(high[:count])], 1))
    return contact_sheet(to_images(torch.cat(rows).flatten(0, 1) * 2 - 1), columns=4)


def measure(network: Upscaler, vae: VAE | None = None, count: int = 64) -> tuple[dict[str, float], Image.Image]:
    """The PSNR of `compare` for nearest, bicubic and the network, and a sheet."""
    held = held_out(split(sprites.load(LARGE))[1], count)
    return compare(held, vae, {"nearest": "nearest", "bicubic": "bicubic", "ours": network}), beside(
        held, vae, network, 8
    )


def sharpening(network: Upscaler, pairs: Pairs) -> Loss:
    """L1 distances of the pictures and of their edges."""
    drawn = network(pairs.low)
    pixel = F.l1_loss(drawn, pairs.high)
    edge = sum(F.l1_loss(drawn.diff(dim=axis), pairs.high.diff(dim=axis)) for axis in (-1, -2))
    return Loss(pixel + edge, {"pixel": pixel.detach(), "edge": torch.as_tensor(edge).detach()})


def initial(config: CompactConfig) -> Compact:
    """PyTorch's own weights would let the picture fade in so many layers; the last one begins with little, so that the
    first result is the picture itself in large."""
    network = Compact(config)
    convolutions = [module for module in network.body if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, a=0.25)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        convolutions[-1].weight *= 0.1
    return network


def train(recipe: Recipe, context: Context) -> Result[Compact]:
    """Trains it, or goes on; the model lies in `model/upscaler` of the run's folder."""
    scenes = load(recipe.fit.seed)
    seen, unseen = split(scenes.sprites)
    vae = load_vae(Folder(recipe.autoencoder)).float().eval() if recipe.autoencoder else None
    torch.manual_seed(recipe.fit.seed)
    network = initial(recipe.model).to(context.device)
    held = held_out(unseen, LOOKED_AT)

    def validate(network: Compact, step: int) -> dict[str, float]:
        return compare(held, vae, {"psnr": network})

    def samples(network: Compact, step: int) -> Image.Image:
        return beside(held, vae, network, 3)

    result = context.fit(
        recipe,
        network,
        Batches(scenes, seen, recipe, vae),
        lambda network, pairs, generator: sharpening(network, pairs),
        samples=samples,
        validate=validate,
    )
    save_component(context.folder / "model" / FOLDER, published_upscaler(result.model))
    return result
