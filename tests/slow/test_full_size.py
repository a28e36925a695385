"""Stable Diffusion 1.5 at its full size, with random weights: the same numbers as diffusers, and a picture drawn to its
end. Gigabytes and minutes: `pytest -m slow tests/slow -s` prints the figures that docs/numbers.md quotes."""

import os
import resource
import subprocess
import sys
import time

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from qkv.models.clip import TextConfig, TextTower
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.text.tokenizer import train_tokenizer
from qkv.weights.diffusers import save_latent_diffusion
from qkv.weights.load import load_weights
from qkv.weights.tables import Table
from qkv.weights.unet import UNET, unet_table
from qkv.weights.vae import AUTOENCODER, VAE_TABLE

pytestmark = pytest.mark.slow
THREADS, TOLERANCE = 2, 1e-4


# Not the children's ru_maxrss: across exec it keeps the peak of the process that was forked, this one.
DRAW = """
import atexit, os, re
from pathlib import Path

@atexit.register
def tell():
    Path(os.environ["PEAK"]).write_text(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

from qkv.cli import main
main()
"""


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def pair(cls, ours: nn.Module, config, table: Table):
    """The reference with its own initialisation, and ours on the very same memory."""
    torch.manual_seed(0)
    theirs = cls.from_config({name: value for name, value in config.items() if not name.startswith("_")}).eval()
    load_weights(ours, table.ours(theirs.state_dict()))
    return ours.eval(), theirs


def compare(what: str, run_ours, run_theirs) -> None:
    times: list[float] = []

    def timed(run) -> Tensor:
        start = time.perf_counter()
        with torch.no_grad():
            result = run()
        times.append(time.perf_counter() - start)
        return result

    expected, got = timed(run_theirs), timed(run_ours)
    gap = float((got - expected).abs().max() / expected.abs().max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{what}: differs by {gap:.1e}; diffusers {times[0]:.1f} s, ours {times[1]:.1f} s, peak {peak:.1f} GiB")
    assert gap <= TOLERANCE


def test_unet():
    with torch.device("meta"):
        ours = UNet(UNetConfig())
    ours, theirs = pair(UNet2DConditionModel, ours, UNET.export(ours)[0], unet_table(ours.config))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 859_520_964
    latent, memory, time_ = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768), torch.tensor([601.0])
    compare("U-Net", lambda: ours(latent, time_, memory), lambda: theirs(latent, time_, memory).sample)


def test_autoencoder():
    with torch.device("meta"):
        ours = VAE(VAEConfig())
    ours, theirs = pair(AutoencoderKL, ours, AUTOENCODER.export(ours)[0], VAE_TABLE)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 83_653_863
    latent, picture = torch.randn(1, 4, 64, 64), torch.rand(1, 3, 512, 512) * 2 - 1
    compare("decoder", lambda: ours.decode(latent), lambda: theirs.decode(latent / 0.18215).sample)
    compare("encoder", lambda: ours.distribution(picture)[0], lambda: theirs.encode(picture).latent_dist.mean)


def test_a_picture_to_its_end(tmp_path):
    """`qkv draw --model FOLDER`, 2 steps at 512 x 512, in a process of its own."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a colorful photo of a castle in the middle of a forest with trees"] * 3, vocab=600)
    model = LatentDiffusion(
        name="random",
        tokenizer=tokenizer,
        text=TextTower(TextConfig(start=tokenizer.vocab - 2, end=tokenizer.vocab - 1, pad=tokenizer.vocab - 1)),
        unet=UNet(UNetConfig()),
        vae=VAE(VAEConfig()),
        noise=NoiseConfig(steps_offset=1),
    )
    save_latent_diffusion(model, tmp_path / "random", dtype=torch.float16)
    del model
    size = sum(file.stat().st_size for file in (tmp_path / "random").rglob("*.safetensors")) / 2**30

    draw = ["draw", "a castle in a forest", "--model", str(tmp_path / "random"), "--steps", "2", "--size", "512x512"]
    draw += ["--seed", "7", "--threads", str(THREADS), "-o", str(tmp_path / "castle.png")]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", DRAW, *draw], check=True, env=os.environ | {"PEAK": str(tmp_path / "peak")})
    seconds, peak = time.perf_counter() - start, int((tmp_path / "peak").read_text()) / 2**20
    print(f"\nqkv draw, 512 x 512, 2 steps, {size:.2f} GiB of weights: {seconds:.0f} s, peak {peak:.2f} GiB resident")
    with Image.open(tmp_path / "castle.png") as picture:
        assert picture.size == (512, 512)
        low, high = picture.convert("L").getextrema()
        assert low < high
    assert peak < 2 * size
