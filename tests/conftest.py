"""A tiny pipeline folder with strong random weights: every part of Stable Diffusion at 32 x 32 pixels."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qkv.models.clip import TextConfig, TextTower
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.text.tokenizer import train_tokenizer
from qkv.weights.diffusers import save_latent_diffusion

TEXTS = [
    "a photo of an astronaut riding a horse on mars",
    "a painting of new york city in impressionist style",
    "a dog in a suit, dogs playing poker, a red cat and a blue fish",
    "穿西裝的狗, ein Hund im Anzug, un chien à l'école",
]


def strengthen(module: nn.Module, seed: int) -> None:
    """Random weights that let every layer be seen in the result."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        is_gain = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            width = parameter[0].numel()  # so that signals neither die nor explode
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.1 * noise if parameter.ndim == 1 else noise / width**0.5)


def tiny_pipeline(name: str = "tiny") -> LatentDiffusion:
    tokenizer = train_tokenizer(TEXTS * 3, vocab=600)
    end = tokenizer.vocab - 1
    text = TextConfig(vocab=tokenizer.vocab, dim=32, layers=2, heads=2, ffn_dim=64, start=end - 1, end=end, pad=end)
    unet = UNetConfig(
        dims=(16, 32),
        attention=(True, True),
        heads=(2, 2),
        layers=1,
        memory_dim=32,
        groups=8,
        linear_projection=True,
        sample_size=8,
    )
    vae = VAEConfig(dims=(8, 16, 16), layers=1, groups=4, sample_size=32, scaling=0.7)
    noise = NoiseConfig(
        prediction="v", zero_terminal_snr=True, spacing="trailing", sampler="ddim", final_alpha_one=True
    )
    model = LatentDiffusion(
        name=name, tokenizer=tokenizer, text=TextTower(text), unet=UNet(unet), vae=VAE(vae), noise=noise
    )
    for seed, part in enumerate((model.text, model.unet, model.vae)):
        strengthen(part.eval(), seed)
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, in float32."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_latent_diffusion(tiny_pipeline(), folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("QKV_HOME", str(folder))
    return folder
