"""Noise schedules: the levels of noise that a sampler walks down, from pure noise to a clean latent.

A schedule is a list of `Level(time, alpha, sigma)`: the latent there is `alpha * clean + sigma * noise`, and
the network is told `time`. The first row is where sampling starts, the last is the end, so n steps are n + 1
rows. Starting in the middle (image to image) is a slice. Everything is float64 and needs no torch.

Which training steps a short schedule visits is its spacing (Lin et al. 2305.08891, table 2):

    leading    0, k, 2k ...     never reaches the noisiest step; Stable Diffusion's habit
    trailing   ... T-1-k, T-1   always does; needed for zero terminal SNR
    linspace   0 ... T-1        both ends

Left out: exponential, beta and Lu's sigmas, and resolution-dependent shifts.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qkv.errors import InputError
from qkv.models.noise import NoiseConfig, Spacing

Array = npt.NDArray[np.float64]

# Samplers that divide by alpha start zero terminal SNR at sigma / alpha = 4096 instead of infinity (2**-24 is the
# smallest half-precision number).
LEAST_ALPHA_BAR = 2.0**-24

# A latent consistency model knows the 50 steps of the DDIM solver that it was distilled from (2310.04378).
LCM_STEPS = 50


class Level(NamedTuple):
    """One level of noise. Variance preserving: alpha² + sigma² = 1; flow: alpha + sigma = 1."""

    time: float  # what the network is told, in training steps; a fraction for some samplers
    alpha: float  # how much of the clean latent
    sigma: float  # how much noise of unit variance


CLEAN = Level(0.0, 1.0, 0.0)


def alphas_bar(config: NoiseConfig) -> Array:
    """alpha² of every training step, `(train_steps,)`, falling: the product of 1 - beta (2006.11239, section 2)."""
    count = config.train_steps
    if config.beta_schedule == "cosine":
        curve = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, count) ** 2
    else:
        betas = np.linspace(config.beta_start, config.beta_end, count)
    bar = np.cumprod(1 - betas)
    if config.zero_terminal_snr:  # 2305.08891, algorithm 1: the last becomes 0, the first stays
        alphas = np.sqrt(bar)
        bar = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    return bar


def grid(config: NoiseConfig, steps: int, *, clean: bool = False) -> list[Level]:
    """DDIM's and PNDM's schedule: whole training steps; the end is clean or step 0, and `clean` where the model does
    not say which."""
    bar = alphas_bar(config)
    clean = clean if config.final_alpha_one is None else config.final_alpha_one
    end = CLEAN if clean else Level(0.0, bar[0] ** 0.5, (1 - bar[0]) ** 0.5)
    return [*_on_grid(bar, _times(config, steps, config.spacing or "leading")), end]


def ancestral(config: NoiseConfig, steps: int) -> list[Level]:
    """DDPM's schedule: whole training steps, then clean."""
    return [*_on_grid(alphas_bar(config), _times(config, steps, config.spacing or "leading")), CLEAN]


def continuous(config: NoiseConfig, steps: int) -> list[Level]:
    """The schedule of Euler and Heun: times may be fractions, and sigma / alpha is interpolated between them."""
    ratios = _ratios(config)
    times = _times(config, steps, config.spacing or "linspace", whole=False)
    visited = np.interp(times, np.arange(len(ratios)), ratios)
    if config.karras:
        visited = _karras(visited[0], visited[-1], steps)
        times = _times_of(visited, ratios)
    return [*_of_ratios(times, visited), CLEAN]


def solver(config: NoiseConfig, steps: int) -> list[Level]:
    """The schedule of DPM-Solver++ and UniPC: the clean end counts as one of the points that are spaced."""
    ratios = _ratios(config)
    if config.karras:  # over the whole range of training, whatever the spacing
        visited = _karras(ratios[-1], ratios[0], steps)
        times = np.round(_times_of(visited, ratios))
    else:
        spacing = config.spacing or "linspace"
        times = _times(config, steps, spacing) if spacing == "trailing" else _times(config, steps + 1, spacing)[:-1]
        visited = ratios[times.astype(int)]
    return [*_of_ratios(times, visited), CLEAN]


def consistency(config: NoiseConfig, steps: int) -> list[Level]:
    """LCM's schedule: steps spread over the 50 that the model was distilled on, the noisiest first."""
    if steps > LCM_STEPS:
        raise InputError(
            f"steps={steps} is more than the {LCM_STEPS} that a latent consistency model knows; use 1 to 8"
        )
    if config.train_steps < LCM_STEPS:
        raise InputError(f"a model of {config.train_steps} training steps is no latent consistency model; use ddim")
    distilled = np.arange(LCM_STEPS, 0, -1) * (config.train_steps // LCM_STEPS) - 1
    chosen = np.floor(np.linspace(0, LCM_STEPS, steps, endpoint=False)).astype(int)
    return [*_on_grid(alphas_bar(config), distilled[chosen].astype(np.float64)), CLEAN]


def flow(config: NoiseConfig, steps: int) -> list[Level]:
    """Rectified flow's schedule: sigma falls from 1, alpha = 1 - sigma, time = train_steps * sigma."""

    def shifted(sigma: Array | float) -> Array:
        return np.asarray(config.shift * sigma / (1 + (config.shift - 1) * sigma))

    # Published models are sampled with the least sigma of training shifted twice, once here and once below.
    sigmas = shifted(np.linspace(1.0, float(shifted(1 / config.train_steps)), steps))
    return [*(Level(float(config.train_steps * s), float(1 - s), float(s)) for s in sigmas), CLEAN]


def _times(config: NoiseConfig, points: int, spacing: Spacing, *, whole: bool = True) -> Array:
    """`points` training steps, the noisiest first; linspace gives fractions unless `whole`."""
    count = config.train_steps
    if spacing == "leading":
        times = np.arange(points, dtype=np.float64)[::-1] * (count // points) + config.steps_offset
    elif spacing == "trailing":
        # Rounding may carry numpy's arange one point too far: that would be step -1.
        times = np.round(np.arange(count, 0, -count / points, dtype=np.float64)[:points]) - 1
    else:
        times = np.linspace(0, count - 1, points, dtype=np.float64)[::-1]
        times = np.round(times) if whole else times
    if points > count or times[0] > count - 1:
        raise InputError(f"{spacing} spacing cannot put {points} points on {count} training steps; ask for fewer steps")
    return times


def _ratios(config: NoiseConfig) -> Array:
    """sigma / alpha of every training step, rising; what k-diffusion calls sigma."""
    bar = alphas_bar(config)
    if config.zero_terminal_snr:
        bar[-1] = min(LEAST_ALPHA_BAR, bar[-2] / 2)
    return np.sqrt((1 - bar) / bar)


def _karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> Array:
    """2206.00364, equation 5."""
    ramp = np.linspace(0, 1, steps)
    return np.asarray((highest ** (1 / rho) + ramp * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho)


def _times_of(visited: Array, ratios: Array) -> Array:
    """The fractional training steps at which sigma / alpha is `visited`."""
    return np.interp(np.log(visited), np.log(ratios), np.arange(len(ratios)))


def _on_grid(bar: Array, times: Array) -> list[Level]:
    return [Level(float(t), float(bar[int(t)] ** 0.5), float((1 - bar[int(t)]) ** 0.5)) for t in times]


def _of_ratios(times: Array, ratios: Array) -> list[Level]:
    alphas = 1 / np.sqrt(1 + ratios**2)
    return [Level(float(t), float(a), float(a * r)) for t, a, r in zip(times, alphas, ratios)]
