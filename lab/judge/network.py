"""The judge: a dual encoder of captions and pictures that exists to measure others.

Contrastive as CLIP (2103.00020, section 2.3), with a convolutional picture tower (pre-activation residual blocks,
1603.05027) and a small text tower of its own. It shares no weight, tokenizer, seed or order with the CLIP that
conditions the generator, and nothing is trained or chosen by it. Left out: pictures beyond 64 x 64 (those of emblem
are halved), other languages (a prompt in German is judged by its English caption).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.errors import ConfigError
from qkv.models.clip import TextConfig, TextTower
from qkv.text.tokenizer import Tokenizer
from qkv.text.weighting import Segment


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Pictures shrink by 4 in a stem of `stem` channels, then by 2 a stage: stage i has `dims[i]` channels and
    `layers[i]` residual blocks."""

    text: TextConfig
    stem: int = 32
    dims: tuple[int, ...] = (96, 192)
    layers: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        if not self.text.proj_dim:
            raise ConfigError("text.proj_dim is missing; set the width of the joined space")
        if len(self.dims) != len(self.layers) or not self.dims:
            raise ConfigError(f"dims={self.dims} and layers={self.layers} must name the same stages")
        widths = (self.stem, *self.dims)
        if min(*widths, *self.layers) < 1 or max(widths) > 4096 or max(self.layers) > 100:
            raise ConfigError(f"stem={self.stem}, dims={self.dims}, layers={self.layers} are out of range")


class NormedResidual(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, around a residual; x (B, C, Y, X) -> (B, O, Y, X)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(x)))
        hidden = self.conv2(F.relu(self.norm2(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


def convolutions(stem: int, dims: Sequence[int], counts: Sequence[int]) -> nn.Sequential:
    """Pictures (B, 3, 4Y, 4X) -> (B, dims[-1], Y / 2^(stages - 1), X / 2^(stages - 1)); see `JudgeConfig`."""
    channels = dims[0]
    # No block before the quarter of the size: there it would cost as much as all the rest.
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(),
        nn.Conv2d(stem, channels, 3, stride=2, padding=1, bias=False),
    ]
    for stage, (dim, count) in enumerate(zip(dims, counts)):
        if stage:
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False))
        for _ in range(count):
            layers.append(NormedResidual(channels, dim))
            channels = dim
    return nn.Sequential(*layers)


class PictureTower(nn.Module):
    """Pictures (B, 3, Y, X) in [-1, 1] -> features (B, C)."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        channels = config.dims[-1]
        self.layers = convolutions(config.stem, config.dims, config.layers)
        self.norm = nn.BatchNorm2d(channels)
        self.project = nn.Linear(channels, config.text.proj_dim or 0, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return F.relu(self.norm(self.layers(pictures))).mean((-2, -1))

    def embed(self, features: Tensor) -> Tensor:
        """Features as vectors (B, P) of length 1 in the joined space."""
        return F.normalize(self.project(features).float(), dim=-1)


class Judge(nn.Module):
    """Both towers and the temperature."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.text, self.vision = TextTower(config.text), PictureTower(config)
        self.log_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), as CLIP begins


def tokenize(tokenizer: Tokenizer, captions: Sequence[str], context: int) -> Tensor:
    """Token ids (B, T), T as long as the longest caption and at most `context`, where captions are cut."""
    rows = [tokenizer.chunks([Segment(caption, 1.0)], context) for caption in captions]
    longest = max(int((row.word_of[0] >= 0).sum()) for row in rows) + 2  # beside BOS and EOS
    return torch.stack([torch.from_numpy(row.ids[0, :longest]) for row in rows])


@torch.no_grad()
def embed_captions(judge: Judge, tokenizer: Tokenizer, captions: Sequence[str], *, batch: int = 512) -> Tensor:
    """Vectors (N, P) of length 1."""
    device, context = judge.log_scale.device, judge.config.text.context
    parts = [captions[i : i + batch] for i in range(0, len(captions), batch)]
    return torch.cat([judge.text.embed(tokenize(tokenizer, part, context).to(device)).float().cpu() for part in parts])


@torch.no_grad()
def ranks(judge: Judge, tokenizer: Tokenizer, features: Tensor, questions: Sequence[Sequence[str]]) -> Tensor:
    """How many captions of its question the judge finds at least as fitting for a picture as the first, true one.

    features (N, C) of the picture tower, N questions of equally many captions; (N,) integers, 0 is right.
    A tie counts against the picture, so that a judge without an opinion scores nothing.
    """
    pictures = judge.vision.embed(features.to(judge.log_scale.device)).cpu()
    number_of = {caption: i for i, caption in enumerate(dict.fromkeys(caption for q in questions for caption in q))}
    captions = embed_captions(judge, tokenizer, list(number_of))
    asked = torch.tensor([[number_of[caption] for caption in question] for question in questions])  # (N, candidates)
    scores = torch.stack([captions[row] @ picture for row, picture in zip(asked, pictures)])
    return (scores[:, 1:] >= scores[:, :1]).sum(-1)
