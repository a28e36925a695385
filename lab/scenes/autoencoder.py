"""Recipe 1 of the scenes: an autoencoder that has seen composed scenes and single drawings.

Place: everything that is trained on scenes is trained on its latents, so that nothing looks better than it redraws.
Three pictures of four are scenes, drawn anew for every step (no scene is seen twice, and none is stored); one is a
single drawing of emblem's. It learns on crops, which show more different pictures for the same work. Left out: a
feature loss and a discriminator, which may follow once the plain losses no longer pay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor

from lab.emblem import dataset
from lab.scenes.dataset import load
from lab.scenes.render import KEPT, Picture
from lab.scenes.workers import ahead
from lab.train.batches import Draw, to_signed
from qkv.models.vae import VAE, VAEConfig
from qkv.pictures.sheet import contact_sheet, to_images
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.objectives import autoencoding
from qkv.train.recipes import Context
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.vae import AUTOENCODER, load_vae

HELD_SEED = 1_000_003  # of the scenes that only measurements see
LOOKED_AT = 64  # pictures of each kind that a validation redraws


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`start` is a folder of an autoencoder to go on from; `model` is ignored then. `crop` is the side of what a step
    sees, `single` the share of single drawings. `workers` are the processes that draw; none: it draws itself."""

    model: VAEConfig = field(default_factory=VAEConfig)
    start: Path | None = None
    batch: int = 16
    crop: int = 64
    single: float = 0.25
    kl: float = 1e-6
    workers: int | None = None
    fit: FitConfig


@dataclass(frozen=True)
class Batches:
    """Pictures (B, 3, y, x) in [-1, 1]: scenes from `scene(number)`, single drawings from `drawings`; crops of both."""

    scene: Callable[[int], Picture]
    drawings: npt.NDArray[np.uint8]
    draw: Draw  # of the drawings, a whole batch of them
    singles: int  # of a batch
    crop: int

    def __call__(self, step: int) -> Tensor:
        rng = self.draw.generator(step).spawn(1)[0]
        rows = self.draw.at(step)[: self.singles]
        scenes = self.draw.batch - self.singles
        pictures = [self.scene(step * scenes + i) for i in range(scenes)]
        for row in rows:
            mirrored = rng.random() < 0.5
            pictures.append(self.drawings[row][:, ::-1] if mirrored else self.drawings[row])
        return to_signed(np.stack([self._crop(picture, rng) for picture in pictures]))

    def _crop(self, picture: Picture, rng: np.random.Generator) -> Picture:
        free = len(picture) - self.crop
        y, x = rng.integers(0, free + 1, 2)
        return picture[y : y + self.crop, x : x + self.crop]


def held_out(count: int) -> dict[str, Tensor]:
    """What an autoencoder is measured on: scenes of a seed of their own, unpainted (grain alone would cap the figure),
    and drawings of concepts that training does not see. (N, 3, Y, X) in [-1, 1] each."""
    data, scenes = dataset.load(), load(HELD_SEED, painted=False)
    rows = [item.row for item in data.items if item.split == "validation"]
    rows = rows[:: max(1, len(rows) // count)][:count]
    return {
        "scenes": to_signed(scenes.pictures(count)),
        "drawings": to_signed(np.stack([data.pictures[row] for row in rows])),
    }


def redraw(vae: VAE, pictures: Tensor) -> Tensor:
    """Encoded and decoded again, in parts that need little memory."""
    device = next(vae.parameters()).device
    with torch.inference_mode():
        parts = [vae.decode(vae.encode(part.to(device))).float().cpu().clamp(-1, 1) for part in pictures.split(8)]
    return torch.cat(parts)


def psnr(redrawn: Tensor, pictures: Tensor) -> Tensor:
    """Of each picture (N, 3, Y, X) in [-1, 1], in dB; (N,)."""
    error = (redrawn - pictures).square().mean((1, 2, 3)) / 4  # of pictures in [0, 1]
    return -10 * torch.log10(error.clamp(min=1e-10))


def beside(pictures: Tensor, redrawn: Tensor) -> Image:
    """A sheet with every picture beside its redraw."""
    return contact_sheet(to_images(torch.stack((pictures, redrawn), dim=1).flatten(0, 1)))


def train(recipe: Recipe, context: Context) -> Result[VAE]:
    """Trains it, or goes on; the model lies in `model/vae` of the run's folder."""
    unseen = held_out(LOOKED_AT)
    torch.manual_seed(recipe.fit.seed)
    vae = load_vae(Folder(recipe.start)) if recipe.start else VAE(recipe.model)
    vae = vae.float().to(context.device)

    def objective(vae: VAE, pictures: Tensor, generator: torch.Generator) -> Loss:
        return autoencoding(vae, pictures, generator, kl=recipe.kl)

    def validate(vae: VAE, step: int) -> dict[str, float]:
        numbers = {f"psnr_{name}": float(psnr(redraw(vae, held), held).mean()) for name, held in unseen.items()}
        mean = vae.distribution(unseen["scenes"][:16].to(context.device))[0].float()
        return {**numbers, "latent_std": float(mean.std()), "latent_mean": float(mean.mean())}

    def samples(vae: VAE, step: int) -> Image:
        shown = torch.cat([held[:16] for held in unseen.values()])
        return beside(shown, redraw(vae, shown))

    with ahead(partial(_batches, recipe), recipe.workers or 1) as batches:
        result = context.fit(
            recipe,
            vae,
            batches,
            objective,
            facts={"model": vae.config},
            samples=samples,
            validate=validate,
        )
    save_component(context.folder / "model" / "vae", AUTOENCODER.export(result.model))
    return result


def _batches(recipe: Recipe) -> Batches:
    data = dataset.load()
    items = [item for item in data.items if item.split == "train"]
    drawn = Draw.of([item.row for item in items], [item.weight for item in items], recipe.batch, recipe.fit.seed)
    singles = round(recipe.single * recipe.batch)
    return Batches(load(recipe.fit.seed).picture, data.pictures, drawn, singles, min(recipe.crop, KEPT))


def measure(vae: VAE, count: int = 256) -> tuple[dict[str, float], Image]:
    """The PSNR on held-out scenes and drawings, its mean over pictures and its 5th percentile, and a sheet of them."""
    numbers: dict[str, float] = {}
    shown = []
    for name, held in held_out(count).items():
        again = redraw(vae, held)
        each = psnr(again, held)
        numbers |= {f"psnr_{name}": float(each.mean()), f"psnr_{name}_worst": float(each.quantile(0.05))}
        shown.append((held[:24], again[:24]))
    pictures, redrawn = (torch.cat(parts) for parts in zip(*shown))
    return numbers, beside(pictures, redrawn)
