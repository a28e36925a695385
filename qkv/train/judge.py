"""The judge's recipe: pictures and captions of all concepts and styles; what it never sees are the held-out cells.

Seed, order, tokenizer and weights are its own. Its pictures are shifted, scaled, mirrored, tinted and softened, so
that it looks at what is drawn: a generated picture must not fail for a blurred edge.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.data import emblem
from qkv.data.candidates import Candidates
from qkv.data.captions import caption, texts
from qkv.data.items import Item, Split
from qkv.errors import ConfigError
from qkv.models.judge import Judge, JudgeConfig, ranks, tokenize
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.train.data import Draw, Pictures, to_signed
from qkv.train.loop import FitConfig, Loss, Result, fit
from qkv.train.recipes import Context
from qkv.weights.judge import save_judge

HELD_OUT: tuple[Split, ...] = ("heldout_cell", "heldout_tone")

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The tokenizer is learnt from the captions' words, with `model.text.vocab` tokens, the last of them EOS."""

    model: JudgeConfig
    batch: int = 256
    texts: int = 512  # captions without a picture beside them: wrong answers that cost little
    fit: FitConfig


def train(recipe: Recipe, context: Context) -> Result[Judge]:
    data = emblem.load()
    shown = [item for item in data.items if item.split not in HELD_OUT]
    held_out = {split: [item for item in data.items if item.split == split] for split in HELD_OUT}
    draw = Draw.of([item.row for item in shown], [item.weight for item in shown], recipe.batch, recipe.fit.seed)
    candidates = Candidates(data.items)

    text = recipe.model.text
    tokenizer = train_tokenizer((words for language, words in texts(data.items) if language == "en"), text.vocab)
    if (tokenizer.vocab, tokenizer.vocab - 1) != (text.vocab, text.end):
        raise ConfigError(
            f"model.text has vocab={text.vocab}, end={text.end}, but the captions give {tokenizer.vocab} tokens, "
            "the last of them the end; set both"
        )
    torch.manual_seed(recipe.fit.seed)
    judge = Judge(recipe.model).to(context.device)
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def validate(judge: Judge, step: int) -> dict[str, float]:
        return {
            f"top1_{split}": top_1(judge, tokenizer, data.pictures, items, candidates)
            for split, items in held_out.items()
        }

    result = fit(
        judge,
        JudgeBatches(data.pictures, data.items, tokenizer, text.context, draw, recipe.texts),
        contrast,
        recipe.fit,
        context.folder,
        recipe={"task": "judge", "model": recipe.model, "batch": recipe.batch, "texts": recipe.texts},
        resume=context.resume,
        validate=validate,
        progress=context.progress,
    )
    save_judge(context.folder / "model", result.model, tokenizer)
    return result


def contrast(judge: Judge, batch: Batch, generator: torch.Generator) -> Loss:
    """CLIP's symmetric loss (2103.00020, figure 3), where variants of one base are not told apart.

    The first captions belong to the pictures; those behind them are only wrong answers.
    """
    logits = judge.logits(batch["pictures"], batch["ids"])  # (B, B + N)
    base, own = batch["base"], torch.arange(len(logits), device=logits.device)
    variants = base[: len(own), None] == base
    variants[own, own] = False
    logits = logits.masked_fill(variants, -torch.inf)
    right = (logits.detach().argmax(-1) == own).float().mean()
    loss = F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(own)].mT, own)
    return Loss(loss / 2, {"right": right})


@dataclass(frozen=True)
class JudgeBatches:
    """Pictures (B), the token ids of a fresh caption for each and of `texts` others, and the base of every caption."""

    pictures: Pictures
    items: Sequence[Item]
    tokenizer: Tokenizer
    context: int
    draw: Draw
    texts: int

    def __call__(self, step: int) -> Batch:
        rows = self.draw.at(step)
        others = self.draw.generator(step).spawn(1)[0].choice(self.draw.rows, self.texts, p=self.draw.weights)
        named = [self.items[row] for row in (*rows, *others)]
        rng = random.Random(f"{self.draw.seed} {step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        mirrored = torch.tensor([mirrors(item) for item in named[: len(rows)]])
        numbers = {base: i for i, base in enumerate(dict.fromkeys(item.base for item in named))}
        return {
            "pictures": augment(to_signed(self.pictures[rows]), mirrored, generator),
            "ids": tokenize(self.tokenizer, [caption(item, rng) for item in named], self.context),
            "base": torch.tensor([numbers[item.base] for item in named]),
        }


def mirrors(item: Item) -> bool:
    """Whether the mirrored picture shows the same thing; a sign, a logo, or a finger that points left, does not."""
    return item.group not in ("", "symbols", "flags") and not any(side in item.name for side in ("left", "right"))


def augment(pictures: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, Y, X) in [-1, 1] moved by up to 5 of 128 pixels, scaled, mirrored by chance where `mirrored`
    (B,) allows, tinted and softened; white stays white."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), *shape, generator=generator)

    zoom, side = uniform(0.88, 1.1), torch.where(mirrored & (uniform(0, 1) < 0.5), -1.0, 1.0)
    affine = torch.zeros(len(pictures), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = side / zoom, 1 / zoom
    affine[:, :, 2] = uniform(-0.08, 0.08, 2)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    ink = F.grid_sample(1 - pictures, grid, align_corners=False)  # beyond the edge there is no ink
    for axis in (-1, -2):  # a mean with the neighbour; a 3x3 pooling would cost three times as much
        ink = torch.lerp(ink, ink.roll(1, axis), uniform(0, 0.5, 1, 1, 1))
    ink = ink * uniform(0.88, 1.12, 1, 1, 1) * uniform(0.94, 1.06, 3, 1, 1)
    return (1 - ink).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def top_1(
    judge: Judge, tokenizer: Tokenizer, pictures: Pictures, items: Sequence[Item], candidates: Candidates
) -> float:
    """The share of real pictures for which the judge picks the true caption out of 100."""
    features = picture_features(judge, pictures, [item.row for item in items])
    return float((ranks(judge, tokenizer, features, [candidates.of(item) for item in items]) == 0).float().mean())


@torch.no_grad()
def picture_features(
    judge: Judge, pictures: Pictures, rows: Sequence[int] | None = None, *, batch: int = 128
) -> Tensor:
    """uint8 (N, Y, X, 3), or the `rows` of a data set that is larger than memory, -> features (N, C)."""
    device, places = judge.log_scale.device, list(range(len(pictures)) if rows is None else rows)
    parts = (to_signed(pictures[places[i : i + batch]]).to(device) for i in range(0, len(places), batch))
    return torch.cat([judge.vision(part).float().cpu() for part in parts])
