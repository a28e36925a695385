"""Latent diffusion: a text tower, a U-Net and an autoencoder that draw together.

"High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752). The parts are models of their
own; this file only says what belongs together and how the U-Net is asked. The way from a prompt to a
picture is told in tasks/draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkv.models.clip import TextTower
from qkv.models.noise import NoiseConfig
from qkv.models.unet import Reading, UNet
from qkv.models.vae import VAE
from qkv.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """Everything between a prompt and a picture; `name` is what results call it.

    `files` are the configurations that it was read from, for an export; `warnings` what they say that is not honoured,
    for every result.
    """

    name: str
    tokenizer: Tokenizer
    text: TextTower
    unet: UNet
    vae: VAE
    noise: NoiseConfig
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """How many tokens the text tower is given at once."""
        return min(self.text.config.context, self.tokenizer.context or self.text.config.context)

    @property
    def size(self) -> int:
        """The side in pixels that the U-Net was trained at."""
        return self.unet.config.sample_size * self.vae.config.factor

    @property
    def device(self) -> torch.device:
        return self.unet.enter.weight.device

    @property
    def inpainting_channels(self) -> int:
        """What a U-Net reads that was trained to inpaint: the latent, the mask, the latent of what is kept."""
        return 2 * self.vae.config.latent_channels + 1

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net reads a mask and a picture, and cannot draw without them."""
        return self.unet.config.channels == self.inpainting_channels

    def remember(self, memory: Tensor) -> Reading:
        """The U-Net's reading of a text's memory (B, S, M), for all steps."""
        return self.unet.remember(memory.to(self.unet.enter.weight))

    def predict(self, latent: Tensor, time: float, read: Reading, seen: Tensor | None = None) -> Tensor:
        """The U-Net's output, in its own precision: latent (B, C, y, x), the text as `remember` has it; where the model
        inpaints, with the mask and the latent of what is kept as `seen` (1, C + 1, y, x)."""
        parameter = self.unet.enter.weight
        if seen is not None:
            latent = torch.cat([latent, seen.expand(len(latent), -1, -1, -1)], dim=1)
        latent = latent.to(parameter.device, parameter.dtype)
        times = latent.new_full((len(latent),), time, dtype=torch.float32)  # bfloat16 would make 1000 of 999
        return self.unet(latent, times, read)
