"""The judge's recipe: pictures and captions of all concepts and styles; what it never sees are the held-out cells.

Each picture is held against a caption of every concept, as a classifier would be, so that nothing it could be mistaken
for is missing from a step. Styles and skin tones of these captions are left to chance: the candidates of a question
share them, so what they say must not help. The pictures, at half their size, are moved, bent, mirrored, tinted and
softened, so that the judge looks at what is drawn: a generated picture must not fail for a blurred edge.
Seed, order, tokenizer and weights are its own.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.emblem import dataset
from lab.emblem.candidates import Candidates
from lab.emblem.captions import plain_caption, texts
from lab.emblem.items import Item, Split
from lab.judge.files import save_judge
from lab.judge.network import Judge, JudgeConfig, ranks, tokenize
from lab.train.batches import Draw, Pictures, to_signed
from qkv.errors import ConfigError
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.objectives import contrasting
from qkv.train.recipes import Context

HELD_OUT: tuple[Split, ...] = ("heldout_cell", "heldout_tone")

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The tokenizer is learnt from the captions' words, with `model.text.vocab` tokens, the last of them EOS."""

    model: JudgeConfig
    batch: int = 256
    fit: FitConfig


def train(recipe: Recipe, context: Context) -> Result[Judge]:
    data = dataset.load()
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

    result = context.fit(
        recipe,
        judge,
        JudgeBatches.of(data, tokenizer, text.context, draw, recipe.fit.steps),
        contrast,
        validate=validate,
    )
    save_judge(context.folder / "model", result.model, tokenizer)
    return result


def contrast(judge: Judge, batch: Batch, generator: torch.Generator) -> Loss:
    """Each picture against all captions, each of their captions against all pictures."""
    pictures, captions = judge.vision.embed(judge.vision(batch["pictures"])), judge.text.embed(batch["ids"])
    return Loss(contrasting(pictures, captions, judge.log_scale, batch["same"]))


@dataclass(frozen=True)
class JudgeBatches:
    """Pictures (B), a caption's token ids for each of them and then for a concept of every other base (B + N, T), and
    where these are of one base (B, B + N)."""

    pictures: Pictures  # half-sized
    concepts: npt.NDArray[np.int64]  # of each picture
    bases: npt.NDArray[np.int64]  # of each concept
    captions: Tensor  # (concepts, styles, T): each concept's in every style
    mirrored: Tensor  # which pictures may be
    draw: Draw
    steps: int

    @classmethod
    def of(cls, data: dataset.EmblemData, tokenizer: Tokenizer, context: int, draw: Draw, steps: int) -> "JudgeBatches":
        items = {item.concept: item for item in data.items}
        concepts, bases = _numbers(items), _numbers(item.base for item in items.values())
        styles = sorted({item.style for item in data.items})
        tones = sorted({item.tone for item in data.items})
        rng = random.Random(draw.seed)
        toned = {item.base for item in data.items if item.tone}

        def spoken(item: Item, style: str) -> str:
            return plain_caption(replace(item, style=style, tone=rng.choice(tones) if item.base in toned else ""))

        captions = [spoken(item, style) for item in items.values() for style in styles]
        return cls(
            np.concatenate([halve(data.pictures[i : i + 512]) for i in range(0, len(data.items), 512)]),
            np.array([concepts[item.concept] for item in data.items]),
            np.array([bases[item.base] for item in items.values()]),
            tokenize(tokenizer, captions, context).unflatten(0, (len(items), len(styles))),
            torch.tensor([mirrors(item) for item in data.items]),
            draw,
            steps,
        )

    def __call__(self, step: int) -> Batch:
        rows = self.draw.at(step)
        rng = self.draw.generator(step).spawn(1)[0]
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        own = self.concepts[rows]
        # Of each base the concept that comes first in a random order.
        order = rng.permutation(len(self.bases))
        others = order[np.unique(self.bases[order], return_index=True)[1]]
        others = others[~np.isin(self.bases[others], self.bases[own])]
        named = np.concatenate((own, others))
        ids = self.captions[named, rng.integers(self.captions.shape[1], size=len(named))]
        return {
            "pictures": augment(to_signed(self.pictures[rows]), self.mirrored[rows], self.side(step), generator),
            "ids": ids,
            "same": torch.from_numpy(self.bases[own][:, None] == self.bases[named]),
        }

    def side(self, step: int) -> int:
        """Pictures grow from half to full size in five stages (2104.00298, section 4.2): it costs less."""
        full = self.pictures.shape[1]
        return full // 2 + full // 8 * min(5 * step // self.steps, 4)


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def mirrors(item: Item) -> bool:
    """Whether the mirrored picture shows the same thing; a sign, a logo, or a finger that points left, does not."""
    return item.group not in ("", "symbols", "flags") and not any(side in item.name for side in ("left", "right"))


def halve(pictures: Pictures) -> Pictures:
    """uint8 (N, Y, X, 3) at half the size: what is drawn is still seen there, at a quarter of the cost."""
    wide = pictures.astype(np.uint16)
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def augment(pictures: Tensor, mirrored: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, Y, X) in [-1, 1] as (B, 3, side, side), in other places, shapes and colours, a bit softer, and
    mirrored by chance where `mirrored` (B,) allows; white stays white."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), *shape, generator=generator)

    affine = uniform(-0.12, 0.12, 2, 3)  # turned, stretched and moved a bit
    affine[:, 0, 0] += torch.where(mirrored & (uniform(0, 1) < 0.5), -1.0, 1.0) / uniform(0.85, 1.1)
    affine[:, 1, 1] += 1 / uniform(0.85, 1.1)
    grid = F.affine_grid(affine, [len(pictures), 3, side, side], align_corners=False)
    ink = F.grid_sample(1 - pictures, grid, align_corners=False)  # beyond the edge there is no ink
    for axis in (-1, -2):
        ink = torch.lerp(ink, ink.roll(1, axis), uniform(0, 0.5, 1, 1, 1))
    grey = torch.full((3, 3), 1 / 3)
    colour = torch.lerp(torch.eye(3), grey, uniform(-0.2, 0.6, 1, 1)) * uniform(0.8, 1.2, 1, 1)
    ink = ((colour + uniform(-0.1, 0.1, 3, 3)) @ ink.flatten(2)).view_as(ink)
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
    device, chosen = judge.log_scale.device, list(range(len(pictures)) if rows is None else rows)
    parts = (to_signed(halve(pictures[chosen[i : i + batch]])).to(device) for i in range(0, len(chosen), batch))
    return torch.cat([judge.vision(part).float().cpu() for part in parts])
