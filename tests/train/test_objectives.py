"""Each objective overfits one batch, and says what its formula says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.sample.schedules import alphas_bar
from qkv.train.objectives import autoencoding, contrasting, denoising, distilling


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_autoencoding_overfits_one_batch() -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(dims=(16, 32), layers=1, groups=4, latent_channels=4))
    pictures = torch.zeros(2, 3, 16, 16) - 1
    pictures[0, 0, 4:12, 4:12], pictures[1, 2, :8] = 1, 1
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    losses = []
    for step in range(80):
        loss = autoencoding(vae, pictures, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        losses.append(loss.value.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoising_overfits_one_batch(prediction: str) -> None:
    torch.manual_seed(0)
    config = NoiseConfig(prediction=prediction)  # type: ignore[arg-type]
    unet = UNet(UNetConfig(dims=(16, 32), attention=(False, True), heads=(2, 2), layers=1, memory_dim=8, groups=4))
    latent, memory = torch.randn(1, 4, 8, 8).expand(8, -1, -1, -1), torch.randn(8, 3, 8)
    bar = torch.from_numpy(np.asarray(alphas_bar(config)))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)

    def loss(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return denoising(lambda x, time: unet(x, time, memory), latent, bar, config.prediction, generator)

    first = float(loss(0).detach())
    for step in range(120):
        optimizer.zero_grad()
        loss(step % 4).backward()
        optimizer.step()
    assert float(loss(0).detach()) < 0.35 * first


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoising_is_zero_for_a_network_that_knows(prediction: str) -> None:
    """The clean latent is known, so what was added can be told: a wrong alpha, sigma or target would show."""
    config = NoiseConfig(prediction=prediction)  # type: ignore[arg-type]
    bar = torch.from_numpy(np.asarray(alphas_bar(config)))
    latent = torch.randn(16, 4, 2, 2, dtype=torch.float64)

    def knows(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (part[:, None, None, None] for part in (bar[time].sqrt(), (1 - bar[time]).sqrt()))
        noise = (noisy - alpha * latent) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * latent

    assert float(denoising(knows, latent, bar, config.prediction, torch.Generator().manual_seed(0))) < 1e-6


def test_denoising_spreads_its_times() -> None:
    seen = []

    def network(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append(time)
        return noisy

    bar = torch.linspace(0.99, 0.01, 1000)
    denoising(network, torch.zeros(10, 1, 2, 2), bar, "epsilon", torch.Generator().manual_seed(0))
    assert (seen[0] // 100).tolist() == list(range(10))


def test_contrasting_is_clips_loss_where_all_pairs_differ() -> None:
    transformers = pytest.importorskip("transformers")
    clip = transformers.models.clip.modeling_clip
    pictures, texts, log_scale = unit(6, 8), unit(6, 8), torch.tensor(2.0)
    expected = clip.image_text_contrastive_loss(log_scale.exp() * texts @ pictures.mT)
    same = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(contrasting(pictures, texts, log_scale, same), expected)


def test_contrasting_does_not_hold_one_concept_against_itself() -> None:
    pictures = unit(4, 8)
    pictures[1] = pictures[0]  # two drawings of one thing
    same = torch.eye(4, dtype=torch.bool)
    blamed = contrasting(pictures, pictures, torch.tensor(4.0), same)
    same[0, 1] = same[1, 0] = True
    assert contrasting(pictures, pictures, torch.tensor(4.0), same) < 0.7 * blamed


def test_contrasting_counts_further_texts_as_wrong_answers() -> None:
    bases = np.array([0, 1, 0, 2, 1, 5])  # of four pictures' texts and two more
    pictures, texts, log_scale = unit(4, 8), unit(6, 8), torch.tensor(2.0)
    table = (log_scale.exp() * pictures @ texts.mT).double().numpy()
    terms = []
    for i in range(4):
        asked = [j for j in range(6) if j == i or bases[j] != bases[i]]  # texts about picture i, pictures about text i
        terms.append(np.log(np.exp(table[i, asked]).sum()) - table[i, i])
        terms.append(np.log(np.exp(table[[j for j in asked if j < 4], i]).sum()) - table[i, i])
    found = contrasting(pictures, texts, log_scale, torch.from_numpy(bases[:4, None] == bases))
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_distilling_overfits_one_batch() -> None:
    torch.manual_seed(0)
    head, inputs, teachers = nn.Linear(16, 8), torch.randn(12, 16), unit(12, 8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        distilling(head(inputs), teachers).backward()
        optimizer.step()
    cosines = (F.normalize(head(inputs), dim=-1) * teachers).sum(-1)
    assert float(cosines.detach().min()) > 0.9
