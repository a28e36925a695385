"""From a network's output to the clean latent: what it predicts, and how strongly it is guided.

`predict(network, config)` is the `denoised(x, level)` that every sampler walks on. `guided` is
classifier-free guidance (Ho & Salimans 2207.12598, equation 6), with the rescaling of Lin et al.
(2305.08891, section 3.4) for models that were trained to zero terminal SNR.

The network may run in any precision; the arithmetic here is float32. Left out: learned variances,
dynamic thresholding.
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
ConditionalNetwork = Callable[[Tensor, float, Condition], Tensor]
# How the two answers of guidance are computed: `together` or `in_turn`.
Both = Callable[[ConditionalNetwork, Tensor, float, Condition, Condition], tuple[Tensor, Tensor]]


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def predict(network: Network, config: NoiseConfig) -> Denoised:
    """`denoised(x, level)` of a network that predicts `config.prediction`, clamped to `config.clip`."""

    def denoised(x: Tensor, level: Level) -> Tensor:
        out = at_least_float32(network(x, level.time))
        match config.prediction:
            case "epsilon":
                clean = (x - level.sigma * out) / level.alpha
            case "v":
                clean = level.alpha * x - level.sigma * out
            case "flow":
                clean = x - level.sigma * out
            case "sample":
                clean = out
        return clean if config.clip is None else clean.clamp(-config.clip, config.clip)

    return denoised


def together(
    network: ConditionalNetwork, x: Tensor, time: float, unconditional: Condition, condition: Condition
) -> tuple[Tensor, Tensor]:
    """One call with a doubled batch: faster where there is room for it."""
    both = {name: torch.cat([unconditional[name], condition[name]]) for name in condition}
    without, given = network(torch.cat([x, x]), time, both).chunk(2)
    return without, given


def in_turn(
    network: ConditionalNetwork, x: Tensor, time: float, unconditional: Condition, condition: Condition
) -> tuple[Tensor, Tensor]:
    """Two calls: half the memory, and the two conditions may differ in length."""
    return network(x, time, unconditional), network(x, time, condition)


def guided(
    network: ConditionalNetwork,
    condition: Condition,
    unconditional: Condition,
    guidance: float,
    *,
    both: Both = together,
    rescale: float = 0.0,
) -> Network:
    """`network` bound to its condition and pushed away from `unconditional` (an empty or a negative prompt).

    At guidance 1 or below only the condition is computed. `rescale` in 0..1 pulls the contrast back to that of
    the conditional answer (0.7 in the paper). Raises InputError.
    """
    if not math.isfinite(guidance):
        raise InputError(f"guidance={guidance} is not a finite number")
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale={rescale} is not in 0..1")
    if guidance <= 1:
        return lambda x, time: network(x, time, condition)

    def answer(x: Tensor, time: float) -> Tensor:
        without, given = map(at_least_float32, both(network, x, time, unconditional, condition))
        pushed = without + guidance * (given - without)
        if rescale:
            dims = tuple(range(1, x.ndim))  # one number a picture
            factor = given.std(dims, keepdim=True) / pushed.std(dims, keepdim=True)
            pushed = torch.lerp(pushed, pushed * factor, rescale)
        return pushed

    return answer
