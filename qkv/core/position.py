"""Where a token stands: learned, sinusoidal, rotary and ALiBi positions, each as a value.

Learned and sinusoidal positions are added to the embeddings; rotary ones turn queries and keys inside
`Attention`; ALiBi is a bias on the scores. All are built once, outside the layers.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from qkv.core.attention import Rotary
from qkv.core.stack_config import RotaryScaling
from qkv.errors import InputError


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


def alibi(heads: int, T: int, S: int, *, device: torch.device | None = None) -> Tensor:
    """The bias (H, T, S): minus the slope times the distance between query and key, the last two aligned."""
    queries = torch.arange(S - T, S, device=device)[:, None]
    distance = torch.arange(S, device=device)[None, :] - queries  # (T, S), at most 0 where a causal query looks
    return alibi_slopes(heads).to(distance.device)[:, None, None] * distance
