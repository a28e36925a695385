"""Recipe 3 of the scenes: the U-Net, from a noisy latent and a caption to the clean latent of a scene or a drawing.

Place: the last training; all of it but what it is shown is `lab.train.diffusion`. What comes out is a plain folder of
Stable Diffusion's pipeline. Its latents have mean 0 and deviation 1 in every channel (`mix.fold`): the noise that a
drawing begins with has, too, and a channel that varies little is not the first to drown in it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lab.scenes.draft import load_pool
from lab.scenes.latents import FACTS, encoder_hash
from lab.scenes.mix import Mixed, Pool, Shares, fold
from lab.scenes.workers import Maker, ahead
from lab.train.diffusion import Batches, Diffusing, TrainedDrawer, begin, fit_drawer, read_text
from qkv.errors import ConfigError, InputError
from qkv.models.unet import UNet
from qkv.models.vae import VAE
from qkv.train.loop import Result
from qkv.train.recipes import Context
from qkv.weights.folder import Folder
from qkv.weights.unet import UNET

SHOWN = (  # the README's six prompts, and what else the mix is about
    "a photo of an astronaut riding a horse on mars",
    "new york city in impressionist style",
    "dog in a suit",
    "dogs playing poker",
    "a castle in the middle of a forest with trees",
    "a red apple on a blue background",
    "a cat left of a car on a street at night",
    "three blue bananas",
    "ein Pinguin mit Hut im Schnee",
    "a dog, 3d style",
)


@dataclass(frozen=True, kw_only=True)
class Recipe(Diffusing):
    """`scenes` is the folder of latents that `python -m lab data scene-latents` made with `autoencoder`; `mix` and
    `house` say how often what is drawn of it. `lender` is a folder whose U-Net lends all weights that fit; `workers`
    are the processes that make batches."""

    scenes: Path
    mix: Shares = field(default_factory=Shares)
    house: float = 1.0
    lender: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.start is not None:
            raise ConfigError("start: a U-Net of scenes goes on from its run (--from RUN), not from a model's folder")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}; it must be 1 or more")


def train(recipe: Recipe, context: Context) -> Result[TrainedDrawer]:
    """Trains it, or goes on; latents that were added meanwhile are drawn from, too."""
    torch.manual_seed(recipe.fit.seed)
    begun, pool = begin(recipe), load_pool(recipe.scenes, progress=context.progress)
    check_encoder(begun.vae, recipe.scenes)
    begun = replace(begun, vae=fold(begun.vae, pool.channels).to(context.device))
    if recipe.lender is not None:
        lend(begun.unet, UNET.load(Folder(recipe.lender), UNet, "unet", dtype=torch.float32))
    with batches(recipe, pool) as source:
        return fit_drawer(recipe, context, begun, source, pool.held(), SHOWN, facts={"channels": pool.channels})


@contextmanager
def batches(recipe: Recipe, pool: Pool) -> Iterator[Maker[tuple[Tensor, Tensor]]]:
    """Those of each step; processes other than this one read the pool anew, since memory maps do not travel."""
    if recipe.workers == 1:
        yield _batches(recipe, pool)
        return
    with ahead(partial(_batches, recipe), recipe.workers) as source:
        yield source


def _batches(recipe: Recipe, pool: Pool | None = None) -> Batches:
    pool = pool or load_pool(recipe.scenes, progress=False)
    mixed = Mixed(pool, recipe.mix, recipe.captions, batch=recipe.batch, seed=recipe.fit.seed, house=recipe.house)
    assert recipe.clip is not None
    return Batches(mixed, read_text(recipe.clip)[1])


def check_encoder(vae: VAE, folder: Path) -> None:
    """Raises InputError where the latents in `folder` are another autoencoder's."""
    if json.loads((folder / FACTS).read_text(encoding="utf-8"))["encoder"] != encoder_hash(vae):
        raise InputError(f"the latents in {folder} are another autoencoder's; give that one, or encode them anew")


def lend(unet: UNet, lender: UNet) -> list[str]:
    """Takes all weights of `lender` that fit; the names of those that stay new."""
    mine, lent = unet.state_dict(), lender.state_dict()
    fits = {name: lent[name] for name, own in mine.items() if name in lent and lent[name].shape == own.shape}
    unet.load_state_dict(mine | fits)
    return sorted(mine.keys() - fits.keys())
