"""Recipe 1 of emblem: the autoencoder, pictures -> latents -> pictures.

Once trained, its encoder stays as it is, since the U-Net learns to draw *its* latents; the decoder may be
trained further with `freeze = ["encoder", "after_encoder"]`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from lab.emblem import dataset
from lab.train.batches import Draw, PictureBatches, to_signed
from qkv.models.vae import VAE, VAEConfig
from qkv.pictures.sheet import contact_sheet, to_images
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.objectives import autoencoding
from qkv.train.recipes import Context, freeze
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.vae import AUTOENCODER, load_vae


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`start` is a folder of an autoencoder to go on from; `model` is ignored then."""

    model: VAEConfig = field(default_factory=VAEConfig)
    start: Path | None = None
    freeze: tuple[str, ...] = ()
    batch: int = 8
    kl: float = 1e-5
    fit: FitConfig


def train(recipe: Recipe, context: Context) -> Result[VAE]:
    data = dataset.load()
    train = [item for item in data.items if item.split == "train"]
    held = [item.row for item in data.items if item.split == "validation"][:64]
    draw = Draw.of([item.row for item in train], [item.weight for item in train], recipe.batch, recipe.fit.seed)
    unseen = to_signed(data.pictures[held])

    torch.manual_seed(recipe.fit.seed)
    vae = load_vae(Folder(recipe.start)) if recipe.start else VAE(recipe.model)
    vae = vae.float().to(context.device)
    freeze(vae, recipe.freeze)

    def objective(vae: VAE, pictures: Tensor, generator: torch.Generator) -> Loss:
        return autoencoding(vae, pictures, generator, kl=recipe.kl)

    def redraw(vae: VAE) -> Tensor:
        return vae.decode(vae.encode(unseen.to(context.device))).float().cpu().clamp(-1, 1)

    def samples(vae: VAE, step: int) -> Image:
        pairs = torch.stack((unseen[:32], redraw(vae)[:32]), dim=1).flatten(0, 1)  # each beside its original
        return contact_sheet(to_images(pairs))

    def validate(vae: VAE, step: int) -> dict[str, float]:
        mean = vae.distribution(unseen.to(context.device))[0].float()
        error = float(F.mse_loss(redraw(vae), unseen)) / 4  # of pictures in [0, 1]
        return {"psnr": -10 * math.log10(error), "latent_std": float(mean.std()), "latent_mean": float(mean.mean())}

    result = context.fit(
        recipe,
        vae,
        PictureBatches(data.pictures, draw),
        objective,
        facts={"model": vae.config},
        samples=samples,
        validate=validate,
    )
    save_component(context.folder / "model" / "vae", AUTOENCODER.export(result.model))
    return result
