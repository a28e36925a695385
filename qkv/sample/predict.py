"""From a network's output to the clean latent: what it predicts, and how strongly it is guided.

`predict(network, config)` is the `denoised(x, level)` that every sampler walks on. `guided` is
classifier-free guidance (Ho & Salimans 2207.12598, equation 6).

The network may run in any precision; the arithmetic here is float32. Left out: learned variances,
dynamic thresholding, rescaled guidance.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.models.noise import NoiseConfig
from qkv.sample.schedules import Level

Network = Callable[[Tensor, float], Tensor]  # (x, time) -> what it was trained to predict
Denoised = Callable[[Tensor, Level], Tensor]  # (x, level) -> the clean latent as far as can be told

Condition = Mapping[str, Tensor]  # named inputs beside the latent, batch first
ConditionalNetwork = Callable[[Condition], Network]  # what can be made of a condition once, it makes when called


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def predict(network: Network, config: NoiseConfig) -> Denoised:
    """`denoised(x, level)` of a network that predicts `config.prediction`."""

    def denoised(x: Tensor, level: Level) -> Tensor:
        out = at_least_float32(network(x, level.time))
        match config.prediction:
            case "epsilon":
                return (x - level.sigma * out) / level.alpha
            case "v":
                return level.alpha * x - level.sigma * out
            case "flow":
                return x - level.sigma * out
            case "sample":
                return out

    return denoised


def guided(network: ConditionalNetwork, condition: Condition, unconditional: Condition, guidance: float) -> Network:
    """The network under its condition, pushed away from `unconditional` (an empty or a negative prompt).

    Both answers come from one call with a doubled batch; at guidance 1 or below only the condition is computed. Raises
    InputError.
    """
    if not math.isfinite(guidance):
        raise InputError(f"guidance={guidance} is not a finite number")
    if guidance <= 1:
        return network(condition)
    both = network({name: torch.cat([unconditional[name], condition[name]]) for name in condition})

    def answer(x: Tensor, time: float) -> Tensor:
        without, given = at_least_float32(both(torch.cat([x, x]), time)).chunk(2)
        return without + guidance * (given - without)

    return answer
