"""Recipe "classify": a published BERT learns to tell labelled texts apart.

BERT (1810.04805), section 3.2: one linear layer over the pooled first token, and all weights are trained. The data is
"spam" (data/spam.py), or a file of JSON lines with a text and a label each. A fifth of it, chosen by the texts' own
hashes, is only measured on, and nothing is chosen by what it says: the run's last weights are the result.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.data import spam
from qkv.data.spam import Labelled, held_out
from qkv.errors import ConfigError, InputError
from qkv.fetch.pull import find
from qkv.models.bert import BertClassifier
from qkv.text.bert import BertTokenizer
from qkv.textfiles import json_lines
from qkv.train.conversations import Order
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context, freeze
from qkv.weights.bert import load_bert, save_bert
from qkv.weights.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`start`: a body, as `qkv embed --model` takes it; `context`: how many tokens of a text are read; `freeze`: the
    beginnings of the names of weights that stay as they are."""

    data: str = "spam"
    start: str = "minilm"
    context: int = 128
    batch: int = 32
    freeze: tuple[str, ...] = ()
    fit: FitConfig

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("context", 3)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be {least} or more")


class Texts(NamedTuple):
    """Padded token ids (B, T), True at tokens (B, T), and the labels' numbers (B,)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batches:
    """The `Texts` of a step, of about one length."""

    read: Sequence[Sequence[int]]
    labels: Sequence[int]
    pad: int
    order: Order

    def __call__(self, step: int) -> Texts:
        rows = self.order.at(step)
        return padded([self.read[row] for row in rows], [self.labels[row] for row in rows], self.pad)


def train(recipe: Recipe, context: Context) -> Result[BertClassifier]:
    data = labelled(recipe.data)
    labels = sorted({row.label for row in data})
    known, unseen = ([row for row in data if held_out(row.text) is out] for out in (False, True))
    if len(labels) < 2 or not known or not unseen:
        raise InputError(f"{recipe.data} has {len(data)} texts with {len(labels)} labels; give more of both")
    model, tokenizer = open_start(recipe.start, labels, recipe.fit.seed)
    if recipe.context > model.body.config.context:
        raise ConfigError(f"context={recipe.context} is more than the {model.body.config.context} tokens of the model")
    freeze(model, recipe.freeze)
    read = read_texts(tokenizer, [row.text for row in known], recipe.context)
    numbers = [labels.index(row.label) for row in known]
    order = Order([len(ids) for ids in read], recipe.batch, recipe.fit.seed)

    def validate(model: BertClassifier, step: int) -> dict[str, float]:
        return scores(predict(model, tokenizer, [row.text for row in unseen], recipe.context), unseen)

    result = context.fit(
        recipe,
        model.to(context.device),
        Batches(read, numbers, tokenizer.pad, order),
        classifying,
        facts={"texts": _digest(data)},
        validate=validate,
    )
    save_bert(result.model, context.folder / "model")
    tokenizer.save(context.folder / "model")
    return result


def labelled(data: str) -> list[Labelled]:
    """The texts of "spam", or of a file. InputError that names file and line."""
    return spam.load() if data == "spam" else json_lines(Path(data), _labelled)


def _labelled(value: Mapping[str, Any]) -> Labelled:
    match value:
        case {"text": str(text), "label": str(label)} if text.strip() and label:
            return Labelled(text, label)
    raise InputError('it has no "text" and "label"')


def open_start(name: str, labels: Sequence[str], seed: int) -> tuple[BertClassifier, BertTokenizer]:
    """A published body under a new head; without a pooler of its own it gets a new one. NotFoundError,
    CheckpointError."""
    path = find(name)
    body = load_bert(Folder(path), dtype=torch.float32)
    torch.manual_seed(seed)
    model = BertClassifier(dataclasses.replace(body.config, pooler=body.config.pooler or "tanh"), labels)
    model.body.load_state_dict(body.state_dict(), strict=body.pooler is not None)
    return model, BertTokenizer.load(path)


def read_texts(tokenizer: BertTokenizer, texts: Sequence[str], context: int) -> list[list[int]]:
    """The first `context` tokens of each text, both ends among them."""
    read = tokenizer.encode_batch(texts)
    return [ids if len(ids) <= context else [*ids[: context - 1], tokenizer.last] for ids in read]


def padded(read: Sequence[Sequence[int]], labels: Sequence[int], pad: int) -> Texts:
    T = max(map(len, read))
    ids = torch.tensor([[*row, *[pad] * (T - len(row))] for row in read])
    mask = torch.arange(T) < torch.tensor([[len(row)] for row in read])
    return Texts(ids, mask, torch.tensor(labels))


def classifying(model: BertClassifier, batch: Texts, generator: torch.Generator) -> Loss:
    """The mean of -log p(label | text), in nats."""
    logits = model(batch.ids, batch.mask).float()  # (B, labels)
    right = (logits.argmax(-1) == batch.labels).float().mean()
    return Loss(F.cross_entropy(logits, batch.labels), {"right": right})


@torch.no_grad()
def predict(
    model: BertClassifier, tokenizer: BertTokenizer, texts: Sequence[str], context: int, *, batch: int = 64
) -> list[str]:
    """The likeliest label of each text."""
    device = model.out.weight.device
    read = read_texts(tokenizer, texts, context)
    order = sorted(range(len(read)), key=lambda row: len(read[row]))
    found = [""] * len(texts)
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        given = padded([read[row] for row in rows], [0] * len(rows), tokenizer.pad)
        chosen = model(given.ids.to(device), given.mask.to(device)).argmax(-1).tolist()
        for row, label in zip(rows, chosen):
            found[row] = model.labels[label]
    return found


def scores(predicted: Sequence[str], truth: Sequence[Labelled]) -> dict[str, float]:
    """The share that is right, and F1 as the mean over the labels, so that rare ones count."""
    pairs = [(guess, row.label) for guess, row in zip(predicted, truth, strict=True)]
    f1 = []
    for label in {row.label for row in truth}:
        both = sum(guess == label == true for guess, true in pairs)
        either = sum(guess == label for guess, _ in pairs) + sum(true == label for _, true in pairs)
        f1.append(2 * both / either)
    return {"accuracy": sum(guess == true for guess, true in pairs) / len(pairs), "f1": sum(f1) / len(f1)}


def _digest(data: Sequence[Labelled]) -> str:
    return hashlib.sha256(repr(data).encode()).hexdigest()
