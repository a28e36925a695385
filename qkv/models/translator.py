"""The translator: a text -> logits of the next token of another text. The Transformer of 2017, and T5 (1910.10683).

"Attention Is All You Need" (1706.03762), section 3: an encoder that reads the whole text, a decoder that also looks at
what the encoder made of it, one matrix for the embeddings of both and for the logits (section 3.4). The norm comes
after each residual as in the paper, or before it. The positions' sines all lie before their cosines, as Marian has it:
the paper's alternate, which is the same up to a permutation of the width, and training does not know the difference.
Learned positions (Table 3, row E) are one table for both sides, as the sines are.
Left out: separate vocabularies of the two languages.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.attention import Memory
from qkv.core.cache import StackCache
from qkv.core.dropout import dropout
from qkv.core.position import LearnedPosition, Places, SinusoidalPosition
from qkv.core.stack import Stack
from qkv.errors import InputError
from qkv.models.translator_config import TranslatorConfig


class Source(NamedTuple):
    """What the decoder reads of the texts to translate: the encoder's states (B, S, D), or each layer's keys and values
    made of them, and where they are tokens, (B, S)."""

    memory: Tensor | Sequence[Memory]
    mask: Tensor | None

    def keep(self, rows: Tensor) -> "Source":
        """Only these texts of the batch."""
        assert not isinstance(self.memory, Tensor)
        pairs = [(k[rows], v[rows]) for k, v in self.memory]
        return Source(pairs, None if self.mask is None else self.mask[rows])


class Translator(nn.Module):
    """Texts (B, S) and the beginnings of their translations (B, T) -> logits (B, T, V).

    New ones are initialised as usual for this model: embeddings with std 1/sqrt(dim), which the scale makes 1, and
    matrices after Glorot. `bias` is added to the logits; Marian has it, and it is not trained here.
    """

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab, config.dim)
        self.position: LearnedPosition | SinusoidalPosition | None = None
        if config.position == "learned":
            self.position = LearnedPosition(config.context, config.dim)
        elif config.position == "sinusoidal":
            self.position = SinusoidalPosition(config.context)
        self.encoder = Stack(config.encoder)
        self.decoder = Stack(config.decoder)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab, bias=False)
        self.bias = nn.Buffer(self.token.weight.new_zeros(config.vocab)) if config.head_bias else None
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.token.weight, std=self.config.dim**-0.5)
        for name, parameter in (*self.encoder.named_parameters(), *self.decoder.named_parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, source: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """source (B, S), its `mask` True at tokens; target (B, T) begins with `start`. Padding stands at the right,
        where no token of `target` looks. InputError if a text is longer than the context."""
        return self.logits(self.states(target, self.encode(source, mask)))

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Source:
        """What the decoder reads of source (B, S)."""
        return Source(self.encoder(self.embed(source, 0), mask=mask), mask)

    def remember(self, source: Source) -> Source:
        """`source` with each layer's keys and values computed, for a translation token by token."""
        assert isinstance(source.memory, Tensor)
        return source._replace(memory=self.decoder.remember(source.memory))

    def states(self, target: Tensor, source: Source, *, cache: StackCache | None = None) -> Tensor:
        """target (B, T) -> (B, T, D); `cache` holds the tokens before them and grows by T."""
        x = self.embed(target, 0 if cache is None else cache.length)
        return self._scaled(self.decoder(x, source.memory, memory_mask=source.mask, cache=cache))

    def grow(self, tokens: Tensor, source: Source, *, position: int, seen: Tensor, cache: StackCache) -> Tensor:
        """The states (B, N, D) of N tokens (B, N) that all stand at `position`, each at the end of another beginning.

        The cache holds the tokens of all beginnings; `seen` (B, N, S) is True at those of each one's own, itself too.
        """
        x = self.embed(tokens[..., None], position).squeeze(-2)  # (B, N, D)
        N, device = tokens.shape[-1], tokens.device
        steps = torch.arange(position + 1, device=device).repeat_interleave(N)  # of all in the cache, N a step
        places = Places(torch.full((N,), position, device=device), steps, in_order=False)
        x = self.decoder(x, source.memory, places=places, mask=seen, memory_mask=source.mask, cache=cache)
        return self._scaled(x)

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """The matrix (V, D) and the bias (V,) that make logits of states."""
        weight = self.token.weight if self.head is None else self.head.weight
        return weight, None if self.bias is None else self.bias.to(weight.dtype)

    def logits(self, states: Tensor) -> Tensor:
        """states (..., D) -> (..., V)."""
        weight, bias = self.output
        return F.linear(states, weight, None if bias is None else bias.to(states.dtype))

    def _scaled(self, states: Tensor) -> Tensor:
        return states * self.config.dim**-0.5 if self.config.head_scaled else states

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """What a stack reads of ids (..., T) that stand from `start` on: (..., T, D). InputError beyond the context."""
        x = self.token(ids)
        if self.config.scaled:
            x = x * math.sqrt(self.config.dim)
        if self.position is not None:
            x = self.position(x, start)
        elif start + ids.shape[-1] > self.config.context:
            stop = start + ids.shape[-1]
            raise InputError(f"the input has {stop} tokens; this model reads at most {self.config.context}")
        if torch.is_autocast_enabled(x.device.type):  # what runs through the layers is narrow too: no copies on the way
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return dropout(x, self.config.dropout, training=self.training)
