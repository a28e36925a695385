"""Recipe "masked": a BERT from scratch on one text, by filling in what was masked.

BERT (1810.04805), section 3.1, task 1, with masks that change in every step (RoBERTa, 1907.11692, section 4.1) and
without the next-sentence task, which RoBERTa's section 4.2 found useless. Lines follow one another in windows of the
model's context; the last part of the text gives the validation loss, under masks that stay. What comes out is a folder
that transformers and `qkv fill` open.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.errors import ConfigError, InputError
from qkv.models.bert import BertConfig, MaskedBert
from qkv.text.bert import BertTokenizer, learn_wordpiece
from qkv.train.language_model import read_texts
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context
from qkv.weights.bert import save_bert

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data` is a UTF-8 text file, or a folder whose *.txt files are read in the order of their names; a WordPiece
    vocabulary of `model.vocab` tokens is learnt from it. `share` of the tokens are asked for. `validation` is the last
    share of the text."""

    data: Path
    model: BertConfig
    batch: int = 32
    share: float = 0.15
    validation: float = 0.05
    lowercase: bool = True
    fit: FitConfig

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch={self.batch}; it must be 1 or more")
        for name in ("share", "validation"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be a share between 0 and 1")
        if self.model.context < 3:
            raise ConfigError(f"model.context={self.model.context}; it must be 3 or more, for both ends and a token")


class Masked(NamedTuple):
    """Windows (B, T) with masks in them, and the tokens that stood there: -100 where none is asked for."""

    ids: Tensor
    targets: Tensor


@dataclass(frozen=True)
class MaskedWindows:
    """Windows of `context` tokens, both ends among them, from places of `ids`, masked."""

    ids: Ids
    tokenizer: BertTokenizer
    context: int
    batch: int
    share: float
    seed: int

    def __call__(self, step: int) -> Masked:
        rng = np.random.default_rng((self.seed, step))
        return self.at(rng.integers(len(self.ids) - self.context + 3, size=self.batch), rng)

    def at(self, starts: npt.NDArray[np.int64], rng: np.random.Generator) -> Masked:
        inner = self.ids[starts[:, None] + np.arange(self.context - 2)]
        given, asked = mask(inner, self.share, self.tokenizer, rng)
        first, last = (np.full((len(starts), 1), id) for id in (self.tokenizer.first, self.tokenizer.last))
        none = np.full((len(starts), 1), IGNORED)
        return Masked(
            torch.from_numpy(np.concatenate((first, given, last), axis=1)),
            torch.from_numpy(np.concatenate((none, np.where(asked, inner, IGNORED), none), axis=1)),
        )


IGNORED = -100


def mask(
    ids: Ids, share: float, tokenizer: BertTokenizer, rng: np.random.Generator
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Section 3.1: of the tokens that are asked for, 80 % become the mask, 10 % any other token, 10 % stay."""
    assert tokenizer.mask is not None, "a vocabulary that was learnt for this"
    asked, how = rng.random(ids.shape) < share, rng.random(ids.shape)
    given = np.where(asked & (how < 0.8), tokenizer.mask, ids)
    other = rng.integers(tokenizer.vocab, size=ids.shape)
    return np.where(asked & (how >= 0.8) & (how < 0.9), other, given), asked


def train(recipe: Recipe, context: Context) -> Result[MaskedBert]:
    text = "".join(read_texts(recipe.data))
    cut = round(len(text) * (1 - recipe.validation))
    tokenizer = learn_wordpiece(text[:cut].splitlines(), recipe.model.vocab, lowercase=recipe.lowercase)
    known, unseen = (encode(tokenizer, part.splitlines()) for part in (text[:cut], text[cut:]))
    for ids, name in ((known, "training"), (unseen, "validation")):
        if len(ids) <= recipe.model.context:
            raise InputError(
                f"{recipe.data} has {len(ids)} tokens for {name}; context={recipe.model.context} needs more"
            )
    torch.manual_seed(recipe.fit.seed)
    model = MaskedBert(recipe.model).to(context.device)

    def windows(ids: Ids) -> MaskedWindows:
        return MaskedWindows(ids, tokenizer, recipe.model.context, recipe.batch, recipe.share, recipe.fit.seed)

    def validate(model: MaskedBert, step: int) -> dict[str, float]:
        return measure(model, windows(unseen))

    result = context.fit(
        recipe,
        model,
        windows(known),
        filling,
        facts={"text": hashlib.sha256(text.encode()).hexdigest()},
        validate=validate,
    )
    save_bert(result.model, context.folder / "model")
    tokenizer.save(context.folder / "model")
    return result


def encode(tokenizer: BertTokenizer, lines: Sequence[str]) -> Ids:
    """The ids of all lines, one after the other, without ends."""
    return np.array([id for ids in tokenizer.encode_batch(lines) for id in ids[1:-1]], np.int64)


def filling(model: MaskedBert, batch: Masked, generator: torch.Generator) -> Loss:
    """The mean of -log p(token | the text with masks), in nats, over the tokens that are asked for; only these go
    through the head."""
    asked = batch.targets != IGNORED  # (B, T)
    logits = model.logits(model.body(batch.ids)[asked]).float()  # (N, V)
    target = batch.targets[asked]
    right = (logits.argmax(-1) == target).float().mean() if len(target) else torch.zeros(())
    loss = F.cross_entropy(logits, target) if len(target) else logits.sum()
    return Loss(loss, {"right": right}, count=len(target))


@torch.no_grad()
def measure(model: MaskedBert, windows: MaskedWindows) -> dict[str, float]:
    """Loss and share of right guesses over the whole text once, under masks that are the same every time."""
    device, rng = model.bias.device, np.random.default_rng(0)
    width = windows.context - 2
    starts = np.arange(0, len(windows.ids) - width + 1, width)
    total, right, count = 0.0, 0.0, 0
    for i in range(0, len(starts), windows.batch):
        part = windows.at(starts[i : i + windows.batch], rng)
        loss = filling(model, Masked(part.ids.to(device), part.targets.to(device)), torch.Generator())
        asked = loss.count or 0
        total, right = total + float(loss.value) * asked, right + float(loss.metrics["right"]) * asked
        count += asked
    return {"validation": total / max(count, 1), "validation_right": right / max(count, 1)}
