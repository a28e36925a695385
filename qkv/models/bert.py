"""BERT: an encoder that reads a whole text at once; its kin, and the heads that it is published with.

Devlin et al. (1810.04805), section 3. RoBERTa (1907.11692) begins its table of positions with rows that no token uses;
DistilBERT (1910.01108) has no segments; ALBERT (1909.11942) embeds in a narrower space and runs one block again and
again; MiniLM (2002.10957) is a small BERT. All are values of `BertConfig`. Sentence-BERT (1908.10084) makes one vector
of a text's states: `pool_states`.

Where padding is given, positions count tokens only, as RoBERTa's do: so it may stand on either side. Left out: dropout,
which the fine-tuning here is no worse without, and the next-sentence head, which nothing uses any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.activation import ACTIVATIONS
from qkv.core.position import LearnedPosition, token_positions
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError, InputError

Pooling = Literal["mean", "first", "max", "mean_sqrt"]


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The defaults are BERT base. `segments` is the number of token types, 0 for none.

    `embed_dim`: the width of the embeddings, where they are narrower and widened once. `shared`: all layers are one
    block. `offset`: rows at the front of the table of positions that no token has. `pooler`: what follows the linear
    layer over the first token's state, None for no such layer.
    """

    vocab: int = 30_522
    context: int = 512
    segments: int = 2
    dim: int = 768
    embed_dim: int | None = None
    layers: int = 12
    shared: bool = False
    heads: int = 12
    ffn_dim: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12
    offset: int = 0
    pooler: Literal["tanh", "relu"] | None = None

    def __post_init__(self) -> None:
        bounds = {"vocab": 10_000_000, "context": 1_000_000, "segments": 1_000, "embed_dim": 1_000_000}
        for name, most in {**bounds, "offset": 1_000_000, "layers": 1_000}.items():
            value, least = getattr(self, name), 0 if name in ("segments", "offset") else 1
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name}={value} is out of range; it must be {least} to {most}")
        self.stack  # noqa: B018  its own checks

    @property
    def embed_width(self) -> int:
        """Of tokens, segments and positions."""
        return self.dim if self.embed_dim is None else self.embed_dim

    @property
    def stack(self) -> StackConfig:
        """Of the blocks that there are."""
        return StackConfig(
            dim=self.dim,
            layers=1 if self.shared else self.layers,
            heads=self.heads,
            ffn_dim=self.ffn_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            norm_first=False,
            final_norm=False,
        )


class Bert(nn.Module):
    """Tokens (B, T) -> states (B, T, D). New ones are initialised as the paper's: std 0.02 (appendix A.2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_width
        self.token = nn.Embedding(config.vocab, width)
        self.segment = nn.Embedding(config.segments, width) if config.segments else None
        self.position = LearnedPosition(config.context, width, offset=config.offset)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.widen = None if config.embed_dim is None else nn.Linear(width, config.dim)
        self.stack = Stack(config.stack)
        self.pooler = nn.Linear(config.dim, config.dim) if config.pooler else None
        _initialise(self)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """ids (B, T); `mask` (B, T) is True at tokens, `segments` (B, T) 1 in a second text. Returns (B, T, D).

        InputError beyond the context, and for segments where the model has none.
        """
        x = self.token(ids)  # (B, T, E)
        if self.segment is not None:
            x = x + self.segment(torch.zeros_like(ids) if segments is None else segments)
        elif segments is not None:
            raise InputError("this model has no segments; give it one text")
        positions = None if mask is None else token_positions(mask, ids.shape[-1])
        x = self.norm(self.position(x, positions=positions))
        if self.widen is not None:
            x = self.widen(x)  # (B, T, D)
        for _ in range(self.config.layers if self.config.shared else 1):
            x = self.stack(x, mask=mask)
        return x

    def pool(self, states: Tensor) -> Tensor:
        """states (B, T, D) -> (B, D): the first token's, through the layer that was trained for it."""
        assert self.pooler is not None, "a body without a pooler"
        x = self.pooler(states[:, 0])
        return x.tanh() if self.config.pooler == "tanh" else x.relu()

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One vector (B, D) of length 1 a text: the mean of its tokens' states."""
        return F.normalize(pool_states(self(ids, mask), mask, "mean"), dim=-1)


def pool_states(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector (B, D) a text out of states (B, T, D); `mask` (B, T) is True at tokens, None if all are.

    `mean_sqrt` divides the sum by the root of the number of tokens.
    """
    if pooling == "first":
        return states[:, 0]
    if mask is None:
        mask = torch.ones_like(states[..., 0], dtype=torch.bool)
    here = mask[..., None]  # (B, T, 1)
    if pooling == "max":
        return states.masked_fill(~here, -torch.inf).amax(1)
    count = here.sum(1)
    return (states * here).sum(1) / (count if pooling == "mean" else count.sqrt())


class MaskedBert(nn.Module):
    """Tokens (B, T) -> logits (B, T, V) of what each token may have been: section 3.1, task 1. The matrix of the
    output is that of the embeddings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.body = Bert(config)
        self.dense = nn.Linear(config.dim, config.embed_width)
        self.norm = nn.LayerNorm(config.embed_width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.activation = ACTIVATIONS[config.activation]
        _initialise(self.dense)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return self.logits(self.body(ids, mask, segments))

    def logits(self, states: Tensor) -> Tensor:
        """states (..., D) -> (..., V), so that only the tokens that are asked for go through the head."""
        x = self.norm(self.activation(self.dense(states)))  # (..., E)
        return F.linear(x, self.body.token.weight, self.bias)


class BertClassifier(nn.Module):
    """Tokens (B, T) -> logits (B, labels) of what the text is. ConfigError without a pooler."""

    def __init__(self, config: BertConfig, labels: Sequence[str]) -> None:
        super().__init__()
        if config.pooler is None:
            raise ConfigError("a classifier reads the pooled state; set pooler to tanh")
        self.labels = tuple(labels)
        self.body = Bert(config)
        self.out = nn.Linear(config.dim, len(labels))
        _initialise(self.out)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return self.out(self.body.pool(self.body(ids, mask, segments)))


class BertTagger(nn.Module):
    """Tokens (B, T) -> logits (B, T, labels) of what each token is."""

    def __init__(self, config: BertConfig, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.body = Bert(config)
        self.out = nn.Linear(config.dim, len(labels))
        _initialise(self.out)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return self.out(self.body(ids, mask, segments))


def _initialise(part: nn.Module) -> None:
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
