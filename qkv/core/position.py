"""Where a token stands: learned, sinusoidal, rotary, ALiBi and relative positions, each as a value.

Learned and sinusoidal positions are added to the embeddings, before a stack. Rotary ones turn queries and keys inside
`Attention`; ALiBi and T5's relative ones are a bias on the scores: a stack has one of `POSITIONS`, which makes these
values of the `Places` of a pass, once for all layers.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qkv.core.attention import Rotary
from qkv.core.stack_config import RotaryScaling, StackConfig
from qkv.errors import InputError


class Places(NamedTuple):
    """Where the tokens of a pass stand.

    `queries` (T,) and `keys` (S,) count padding too: distances are made of them. `tokens` (B, T) are the queries'
    places without the padding before them, where there is any. `in_order`: the queries are the last of the keys, one
    after the other, so that `attend`'s own causality is right.
    """

    queries: Tensor
    keys: Tensor
    tokens: Tensor | None = None
    in_order: bool = True

    @property
    def positions(self) -> Tensor:
        """Of the queries, (T,) or (B, T), as a model counts them."""
        return self.queries if self.tokens is None else self.tokens

    @property
    def distance(self) -> Tensor:
        """From each query to each key, (T, S): below 0 for what came before it."""
        return self.keys - self.queries[:, None]


def last_places(T: int, S: int, *, mask: Tensor | None = None, device: torch.device | None = None) -> Places:
    """The last T of S tokens; `mask` (B, S) is True at tokens, False at padding."""
    tokens = None if mask is None else token_positions(mask, T)
    return Places(torch.arange(S - T, S, device=device), torch.arange(S, device=device), tokens)


class LearnedPosition(nn.Module):
    """One trained vector a position (BERT, GPT, CLIP); `offset` skips rows at the front (OPT, RoBERTa)."""

    def __init__(self, context: int, dim: int, *, offset: int = 0) -> None:
        super().__init__()
        self.context, self.offset = context, offset
        self.weight = nn.Parameter(torch.empty(context + offset, dim).normal_(std=0.02))

    def forward(self, x: Tensor, start: int = 0, *, positions: Tensor | None = None) -> Tensor:
        """x (B, T, D) plus the vectors of positions start to start+T, or of `positions` (B, T)."""
        stop = start + x.shape[-2] if positions is None else int(positions.max()) + 1
        if stop > self.context:
            raise InputError(f"the input has {stop} tokens; this model reads at most {self.context}")
        if positions is not None:
            return x + self.weight[self.offset + positions]
        return x + self.weight[self.offset + start : self.offset + stop]


class SinusoidalPosition(nn.Module):
    """The fixed vectors of `sinusoidal`, sines before cosines, added as `LearnedPosition` adds its own."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (..., T, D) plus the vectors of positions start to start+T."""
        stop = start + x.shape[-2]
        if stop > self.context:
            raise InputError(f"the input has {stop} tokens; this model reads at most {self.context}")
        return x + _sinusoids(self.context, x.shape[-1], x.device)[start:stop].to(x.dtype)


@lru_cache(maxsize=8)
def _sinusoids(context: int, dim: int, device: torch.device) -> Tensor:
    return sinusoidal(torch.arange(context, device=device), dim, interleaved=False)


def token_positions(mask: Tensor, T: int) -> Tensor:
    """The positions (B, T) of the last T tokens of a padding mask (B, S), which is True at tokens: padding does not
    count, and has position 0 itself before the first token."""
    return (mask.to(torch.long).cumsum(-1) - 1).clamp_min(0)[:, -T:]


