"""How a diffusion model was noised in training, and how its authors sample from it.

Every noisy latent is `alpha * clean + sigma * noise`. `NoiseConfig` holds what fixes alpha and sigma for
each training step (the betas: Ho et al. 2006.11239, section 4; cosine: Nichol & Dhariwal 2102.09672,
equation 17), what the network predicts (epsilon; v: Salimans & Ho 2202.00512; flow: Lipman et al.
2210.02747) and the published sampling defaults; `weights/scheduler` reads them from a published file. The
numbers themselves are computed in `sample/schedules`.

Left out: learned variances, dynamic thresholding, hand-made betas, third-order solvers and PNDM's
Runge-Kutta start.
"""

import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from qkv.errors import ConfigError, unknown

MAX_TRAIN_STEPS = 100_000

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
Prediction = Literal["epsilon", "v", "sample", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]
SamplerName = Literal[
    "ddpm",
    "ddim",
    "pndm",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "unipc",
    "lcm",
    "flow_euler",
]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The defaults are Stable Diffusion 1's. Raises ConfigError."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"  # linear in sqrt(beta)
    zero_terminal_snr: bool = False  # rescaled so that the last training step is pure noise (2305.08891)
    prediction: Prediction = "epsilon"
    sampler: SamplerName | None = "pndm"  # the authors' choice; a request may name another
    refused: str = ""  # why the authors' choice cannot be followed, where `sampler` is None
    spacing: Spacing | None = None  # which training steps a short schedule visits; None: the sampler's habit
    steps_offset: int = 0  # added to every step of the leading spacing
    final_alpha_one: bool | None = None  # ddim ends at clean (True), pndm at training step 0 (False); None: so
    karras: bool = False  # the sigmas of 2206.00364, equation 5, for samplers that walk over sigmas
    clip: float | None = None  # every clean guess is clamped to [-clip, clip]; pixel models only
    shift: float = 1.0  # flow: above 1 spends more steps at high noise (2403.03206, equation 23)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, str(getattr(self, name)), [str(choice) for choice in known]))
        if not 2 <= self.train_steps <= MAX_TRAIN_STEPS:
            raise ConfigError(f"train_steps={self.train_steps} is out of range; it must be 2 to {MAX_TRAIN_STEPS}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < start <= end < 1")
        if not 0 <= self.steps_offset < self.train_steps:
            raise ConfigError(f"steps_offset={self.steps_offset} is not in 0..{self.train_steps - 1}")
        if not 0 < self.shift < math.inf:
            raise ConfigError(f"shift={self.shift} is out of range; it must be above 0 and finite")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip} is not above 0; leave it out for no clipping")
        if self.sampler and (self.prediction == "flow") != (self.sampler == "flow_euler"):
            raise ConfigError(
                f"sampler={self.sampler} does not fit prediction={self.prediction}; flow needs flow_euler"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            # x is nothing but the noise there: naming the noise says nothing about the picture.
            raise ConfigError("prediction=epsilon cannot start from zero_terminal_snr; such models predict v")


_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": typing.get_args(BetaSchedule),
    "prediction": typing.get_args(Prediction),
    "spacing": (None, *typing.get_args(Spacing)),
    "sampler": (None, *typing.get_args(SamplerName)),
}
