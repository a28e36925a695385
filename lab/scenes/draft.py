"""Recipe 2 of the scenes: emblem's text tower learns to draft scenes beside drawings, in four languages.

Place: between the latents and the U-Net that reads the drafts; all of it but what it is shown is `lab.train.draft`. A
scene's caption leaves chance more room than a drawing's, but what is where and in which colours it says, and the draft
is the cheapest place to learn it (docs/log.md). Captions of scenes are longer than those of drawings, so the states
that tell patches begin later than in emblem's tower; what it knows moves there with their positions.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lab.emblem import dataset
from lab.scenes import latents, sprites, vocabulary
from lab.scenes.mix import Mixed, Pool, Shares
from lab.train import draft
from lab.train.diffusion import read_text
from lab.train.draft import Drafter, Drafting, Drafts
from lab.train.latents import Source
from qkv.errors import ConfigError
from qkv.models.clip import TextTower
from qkv.train.loop import Result
from qkv.train.recipes import Context


@dataclass(frozen=True, kw_only=True)
class Recipe(Drafting):
    """`scenes` is the folder of latents that `python -m lab data scene-latents` made; `mix` and `house` say how often
    what is drawn of it. `begun` is where the tower's patches begin until now, None where it tells none."""

    scenes: Path
    mix: Shares = field(default_factory=Shares)
    house: float = 1.0
    begun: int | None = None


def train(recipe: Recipe, context: Context) -> Result[Drafter]:
    torch.manual_seed(recipe.fit.seed)
    text, tokenizer = read_text(recipe.clip)
    pool = load_pool(recipe.scenes, progress=context.progress)
    known = pool.channels.apply(pool.sample())
    drafts = Drafts.of(known, torch.ones(len(known)), recipe.components, recipe.patch)
    if recipe.begun is not None:
        move_patches(text, recipe.begun, recipe.begin, drafts(known[:1]).patches.shape[1])
    seed, house = recipe.fit.seed, recipe.house
    sources: list[Source] = [Mixed(pool, recipe.mix, recipe.captions, batch=recipe.batch, seed=seed, house=house)]
    scaled = pool.channels.apply(pool.drawn).half().numpy() if recipe.texts else pool.drawn
    sources += draft.borrowed(recipe, scaled, pool.drawings("train"), progress=context.progress)
    return draft.fit_drafts(recipe, context, text, tokenizer, drafts, sources, pool.held())


def load_pool(folder: Path, *, progress: bool = True) -> Pool:
    """Latents, items and words. Raises CheckpointError, InputError, NotFoundError, and what `npm.fetch` raises."""
    encoded = latents.load(folder)
    return Pool.of(encoded, dataset.load(tinted=True).items, vocabulary.load(sprites.load(progress=progress)))


def move_patches(text: TextTower, before: int, now: int, patches: int) -> None:
    """The positions that tell patches begin at `now`, those up to there tell the whole as the last one before did.
    Raises ConfigError where they find no room."""
    rows = text.position.weight
    if not 0 < before <= now <= len(rows) - patches:
        raise ConfigError(f"patches that began at {before} cannot begin at {now}; {len(rows) - patches} is the last")
    with torch.no_grad():
        moved = rows[before : before + patches].clone()
        rows[before:now] = rows[before - 1]
        rows[now : now + patches] = moved
