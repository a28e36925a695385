"""CLIP: a text tower and a picture tower that meet in one space.

"Learning Transferable Visual Models" (2103.00020), section 2.4; published as transformers' `CLIPModel`.
Stable Diffusion reads the text tower's token states; search and classification read the joined vectors.
The ResNet picture towers are left out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.position import LearnedPosition
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower; the defaults are those of SD 1.x (CLIP ViT-L/14). `end` is the token whose state stands for
    the whole text; `proj_dim` the joined space's width, None where the tower is published without its projection."""

    vocab: int = 49_408
    context: int = 77
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 3072
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    start: int = 49_406
    end: int = 49_407
    pad: int = 49_407
    proj_dim: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("vocab", 10_000_000), ("context", 1_000_000)):
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to {most}")
        if not 0 <= self.end < self.vocab:
            raise ConfigError(f"end={self.end} is no token of a vocabulary of {self.vocab}")
        _stack(self)  # its own checks

    @property
    def causal(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The picture tower, a ViT; the defaults are ViT-L/14."""

    image_size: int = 224
    patch: int = 14
    channels: int = 3
    dim: int = 1024
    layers: int = 24
    heads: int = 16
    ffn_dim: int = 4096
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    proj_dim: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.patch <= self.image_size <= 65_536:
            raise ConfigError(f"patch={self.patch} does not fit image_size={self.image_size}")
        if not 0 < self.channels <= 1024:
            raise ConfigError(f"channels={self.channels} is out of range; it must be 1 to 1024")
        _stack(self)

    @property
    def causal(self) -> bool:
        return False

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch) ** 2


def _stack(c: TextConfig | VisionConfig) -> StackConfig:
    return StackConfig(
        dim=c.dim,
        layers=c.layers,
        heads=c.heads,
        ffn_dim=c.ffn_dim,
        activation=c.activation,
        norm_eps=c.norm_eps,
        causal=c.causal,
        final_norm=isinstance(c, TextConfig),  # the picture tower norms the class token alone
    )


def _openai(width: int, patch: int, image_size: int = 224) -> tuple[TextConfig, VisionConfig]:
    """Both towers by the text tower's width: 64 a head in either, the picture tower a half or a third wider."""
    text = TextConfig(dim=width, heads=width // 64, ffn_dim=4 * width, proj_dim=width)
    dim, layers = {512: (768, 12), 768: (1024, 24)}[width]
    vision = VisionConfig(
        image_size=image_size,
        patch=patch,
        dim=dim,
        layers=layers,
        heads=dim // 64,
        ffn_dim=4 * dim,
        proj_dim=width,
    )
    return text, vision


# 2103.00020, table 20: OpenAI's vision Transformers by their published names.
PRESETS = {
    "ViT-B/32": _openai(512, 32),
    "ViT-B/16": _openai(512, 16),
    "ViT-L/14": _openai(768, 14),
    "ViT-L/14@336px": _openai(768, 14, 336),
}


class TextTower(nn.Module):
    """Tokens (B, T) -> states (B, T, D)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab, config.dim)
        self.position = LearnedPosition(config.context, config.dim)
        self.stack = Stack(_stack(config))
        self.project = nn.Linear(config.dim, config.proj_dim, bias=False) if config.proj_dim else None

    def forward(self, ids: Tensor) -> Tensor:
        return self.stack(self.position(self.token(ids)))

    def pool(self, states: Tensor, ids: Tensor) -> Tensor:
        """The state (B, D) at each text's first end token; SD 1.x's file says end=2 and means the largest id."""
        ends = ids.argmax(-1) if self.config.end == 2 else (ids == self.config.end).int().argmax(-1)
        return states[torch.arange(len(ids), device=ids.device), ends]

    def embed(self, ids: Tensor) -> Tensor:
        """The text's vector (B, P) in the joined space, of length 1."""
        assert self.project is not None
        return F.normalize(self.project(self.pool(self(ids), ids)), dim=-1)


class VisionTower(nn.Module):
    """Pictures (B, 3, Y, X) -> states (B, 1 + patches, D), the class token first."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(config.channels, config.dim, config.patch, stride=config.patch, bias=False)
        self.first = nn.Parameter(torch.empty(config.dim).normal_(std=0.02))
        self.position = LearnedPosition(1 + config.patches, config.dim)
        self.enter_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.stack = Stack(_stack(config))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.project = nn.Linear(config.dim, config.proj_dim, bias=False) if config.proj_dim else None

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch(pictures).flatten(2).mT  # (B, N, D)
        x = torch.cat((self.first.expand(len(patches), 1, -1), patches), dim=1)  # (B, 1 + N, D)
        return self.stack(self.enter_norm(self.position(x)))

    def pool(self, states: Tensor) -> Tensor:
        """The normed class token (B, D)."""
        return self.norm(states[:, 0])

    def embed(self, pictures: Tensor) -> Tensor:
        """The picture's vector (B, P) in the joined space, of length 1."""
        assert self.project is not None
        return F.normalize(self.project(self.pool(self(pictures))), dim=-1)


class CLIP(nn.Module):
    """Both towers and the temperature; `logits` are the scaled cosines of every picture with every text."""

    def __init__(self, text: TextConfig, vision: VisionConfig) -> None:
        super().__init__()
        if not text.proj_dim or text.proj_dim != vision.proj_dim:
            raise ConfigError(
                f"proj_dim={text.proj_dim} of the text tower is not {vision.proj_dim} of the other; set one"
            )
        self.text, self.vision = TextTower(text), VisionTower(vision)
        self.log_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), section 2.5

    def logits(self, pictures: Tensor, ids: Tensor) -> Tensor:
        """(pictures, texts)."""
        return self.log_scale.exp() * self.vision.embed(pictures) @ self.text.embed(ids).mT
