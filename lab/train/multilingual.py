"""Recipe 4 of emblem: a finished text tower learns other languages.

A caption in another language shall be what its English one is to the tower as it was: "Making monolingual sentence
embeddings multilingual" (2004.09813), section 2, with the states that the U-Net reads in place of a sentence's vector.
From the end token on these tell the whole text, so they are held against each other there, position by position; before
it the two texts have other words. English captions are among the pupils, so that what is known stays.
"""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab.emblem import captions, dataset
from lab.emblem.items import Item
from lab.train.batches import Draw
from lab.train.diffusion import read, read_text, save_text
from lab.train.latents import unpack
from qkv.models.clip import TextTower
from qkv.text.tokenizer import Tokenizer
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`clip` is what recipe 2 or 3 made, or a pipeline's folder; `latents` what `python -m lab data emblem --latents`
    packed, where the data set is not here. `english` is the share of English captions, the others are drawn from
    `languages`; `unstyled` of all are silent about the drawing's style. `context` cuts the texts, in tokens."""

    clip: Path
    latents: Path | None = None
    batch: int = 64
    languages: tuple[str, ...] = ("zh-hant", "de", "fr")
    english: float = 0.25
    unstyled: float = 0.25
    context: int = 40
    fit: FitConfig

    def __post_init__(self) -> None:
        captions.check_languages(self.languages)


@dataclass(frozen=True)
class Batches:
    """Token ids (B, T) of captions, and of the same captions in English."""

    items: list[Item]
    draw: Draw
    tokenizer: Tokenizer
    recipe: Recipe

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{self.draw.seed} {step}")
        spoken, english = [], []
        for place in self.draw.at(step):
            item, styled = self.items[place], rng.random() >= self.recipe.unstyled
            language = "en" if rng.random() < self.recipe.english else rng.choice(self.recipe.languages)
            spoken.append(captions.plain_caption(item, language=language, styled=styled))
            english.append(captions.plain_caption(item, styled=styled))
        return self.encode(spoken), self.encode(english)

    def encode(self, texts: list[str]) -> Tensor:
        return read(self.tokenizer, texts, self.recipe.context)


def imitating(pupil: TextTower, teacher: TextTower, spoken: Tensor, english: Tensor) -> Tensor:
    """The mean squared error of the pupil's states for the texts `spoken` (B, T) to the teacher's for `english` (B, T):
    where both texts are over, and of each text's end token."""
    states = pupil(spoken)
    with torch.no_grad():
        wanted = teacher(english)
    over = ((spoken == pupil.config.end).cumsum(1) > 0) & ((english == pupil.config.end).cumsum(1) > 0)  # (B, T)
    apart = (states.float() - wanted.float()).square().mean(-1)  # (B, T)
    ends = pupil.pool(states, spoken).float() - teacher.pool(wanted, english).float()
    return (apart * over).sum() / over.sum().clamp_min(1) + ends.square().mean()


def train(recipe: Recipe, context: Context) -> Result[TextTower]:
    torch.manual_seed(recipe.fit.seed)
    text, tokenizer = read_text(recipe.clip)
    pupil, teacher = text.to(context.device), copy.deepcopy(text).to(context.device)
    items = unpack(recipe.latents).items if recipe.latents else dataset.load().items
    seen = [item for item in items if item.split == "train"]
    draw = Draw.of(range(len(seen)), [item.weight for item in seen], recipe.batch, recipe.fit.seed)
    batches = Batches(seen, draw, tokenizer, recipe)
    unseen = [item for item in items if item.split == "validation" and not item.tone][:256]
    held = {
        code: batches.encode([captions.plain_caption(item, language=code) for item in unseen]).to(context.device)
        for code in ("en", *recipe.languages)
    }

    def objective(pupil: TextTower, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        return Loss(imitating(pupil, teacher, *batch))

    def validate(pupil: TextTower, step: int) -> dict[str, float]:
        return {f"unseen_{code}": float(imitating(pupil, teacher, spoken, held["en"])) for code, spoken in held.items()}

    result = context.fit(recipe, pupil, batches, objective, validate=validate)
    save_text(result.model, tokenizer, context.folder / "model")
    return result
