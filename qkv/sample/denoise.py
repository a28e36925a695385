"""Diffusion samplers: from noise to a latent, every one a generator over `denoised(x, level) -> clean latent`.

All of them take the same step, DDIM's (Song et al. 2010.02502, equation 12): split x into a clean part and
noise, and mix these anew at the next level. They differ in which clean part they aim at, and in the schedule:

    ddim             the network's guess                                         2010.02502
    ddpm             ddim with fresh noise, eta = 1                              2006.11239
    euler            ddim over sigmas: Euler's method, after a change of scale   2206.00364
    euler_ancestral  the same with eta = 1                                       k-diffusion
    flow_euler       the same on a straight line from noise to picture           2210.02747
    heun             a guess averaged over both ends of the step                 2206.00364, algorithm 1
    dpmpp_2m         a guess extrapolated from the last two                      2211.01095, algorithm 2
    unipc            dpmpp_2m, and the step before corrected for free            2302.04867, order 2
    pndm             noise extrapolated from the last four                       2202.09778, without Runge-Kutta
    lcm              the guess of a distilled model, noised again                2310.04378

The latent is kept in float32 and at the model's own scale whatever the sampler, so every step can be previewed.
Left out: the solvers of order 3 and the SDE variants.

Equal to diffusers, step by step, but for three things. Its DDIM and PNDM land `train_steps // steps` below where
they were, which is not where their next step begins if the spacing is uneven (linspace; trailing with 30 steps);
here a step always lands on the next row. Its PNDM extrapolates a v network's v, which means something else at every
level; here, as in the paper, the noise. Its DDIM takes the noise from before the guess was clipped; here from after.

A walk may begin at the latent of a picture, noised to a row in the middle (SDEdit, 2108.01073), and keep that picture
around what a mask lets be drawn (2206.02779). This equals diffusers, too, but for PNDM: there its first step, which is
two calls, is cut in the middle.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from qkv.errors import InputError, NotFoundError, unknown
from qkv.models.noise import NoiseConfig, Prediction, SamplerName
from qkv.sample import schedules
from qkv.sample.predict import Denoised, at_least_float32
from qkv.sample.schedules import CLEAN, Level

Noise = Callable[[], Tensor]  # the next standard normal latent; the caller owns its generators


class Step(NamedTuple):
    """The state of a sampler after a step; the last one holds the result."""

    number: int  # from 1 to steps
    level: Level  # where the latent is now
    latent: Tensor  # (B, C, Y, X), float32 at least


class Keep(NamedTuple):
    """What stays of a picture: its clean latent (B, C, Y, X), under the walk's first noise, but where `mask`
    (B, 1, Y, X) is True."""

    clean: Tensor
    mask: Tensor
    noise: Tensor

    def at(self, level: Level, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, noised(self.clean, self.noise, level))


Run = Callable[[Denoised, Tensor, Sequence[Level], Noise], Iterator[Step]]


class Sampler(NamedTuple):
    """A row of SAMPLERS."""

    run: Run
    schedule: Callable[[NoiseConfig, int], list[Level]]
    predictions: tuple[Prediction, ...] = ("epsilon", "v", "sample")
    scaled_start: bool = False  # begins at sigma * noise
    zero_terminal_snr: bool = True  # can begin where alpha is 0
    clips: bool = False  # clamps every guess to the model's `clip`, if it has one


def noised(clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    return level.alpha * clean + level.sigma * noise


def move(x: Tensor, clean: Tensor, here: Level, there: Level) -> Tensor:
    """x from one level to another: `there.alpha * clean + there.sigma * noise`, noise being the rest of x."""
    kept = there.sigma / here.sigma
    return kept * x + (there.alpha - kept * here.alpha) * clean


def ddim(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 0.0) -> Iterator[Step]:
    """`eta` is the share of the noise that is fresh in every step: 0 none, 1 as in DDPM (equation 16)."""
    for number, (here, there) in enumerate(pairwise(levels), 1):
        fresh = eta * there.sigma / here.sigma * math.sqrt(max(0.0, 1 - (here.alpha / there.alpha) ** 2))
        kept = math.sqrt(max(0.0, there.sigma**2 - fresh**2))
        x = move(x, denoised(x, here), here, there._replace(sigma=kept))
        if fresh:
            x = x + fresh * noise()
        yield Step(number, there, x)


def heun(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """The mean of the slopes at both ends, which is Euler's step towards a mix of both guesses."""
    for number, (here, there) in enumerate(pairwise(levels), 1):
        clean = denoised(x, here)
        if there.sigma:  # at the clean end there is no slope
            ahead = denoised(move(x, clean, here, there), there)
            ratio = (here.sigma / here.alpha) / (there.sigma / there.alpha)
            clean = torch.lerp(clean, ahead, ratio / 2)
        x = move(x, clean, here, there)
        yield Step(number, there, x)


