"""Recipe 3 of emblem: the text tower learns to draft the picture of a caption, and the U-Net will read the draft.

What words look like is learnt here from clean latents, where a U-Net has to learn it through noise: a tenth of the
captions leave a smaller error (docs/log.md). In unCLIP (2204.06125), section 2.2, a prior makes of a caption the code
that a decoder draws from; here the tower is the prior and its states are the code, so that what ships is still a CLIP
text tower and a conditional U-Net.

Behind a caption's end token every state tells the whole picture: its `components` largest principal components. From
position `begin` on each state tells one patch, row by row, so that the U-Net's pixels know where to look. Linear heads
read both out of the states; the heads are not kept. The end token's own state stays as it was, for CLIP compares by it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lab.emblem import captions
from lab.emblem.captions import Mix
from lab.emblem.items import Item
from lab.train.borrowing import Borrowed, Borrowers
from lab.train.diffusion import read, read_text, save_text
from lab.train.latents import Captioned, Latents, Source, of_pictures, unpack
from qkv.errors import ConfigError
from qkv.models.clip import TextTower
from qkv.text.tokenizer import Tokenizer
from qkv.train.batch import to_device
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context
from qkv.weights.folder import Folder
from qkv.weights.vae import load_vae

HELD = 4  # asking the tower as it was about every caption would take a fifth of a step


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """`clip` is what recipe 2 made, or a pipeline's folder. `patch` is the side of a patch, in numbers of the latent.
    Beside `batch` captions stand `texts` of `synsets` of WordNet's entries, that borrow their drafts (borrowing.py) as
    `teacher` finds them, the folder of a sentence encoder."""

    clip: Path
    batch: int = 128
    texts: int = 0
    synsets: int = 60_000
    teacher: Path | None = None
    components: int = 256
    begin: int = 24
    patch: int = 4
    captions: Mix = field(default_factory=Mix)
    fit: FitConfig

    def __post_init__(self) -> None:
        if self.texts < 0 or self.synsets < 1:
            raise ConfigError(f"texts={self.texts}, synsets={self.synsets}; they must be 0 or more, and 1 or more")
        if self.texts and self.teacher is None:
            raise ConfigError(f"texts={self.texts} need a teacher, the folder of a sentence encoder; set teacher")


@dataclass(frozen=True, kw_only=True)
class Recipe(Drafting):
    """`autoencoder` is what recipe 1 made, or a pipeline's folder; `latents` is a file that `python -m lab data emblem
    --latents` packed, where the data set is not here."""

    autoencoder: Path
    latents: Path | None = None


class Draft(NamedTuple):
    """Of pictures, or of what is told of them: components (B, K) and patches (B, P, D), in the latents' scale."""

    whole: Tensor
    patches: Tensor


@dataclass(frozen=True)
class Drafts:
    """The drafts of latents (N, C, y, x), measured from their mean: what a tower has to say of a picture."""

    mean: Tensor  # (C * y * x,)
    axes: Tensor  # (C * y * x, K), of length 1
    patch: int

    @classmethod
    def of(cls, latents: Tensor, weights: Tensor, components: int, patch: int) -> "Drafts":
        """Mean and principal axes of latents (N, C, y, x) that count `weights` (N,). Raises ConfigError."""
        side, flat = latents.shape[-1], latents.flatten(1)
        if side % patch:
            raise ConfigError(f"patch={patch} does not divide the latents' side of {side}; choose a divisor")
        if not 0 < components <= flat.shape[1]:
            raise ConfigError(f"components={components} is out of range; it must be 1 to {flat.shape[1]}")
        share = (weights / weights.sum())[:, None]
        mean = (share * flat).sum(0)
        apart = flat - mean
        axes = torch.linalg.eigh((share * apart).mT @ apart).eigenvectors.flip(1)  # the largest first
        return cls(mean, axes[:, :components].contiguous(), patch)

    def __call__(self, latents: Tensor) -> Draft:
        apart = latents.flatten(1) - self.mean
        cut = apart.view_as(latents).unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        return Draft(apart @ self.axes, cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))


class Drafter(nn.Module):
    """The text tower, and the heads that read the draft out of its first `context` states."""

    def __init__(self, text: TextTower, *, components: int, patches: int, patch_dim: int, begin: int) -> None:
        super().__init__()
        room, dim = text.config.context - patches, text.config.dim
        if not 0 < begin <= room:
            raise ConfigError(f"begin={begin} is out of range; {patches} patches fit from 1 to {room}")
        self.text, self.begin, self.context = text, begin, begin + patches
        self.whole, self.patch = nn.Linear(dim, components), nn.Linear(dim, patch_dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Draft]:
        """ids (B, context) -> the states (B, context, D) and what they tell; the whole often, (B, begin, K)."""
        states = self.text(ids)
        return states, Draft(self.whole(states[:, : self.begin]), self.patch(states[:, self.begin :]))


class Errors(NamedTuple):
    """Mean squared errors of captions: of whole and patches for a number of the latent, each (B,), and how far the end
    token's state of every HELD-th moved."""

    whole: Tensor
    patches: Tensor
    moved: Tensor


def errors(drafter: Drafter, teacher: TextTower, ids: Tensor, wanted: Draft) -> Errors:
    """For token ids (B, context) and the drafts of their pictures; `teacher` is the tower as it was."""
    states, told = drafter(ids)
    held = ids[::HELD]
    with torch.no_grad():
        before = teacher.pool(teacher(held), held)
    over = (ids == teacher.config.end).cumsum(1)[:, : drafter.begin] > 1  # behind the first one
    whole = (told.whole.float() - wanted.whole[:, None]).square().sum(-1) / wanted.patches[0].numel()  # (B, begin)
    return Errors(
        whole=(whole * over).sum(1) / over.sum(1).clamp_min(1),
        patches=(told.patches.float() - wanted.patches).square().mean((1, 2)),
        moved=(teacher.pool(states[::HELD], held).float() - before.float()).square().mean(-1),
    )


@dataclass(frozen=True)
class Batches:
    """Token ids (B, context) of all that the sources say at a step, and the drafts of it."""

    sources: Sequence[Source]
    drafts: Drafts
    tokenizer: Tokenizer
    context: int

    def __call__(self, step: int) -> tuple[Tensor, Draft]:
        texts, latents = zip(*(source.at(step) for source in self.sources), strict=True)
        return read(self.tokenizer, list(chain(*texts)), self.context), self.drafts(torch.cat(latents))


def train(recipe: Recipe, context: Context) -> Result[Drafter]:
    torch.manual_seed(recipe.fit.seed)
    text, tokenizer = read_text(recipe.clip)
    if recipe.latents:
        data = unpack(recipe.latents)
    else:
        data = of_pictures(load_vae(Folder(recipe.autoencoder)).float().to(context.device), progress=context.progress)
    latents = (data.latents.astype(np.float32) * data.scaling).astype(np.float16)
    train = [item for item in data.items if item.split == "train"]
    rows, weights = [item.row for item in train], [item.weight for item in train]
    drafts = Drafts.of(
        torch.from_numpy(latents[rows].astype(np.float32)), torch.tensor(weights), recipe.components, recipe.patch
    )
    held = [item for item in data.items if item.split == "validation" and not item.tone][:256]
    said = [captions.plain_caption(item) for item in held]
    unseen = torch.from_numpy(latents[[item.row for item in held]].astype(np.float32))
    sources: list[Source] = [Captioned(latents, data.items, data.draw(recipe.batch, recipe.fit.seed), recipe.captions)]
    sources += borrowed(recipe, latents, train, progress=context.progress)
    return fit_drafts(recipe, context, text, tokenizer, drafts, sources, {"unseen": (said, unseen)})


def borrowed(recipe: Drafting, latents: Latents, items: Sequence[Item], *, progress: bool) -> list[Source]:
    """The texts that borrow the latents of `items`, if the recipe asks for any."""
    if not recipe.texts or recipe.teacher is None:
        return []
    borrowers = Borrowers.of(items, recipe.teacher, recipe.synsets, progress=progress)
    return [Borrowed(latents, borrowers, recipe.texts, recipe.captions.unstyled, recipe.fit.seed)]


def fit_drafts(
    recipe: Drafting,
    context: Context,
    text: TextTower,
    tokenizer: Tokenizer,
    drafts: Drafts,
    sources: Sequence[Source],
    held: Mapping[str, tuple[list[str], Tensor]],
) -> Result[Drafter]:
    """Trains `text` on what `sources` give; `held` are captions and latents that only measurements see, by name."""
    wanted: dict[str, Draft] = {name: to_device(drafts(latents), context.device) for name, (_, latents) in held.items()}
    patches, patch_dim = next(iter(wanted.values())).patches.shape[1:]
    drafter = Drafter(text, components=recipe.components, patches=patches, patch_dim=patch_dim, begin=recipe.begin).to(
        context.device
    )
    ids = {name: read(tokenizer, said, drafter.context).to(context.device) for name, (said, _) in held.items()}
    teacher = copy.deepcopy(text).requires_grad_(False).eval()

    def measure(drafter: Drafter, ids: Tensor, wanted: Draft) -> Errors:
        return Errors(*(error.mean() for error in errors(drafter, teacher, ids, wanted)))

    def objective(drafter: Drafter, batch: tuple[Tensor, Draft], generator: torch.Generator) -> Loss:
        found = measure(drafter, *batch)
        return Loss(found.whole + found.patches + found.moved, {k: v.detach() for k, v in found._asdict().items()})

    def validate(drafter: Drafter, step: int) -> dict[str, float]:
        found = {name: measure(drafter, ids[name], wanted[name])._asdict() for name in held}
        return {f"{name}_{kind}": float(error) for name, row in found.items() for kind, error in row.items()}

    batches = Batches(sources, drafts, tokenizer, drafter.context)
    result = context.fit(recipe, drafter, batches, objective, validate=validate)
    save_text(result.model.text, tokenizer, context.folder / "model")
    return result
