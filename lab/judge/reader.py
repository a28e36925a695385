"""The judge of scenes: a network that reads a picture's facts, so that captions can be held against them.

A small convolutional tower (pre-activation residual blocks, 1603.05027) makes 64 tokens of a picture; a Transformer
lets four more, one for the scene and one for each actor, look at them (DETR's queries, 2005.12872, without its
matching: actors have an order, from left to right, rider first); linear heads name each slot's class. A caption's score
is the sum of its facts' log-probabilities, so that captions that differ in one fact are told apart by that fact alone,
and every other class of a slot is a hard negative of each picture.
How often a class is drawn in training is taken out of what the heads learn (logit adjustment, 2007.07314), so that a
picture that shows nothing speaks for no caption. Left out: words; a prompt in any language is judged by its facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.judge.facts import ACTORS, PARTS, SLOTS, WHOLE, Facts, kind
from lab.judge.network import convolutions
from lab.train.batches import to_signed
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError

SIDE, GRID = 128, 8  # pixels, and tokens, a side
DOUBT = 0.02  # of a slot's probability is left to chance: no single fact decides alone


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`stem`, `dims` and `layers` are those of `JudgeConfig`, the last of `dims` the tokens' width; the others are the
    Transformer's."""

    stem: int = 24
    dims: tuple[int, ...] = (48, 96, 192)
    layers: tuple[int, ...] = (1, 2, 2)
    looks: int = 2
    heads: int = 6
    ffn_dim: int = 384


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """`classes` are those of each kind of slot (`facts.classes`)."""

    shape: Shape = field(default_factory=Shape)
    classes: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if missing := [part for part in (*WHOLE, *PARTS) if len(self.classes.get(part, ())) < 2]:
            raise ConfigError(f"classes.{missing[0]} has too few classes; a slot needs two")


class Reader(nn.Module):
    """Pictures (B, 3, Y, X) in [-1, 1] -> the logits of every slot, each (B, classes)."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        c, dim = config.shape, config.shape.dims[-1]
        self.convolutions = convolutions(c.stem, c.dims, c.layers)
        self.norm = nn.BatchNorm2d(dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, dim, GRID, GRID))
        self.queries = nn.Parameter(0.02 * torch.randn(1 + ACTORS, dim))
        looks = StackConfig(dim=dim, layers=c.looks, heads=c.heads, ffn_dim=c.ffn_dim, activation="relu")
        self.stack = Stack(looks)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, len(found)) for name, found in config.classes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        found = F.relu(self.norm(self.convolutions(pictures)))  # (B, D, y, x)
        places = F.interpolate(self.positions, found.shape[-2:], mode="bilinear", align_corners=False)
        tokens = (found + places).flatten(2).transpose(1, 2)  # (B, S, D)
        asking = self.queries.expand(len(tokens), -1, -1)
        answers = self.stack(torch.cat((asking, tokens), dim=1))[:, : 1 + ACTORS]  # (B, 4, D)
        return {slot: self.heads[kind(slot)](answers[:, _row(slot)]) for slot in SLOTS}


def _row(slot: str) -> int:
    """Which query a slot is read from."""
    return 1 + int(slot.split()[1]) if " " in slot else 0


@dataclass(frozen=True)
class Read:
    """What a judge read in N pictures: for each slot the classes' log-probabilities (N, K)."""

    logs: Mapping[str, npt.NDArray[np.float32]]
    places: Mapping[str, Mapping[str, int]]  # of each class among those of its kind

    def score(self, row: int, facts: Facts) -> float:
        """How well a caption that says `facts` fits picture `row`. KeyError for a class that the judge knows not."""
        return sum(float(self.logs[slot][row, self.places[kind(slot)][value]]) for slot, value in facts.items())

    def best(self, row: int, slot: str) -> str:
        """The likeliest class of a slot."""
        return list(self.places[kind(slot)])[int(self.logs[slot][row].argmax())]

    def ranks(self, questions: Sequence[Sequence[Facts]]) -> Tensor:
        """How many captions of its question fit each picture at least as well as the first, true one; (N,), 0 is right.

        A tie counts against the picture, so that a judge without an opinion scores nothing.
        """
        found = []
        for row, (true, *others) in enumerate(questions):
            least = self.score(row, true)
            found.append(sum(self.score(row, other) >= least for other in others))
        return torch.tensor(found)


@torch.no_grad()
def read(judge: Reader, pictures: npt.NDArray[np.uint8], *, side: int = SIDE, batch: int = 32) -> Read:
    """Reads pictures uint8 (N, Y, X, 3), which are brought to the side that the judge knows."""
    parts = []
    for start in range(0, len(pictures), batch):
        seen = to_signed(pictures[start : start + batch]).to(judge.positions.device)
        if seen.shape[-1] != side:
            seen = F.interpolate(seen, (side, side), mode="bilinear", align_corners=False, antialias=True)
        logits = judge(seen.contiguous(memory_format=torch.channels_last))
        parts.append({slot: _doubted(row.float().cpu()).numpy() for slot, row in logits.items()})
    places = {name: {value: i for i, value in enumerate(found)} for name, found in judge.config.classes.items()}
    return Read({slot: np.concatenate([part[slot] for part in parts]) for slot in SLOTS}, places)


def _doubted(logits: Tensor) -> Tensor:
    """Log-probabilities (N, K), none below log(DOUBT / K)."""
    sure = logits.log_softmax(-1) + log(1 - DOUBT)
    return torch.logaddexp(sure, torch.tensor(DOUBT / logits.shape[-1]).log())