Guess = tuple[Level, Tensor]  # where the network was asked, and the clean latent that it saw


def dpmpp_2m(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ of order 2, multistep: one call a step, as the guess before this one tells where it is heading."""
    guesses: list[Guess] = []
    for number, (here, there) in enumerate(pairwise(levels), 1):
        guesses = [*guesses[-1:], (here, denoised(x, here))]
        x = move(x, _extrapolated(guesses, there), here, there)
        yield Step(number, there, x)


def unipc(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """The call at a step's end also corrects the step that led there (UniC), then predicts the next (UniP)."""
    guesses: list[Guess] = []
    start = x
    for number, (here, there) in enumerate(pairwise(levels), 1):
        guess = (here, denoised(x, here))
        if guesses:
            x = move(start, _corrected(guesses, guess), guesses[-1][0], here)
        start = x
        guesses = [*guesses[-1:], guess]
        x = move(x, _extrapolated(guesses, there), here, there)
        yield Step(number, there, x)


def _extrapolated(guesses: Sequence[Guess], there: Level) -> Tensor:
    """The guess in the middle of the step to `there`, on the line through the last two (2211.01095, algorithm 2)."""
    here, clean = guesses[-1]
    if len(guesses) < 2 or not there.sigma:  # the way to the clean end is infinitely long in log SNR
        return clean
    before, clean_before = guesses[-2]
    stride = (_log_snr(there) - _log_snr(here)) / (_log_snr(here) - _log_snr(before))
    return clean + stride / 2 * (clean - clean_before)


def _corrected(guesses: Sequence[Guess], end: Guess) -> Tensor:
    """The clean latent that the step from `guesses[-1]` to `end` should have aimed at (2302.04867, B(h) = e^h - 1)."""
    (start, clean), (level, clean_end) = guesses[-1], end
    if len(guesses) < 2:
        return torch.lerp(clean, clean_end, 0.5)
    before, clean_before = guesses[-2]
    h = _log_snr(start) - _log_snr(level)  # negative, as the clean latent is predicted and not the noise
    r = (_log_snr(start) - _log_snr(before)) / h
    b1 = 1 / h - 1 / math.expm1(h)
    b2 = 2 * b1 / h - 1 / math.expm1(h)
    rho1 = (b1 - b2) / (1 - r)
    rho2 = b1 - rho1
    return clean + rho1 / r * (clean_before - clean) + rho2 * (clean_end - clean)


def _log_snr(level: Level) -> float:
    """lambda of the papers: half the logarithm of the signal-to-noise ratio."""
    return math.log(level.alpha / level.sigma)


# Adams-Bashforth: the weights of the last noises, newest first.
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Its first step, with nothing to extrapolate from, asks the network at both ends and takes the mean."""

    def split(x: Tensor, level: Level) -> Tensor:  # the noise in x
        return (x - level.alpha * denoised(x, level)) / level.sigma

    def follow(epsilon: Tensor, here: Level, there: Level) -> Tensor:
        return move(x, (x - here.sigma * epsilon) / here.alpha, here, there)

    newest_first: list[Tensor] = []
    for number, (here, there) in enumerate(pairwise(levels), 1):
        newest_first = [split(x, here), *newest_first[:3]]
        epsilon = sum((w * e for w, e in zip(_ADAMS[len(newest_first) - 1], newest_first)), torch.zeros_like(x))
        if number == 1 and len(levels) > 2:
            epsilon = (epsilon + split(follow(epsilon, here, there), there)) / 2
        x = follow(epsilon, here, there)
        yield Step(number, there, x)


def lcm(denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """The weights make the model the identity at time 0, as it was distilled (section 4.1)."""
    for number, (here, there) in enumerate(pairwise(levels), 1):
        time, spread = 10.0 * here.time, 0.5
        skip, out = spread**2 / (time**2 + spread**2), time / math.hypot(time, spread)
        x = out * denoised(x, here) + skip * x
        if there.sigma:
            x = there.alpha * x + there.sigma * noise()
        yield Step(number, there, x)


def _karras(config: NoiseConfig, steps: int) -> list[Level]:
    return schedules.solver(replace(config, karras=True), steps)


def _not_karras(config: NoiseConfig, steps: int) -> list[Level]:
    return schedules.continuous(replace(config, karras=False), steps)


_fresh = partial(ddim, eta=1.0)

SAMPLERS: dict[SamplerName, Sampler] = {
    "ddpm": Sampler(_fresh, schedules.ancestral, clips=True),
    "ddim": Sampler(ddim, partial(schedules.grid, clean=True), clips=True),
    "pndm": Sampler(pndm, schedules.grid, zero_terminal_snr=False),
    "euler": Sampler(ddim, schedules.continuous, scaled_start=True),
    "euler_ancestral": Sampler(_fresh, _not_karras, scaled_start=True),
    "heun": Sampler(heun, schedules.continuous, scaled_start=True, clips=True),
    "dpmpp_2m": Sampler(dpmpp_2m, schedules.solver),
    "dpmpp_2m_karras": Sampler(dpmpp_2m, _karras),
    "unipc": Sampler(unipc, schedules.solver),
    "lcm": Sampler(lcm, schedules.consistency, clips=True),
    "flow_euler": Sampler(ddim, schedules.flow, predictions=("flow",)),
}


def find(sampler: str) -> Sampler:
    """The row of that name; NotFoundError names the others."""
    for name, row in SAMPLERS.items():
        if name == sampler:
            return row
    raise NotFoundError(unknown("sampler", sampler, SAMPLERS))


def _fits(row: Sampler, config: NoiseConfig) -> bool:
    return config.prediction in row.predictions and (row.zero_terminal_snr or not config.zero_terminal_snr)


def levels(config: NoiseConfig, sampler: str, steps: int) -> list[Level]:
    """The schedule that `sampler` walks: steps + 1 rows. Raises NotFoundError, InputError."""
    row = find(sampler)
    if not 1 <= steps <= config.train_steps:
        raise InputError(f"steps={steps} is not in 1..{config.train_steps}")
    if config.prediction not in row.predictions:
        fitting = ", ".join(name for name, other in SAMPLERS.items() if _fits(other, config))
        raise InputError(
            f"sampler {sampler} does not work with a model that predicts {config.prediction}; use {fitting}"
        )
    if config.zero_terminal_snr and not row.zero_terminal_snr:
        raise InputError(f"sampler {sampler} cannot start from zero terminal SNR; use ddim")
    return row.schedule(config, steps)


def first_row(steps: int, strength: float) -> int:
    """The row where a picture's latent is noised: so that `strength` of the steps are left, rounded down. InputError
    where none is."""
    if not (left := min(int(steps * strength), steps)):
        raise InputError(f"strength={strength:g} of {steps} steps is not one step; ask for more of either")
    return steps - left


def sample(
    denoised: Denoised,
    x: Tensor,
    config: NoiseConfig,
    sampler: str,
    steps: int,
    *,
    noise: Noise,
    eta: float = 0.0,
    start: tuple[Tensor, int] | None = None,
    keep: Keep | None = None,
) -> Iterator[Step]:
    """The steps from noise to a latent; the last one's `latent` is the result.

    `x` is standard normal noise (B, C, Y, X); `noise()` gives more of it to the samplers that are stochastic (and to
    ddim where eta is above 0). `start` is a clean latent and the row to begin at with it, noised by `x`; `keep` what
    stays of a picture. Everything is checked before this returns. Raises NotFoundError, InputError.
    """
    rows = levels(config, sampler, steps)
    row = find(sampler)
    run = row.run
    if eta:
        if sampler != "ddim" or not 0 <= eta <= 1:
            raise InputError(f"eta={eta} with sampler {sampler}: only ddim takes eta, from 0 to 1")
        run = partial(ddim, eta=eta)
    x = at_least_float32(x)
    if start is not None:
        clean, first = start
        rows = rows[first:]
        x = noised(clean, x, rows[0])
    elif row.scaled_start and config.spacing != "leading":
        # k-diffusion's samplers begin at alpha * 0 + sigma * noise; the others keep the variance 1 that a noisy latent
        # has. Their first row is not the noisiest with the leading spacing, and diffusers keeps it there as well.
        x = rows[0].sigma * x
    denoised = _clipped(denoised, config.clip if row.clips else None)
    return run(denoised, x, rows, noise) if keep is None else _keeping(keep, run, denoised, x, rows, noise)


def _keeping(
    keep: Keep, run: Run, denoised: Denoised, x: Tensor, levels: Sequence[Level], noise: Noise
) -> Iterator[Step]:
    """The walk of a network that sees the kept picture around what it draws. Samplers mix no pixel with another, so
    what they make of the rest does not matter."""

    def around(x: Tensor, level: Level) -> Tensor:
        return denoised(x if level == levels[0] else keep.at(level, x), level)

    for step in run(around, x, levels, noise):
        level = step.level if step.number < len(levels) - 1 else CLEAN
        yield step._replace(latent=keep.at(level, step.latent))


def _clipped(denoised: Denoised, bound: float | None) -> Denoised:
    return denoised if bound is None else lambda x, level: denoised(x, level).clamp(-bound, bound)
