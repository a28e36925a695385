"""The decoder: tokens so far -> logits of the next. GPT, BLOOM, the Llama line and their kin are this one class.

"Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3, and what came later as values of
`DecoderConfig`; which published family is which configuration stands in `weights`. Dropout is left out on purpose,
and mixtures of experts, which no checkpoint of a size for this machine needs.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from qkv.core.cache import Cache, StackCache
from qkv.core.norm import NORMS
from qkv.core.position import LearnedPosition, last_places
from qkv.core.stack import Stack
from qkv.errors import InputError
from qkv.models.decoder_config import DecoderConfig


class Decoder(nn.Module):
    """Tokens (B, T) -> logits (B, T, V). New ones are initialised as GPT-2: std 0.02, and what is added to the
    residual stream smaller by the root of the number of such additions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_width
        self.token = nn.Embedding(config.vocab, width)
        self.position = (
            LearnedPosition(config.context, config.dim, offset=config.position_offset)
            if config.position == "learned"
            else None
        )
        self.widen = None if config.embed_dim is None else nn.Linear(width, config.dim, bias=False)
        self.norm = NORMS[config.norm](config.dim, eps=config.norm_eps) if config.embed_norm else None
        self.stack = Stack(config.stack)
        self.narrow = None if config.embed_dim is None else nn.Linear(config.dim, width, bias=False)
        self.head = None if config.tied else nn.Linear(width, config.vocab, bias=config.head_bias)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith((".attention.out.weight", ".ffn.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers))
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None, cache: StackCache | None = None) -> Tensor:
        """The logits (B, T, V) after each of ids (B, T).

        `cache` holds the S - T tokens before them and grows by T. `mask` (B, S) is False at padding, which stands at
        the left: positions count tokens only. InputError if S is more than the context.
        """
        return self.logits(self.states(ids, mask=mask, cache=cache))

    def states(self, ids: Tensor, *, mask: Tensor | None = None, cache: StackCache | None = None) -> Tensor:
        """What `forward` computes but for the head: (B, T, D), so that only rows that are wanted go through it."""
        T, seen = ids.shape[-1], cache.length if cache is not None else 0
        if seen + T > self.config.context:
            raise InputError(f"the input has {seen + T} tokens; this model reads at most {self.config.context}")
        places = last_places(T, seen + T, mask=mask, device=ids.device)
        return self.stack(self.embed(ids, places.positions), places=places, mask=mask, cache=cache)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """What the stack reads of ids (B, T) that stand at `positions` (T,) or (B, T): (B, T, D)."""
        x = self.token(ids)  # (B, T, E)
        if self.config.scaled:
            x = x * x.new_tensor(math.sqrt(self.config.dim))  # rounded as the embeddings are
        if self.widen is not None:
            x = self.widen(x)  # (B, T, D)
        if self.position is not None:
            x = self.position(x, positions=positions)
        return x if self.norm is None else self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """states (..., D) -> (..., V)."""
        if self.narrow is not None:
            states = self.narrow(states)  # (..., E)
        logits = F.linear(states, self.token.weight) if self.head is None else self.head(states)
        cap = self.config.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    def new_cache(self, context: int | None = None) -> Cache:
        """A cache for up to `context` tokens (default: all that the model reads), laid out at its first use."""
        return Cache(self.config.layers, self.config.context if context is None else context)
