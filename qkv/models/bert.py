"""BERT: an encoder that reads a whole text at once.

Devlin et al. (1810.04805), section 3; published as transformers' `BertModel`. Here it is the body without
heads, enough for sentence vectors (Sentence-BERT, 1908.10084: the mean of the token states).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.position import LearnedPosition
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The defaults are BERT base. `segments` is the number of token types."""

    vocab: int = 30_522
    context: int = 512
    segments: int = 2
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, most in (("vocab", 10_000_000), ("context", 1_000_000), ("segments", 1_000)):
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; it must be 1 to {most}")
        self.stack  # noqa: B018  its own checks

    @property
    def stack(self) -> StackConfig:
        return StackConfig(
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            ffn_dim=self.ffn_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            norm_first=False,
            final_norm=False,
        )


class Bert(nn.Module):
    """Tokens (B, T) -> states (B, T, D)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab, config.dim)
        self.segment = nn.Embedding(config.segments, config.dim)
        self.position = LearnedPosition(config.context, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.stack = Stack(config.stack)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """ids (B, T); `mask` (B, T) is True at tokens, `segments` (B, T) 1 in a second text."""
        segments = torch.zeros_like(ids) if segments is None else segments
        return self.stack(self.norm(self.position(self.token(ids) + self.segment(segments))), mask=mask)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One vector (B, D) of length 1 a text: the mean of its tokens' states."""
        states, here = self(ids, mask), mask[..., None]  # (B, T, D), (B, T, 1)
        return F.normalize((states * here).sum(1) / here.sum(1), dim=-1)
