"""On a CUDA device: the CPU's attention, the CPU's pictures, and training that resumes. `make gpu` runs them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkv import draw
from qkv.core.attention import attend, attention_weights
from qkv.models.unet import UNet, UNetConfig
from qkv.train.loop import FitConfig, Loss, fit
from qkv.train.optim import OptimConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_formula(dtype: torch.dtype, masked: bool, causal: bool) -> None:
    """Grouped heads, a cache's longer keys, and rows that may look nowhere, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 32, generator=generator) for heads, length in ((8, 19), (2, 37), (2, 37)))
    bias = torch.rand(2, 1, 19, 37, generator=generator) > 0.3 if masked else None
    if bias is not None:
        bias[0, :, 3] = False
    wide = [x.to(dtype).double() for x in (q, k, v)]
    values = wide[2].repeat_interleave(4, dim=1)
    expected = attention_weights(wide[0], wide[1], bias=bias, causal=causal) @ values
    found = attend(*(x.to("cuda", dtype) for x in (q, k, v)), bias=None if bias is None else bias.cuda(), causal=causal)
    error = (found.double().cpu() - expected).abs().max()
    assert error <= {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


@pytest.mark.weights
def test_the_gpu_draws_the_cpus_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is the CPU's in either place, so only the arithmetic differs."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # else float32's convolutions are half as exact

    def drawn(device: str, dtype: str) -> np.ndarray:
        (picture,) = draw("a red apple, flat style", seed=3, steps=20, device=device, dtype=dtype)
        return np.asarray(picture.image).astype(float)

    expected = drawn("cpu", "float32")
    for dtype, least in (("float32", 40), ("bfloat16", 25), ("float16", 35)):
        error = np.square(drawn("cuda", dtype) - expected).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) >= least, dtype


@pytest.mark.weights
def test_a_picture_depends_on_its_own_request_only() -> None:
    alone = draw("a castle, 3d style", seed=12, steps=4, device="cuda")[0].image
    batch = draw(["dog in a suit", "a castle, 3d style"], seed=(11, 12), steps=4, device="cuda")
    assert np.array_equal(np.asarray(alone), np.asarray(batch[1].image))


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(
            UNetConfig(
                channels=4, out_channels=4, dims=(16, 32), attention=(False, True), heads=(2, 2), layers=1,
                memory_dim=8, groups=8, sample_size=8,
            )
        )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_resumes(tmp_path: Path, optimizer: str) -> None:
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def batches(step: int) -> tuple[Tensor, Tensor]:
        return latents, torch.zeros(8, 5, 8)

    def objective(model: Noise, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        latent, memory = batch
        assert latent.device.type == "cuda"
        noise = torch.randn(latent.shape, generator=generator, device=latent.device)
        times = torch.full((8,), 500, device=latent.device)
        return Loss(F.mse_loss(model.unet(0.7 * latent + 0.7 * noise, times, memory).float(), latent))

    def run(steps: int, *, resume: bool = False) -> float:
        torch.manual_seed(0)
        optim = OptimConfig(optimizer=optimizer, lr=3e-3, warmup=1)  # type: ignore[arg-type]
        config = FitConfig(steps=steps, log_every=1, optim=optim)
        model = Noise().cuda()
        return fit(model, batches, objective, config, tmp_path, resume=resume, progress=False).loss

    first = run(1)
    assert run(60, resume=True) < 0.8 * first
