"""Recipe "preference": DPO, "Direct Preference Optimization" (2305.18290), eq. 7.

A line of the data is {"prompt": [messages], "chosen": [message], "rejected": [message]}, as TRL's. The model learns to
raise the odds of the chosen answer over the rejected one, against what it thought of them at the start: that model is
the same one without its corrections, so LoRA is a must here and the reference costs no memory.
Left out: label smoothing, other losses of the kind (IPO, KTO), and text that is scored rather than compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qkv.errors import ConfigError, InputError
from qkv.models.decoder import Decoder
from qkv.textfiles import json_lines
from qkv.train.conversations import IGNORED, Example, Order, Rows, Speaker, check_row, digest, messages, rows
from qkv.train.finetune import open_trainable, save
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.lora import LoraConfig, base_only
from qkv.train.recipes import Context


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """As finetune's; `beta` is how dear it is to move away from the model at the start."""

    data: Path
    held_out: Path | None = None
    start: str = "smollm2"
    lora: LoraConfig = field(default_factory=LoraConfig)
    beta: float = 0.1
    batch: int = 4
    context: int = 512
    fit: FitConfig

    def __post_init__(self) -> None:
        for name in ("batch", "context", "beta"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be above 0")


class Preference(NamedTuple):
    """Two answers to one prompt."""

    chosen: Example
    rejected: Example


class Pairs(NamedTuple):
    """A batch of them; row i of both answers the same prompt."""

    chosen: Rows
    rejected: Rows


@dataclass(frozen=True)
class Batches:
    """The `Pairs` of a step."""

    pairs: list[Preference]
    order: Order

    @classmethod
    def of(cls, pairs: list[Preference], batch: int, seed: int) -> "Batches":
        lengths = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]
        return cls(pairs, Order(lengths, batch, seed))

    def __call__(self, step: int) -> Pairs:
        return side_by_side([self.pairs[row] for row in self.order.at(step)])


def side_by_side(pairs: list[Preference]) -> Pairs:
    return Pairs(rows([pair.chosen for pair in pairs]), rows([pair.rejected for pair in pairs]))


def read_pairs(path: Path, speaker: Speaker) -> list[Preference]:
    """InputError that names the file and the line."""

    def read(value: Mapping[str, Any]) -> Preference:
        check_row(value)
        prompt = messages(value.get("prompt"), "prompt")
        found = []
        for key in Preference._fields:
            answer = messages(value.get(key), key)
            if [message.role for message in answer] != ["assistant"]:
                raise InputError(f"{key} must hold one message, of the role 'assistant'")
            found.append(_last_answer(speaker, speaker.example([*prompt, *answer])))
        return Preference(*found)

    return json_lines(path, read)


def _last_answer(speaker: Speaker, example: Example) -> Example:
    """Answers earlier in the prompt are the same on both sides: only the last one is weighed."""
    end = len(example.ids) - example.answered[::-1].index(True)
    begin = end
    while begin and example.answered[begin - 1]:
        begin -= 1
    return Example(example.ids, [begin <= i < end for i in range(len(example.ids))])


def train(recipe: Recipe, context: Context) -> Result[Decoder]:
    start = open_trainable(recipe.start, recipe.lora, recipe.fit, context.device)
    speaker = start.speaker(recipe.context)
    known = read_pairs(recipe.data, speaker)
    unseen = read_pairs(recipe.held_out, speaker) if recipe.held_out else []

    def objective(decoder: Decoder, batch: Pairs, generator: torch.Generator) -> Loss:
        return preferring(decoder, batch, recipe.beta)

    def validate(decoder: Decoder, step: int) -> dict[str, float]:
        wins = [float(gains(decoder, side_by_side([pair]), recipe.beta) > 0) for pair in unseen]
        return {"held_out_preferred": sum(wins) / len(wins)} if wins else {}

    result = context.fit(
        recipe,
        start.decoder,
        Batches.of(known, recipe.batch, recipe.fit.seed),
        objective,
        facts={"sha256": digest(recipe.data)},
        validate=validate,
    )
    save(result.model, start, context.folder, recipe.start)
    return result


def preferring(decoder: Decoder, batch: Pairs, beta: float) -> Loss:
    """-log sigmoid of `gains`, the mean over the pairs; "preferred" is the share of them that are on the right side."""
    gain = gains(decoder, batch, beta)
    loss = -F.logsigmoid(gain).mean()
    return Loss(loss, {"preferred": (gain > 0).float().mean(), "gain": gain.detach().mean()})


def gains(decoder: Decoder, batch: Pairs, beta: float) -> Tensor:
    """(B,): beta times how much more the odds of the chosen answer have risen than those of the rejected one."""
    with torch.no_grad(), base_only(decoder):
        before = _log_odds(decoder, batch)
    return beta * (_log_odds(decoder, batch) - before)


def _log_odds(decoder: Decoder, batch: Pairs) -> Tensor:
    chosen, rejected = (log_likelihood(decoder, part) for part in batch)
    return chosen - rejected


def log_likelihood(decoder: Decoder, batch: Rows) -> Tensor:
    """(B,): the sum of log p over each row's answer, in nats."""
    learnt = batch.targets != IGNORED  # (B, T)
    logits = decoder.logits(decoder.states(batch.ids)[learnt]).float()  # (N, V)
    each = -F.cross_entropy(logits, batch.targets[learnt], reduction="none")
    row = learnt.nonzero()[:, 0]  # (N,)
    return torch.zeros(len(learnt), device=each.device).index_add(0, row, each)