def sinusoidal(
    positions: Tensor, dim: int, *, base: float = 10_000.0, interleaved: bool = True, cos_first: bool = False
) -> Tensor:
    """1706.03762, section 3.5: positions (...) -> (..., dim) of sines and cosines.

    `interleaved` is the paper's order (sin, cos, sin, cos ...); otherwise all sines come before all cosines,
    or after them with `cos_first` (the time embedding of diffusion models). Raises InputError for an odd dim.
    """
    if dim % 2:
        raise InputError(f"dim={dim} is odd; sinusoidal positions need an even one")
    rates = torch.exp(-math.log(base) * torch.arange(dim // 2, device=positions.device) / (dim // 2))
    angles = positions[..., None].float() * rates  # (..., dim/2)
    pair = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)


def rotary(positions: Tensor, dim: int, *, base: float = 10_000.0, scaling: RotaryScaling | None = None) -> Rotary:
    """RoFormer (2104.09864), section 3.2.2: positions (...) -> (cos, sin), each (..., dim), for `Attention`."""
    rates = 1 / base ** (torch.arange(0, dim, 2, device=positions.device) / dim)
    if scaling is not None:
        rates = _stretched(rates, scaling)
    angles = positions[..., None].float() * rates
    angles = torch.cat((angles, angles), dim=-1)  # half-split order, as published checkpoints have it
    return angles.cos(), angles.sin()


def _stretched(rates: Tensor, s: RotaryScaling) -> Tensor:
    turns = s.context * rates / (2 * math.pi)  # within the context of pre-training
    kept = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
    return kept * rates + (1 - kept) * rates / s.factor


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi (2108.12409), section 3: one slope a head (H,). Where `heads` is no power of two, the gaps are filled
    with every other slope of the next one, as the paper's code and BLOOM do."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


def relative_buckets(distance: Tensor, buckets: int, farthest: int, *, causal: bool) -> Tensor:
    """T5 (1910.10683), section 2.1, as its published code computes it: distances (...) -> buckets (...).

    Half of the buckets are for the nearest distances one by one, the others for ever wider ranges up to `farthest`. All
    are for keys before the query where `causal`, else half of them for keys behind it.
    """
    behind = torch.zeros_like(distance)
    if not causal:
        buckets //= 2
        behind = (distance > 0) * buckets
    away = (-distance).clamp_min(0) if causal else distance.abs()
    near = buckets // 2
    wide = (away.clamp_min(near).float() / near).log() / math.log(farthest / near) * (buckets - near)
    return behind + torch.where(away < near, away, (near + wide.long()).clamp_max(buckets - 1))


class Position(nn.Module):
    """The positions that a stack's attention sees: none here, others in the classes below."""

    def rotary(self, places: Places) -> Rotary | None:
        """How queries and new keys turn: (cos, sin), each (T, R) or (B, 1, T, R)."""
        return None

    def bias(self, places: Places) -> Tensor | None:
        """The bias that is added to the scores, (H, T, S)."""
        return None


class RotaryPosition(Position):
    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.dim, self.base, self.scaling = config.rotary_width, config.rotary_base, config.rotary_scaling

    def rotary(self, places: Places) -> Rotary:
        positions = places.positions
        positions = positions[:, None] if positions.dim() == 2 else positions  # (B, 1, T) or (T,)
        return rotary(positions, self.dim, base=self.base, scaling=self.scaling)


class AlibiPosition(Position):
    """Minus the head's slope times the distance."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads = config.heads

    def bias(self, places: Places) -> Tensor:
        return alibi_slopes(self.heads).to(places.keys.device)[:, None, None] * places.distance


class RelativePosition(Position):
    """One trained number a head and bucket of distances, for all layers."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.farthest, self.causal = config.relative_farthest, config.causal
        self.weight = nn.Parameter(torch.empty(config.relative_buckets, config.heads).normal_(std=0.02))

    def bias(self, places: Places) -> Tensor:
        found = relative_buckets(places.distance, len(self.weight), self.farthest, causal=self.causal)
        return self.weight[found].permute(2, 0, 1)


POSITIONS: dict[str, Callable[[StackConfig], Position]] = {
    "none": lambda config: Position(),
    "rotary": RotaryPosition,
    "alibi": AlibiPosition,
    "relative": RelativePosition,
}
