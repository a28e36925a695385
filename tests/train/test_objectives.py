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
from qkv.train.objectives import autoencoding, contrasting, denoising, distilling, sigmoid_contrasting


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


def pairs(B: int, N: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return unit(B, 8), unit(B + N, 8), torch.tensor(np.log(10.0)).float(), torch.tensor(-3.0)


@pytest.mark.parametrize("further", [0, 3])
def test_sigmoid_contrasting_is_algorithm_1(further: int) -> None:
    """2303.15343: z is 1 for a picture's own text and else -1; the sum of -log sigmoid(z logit) over the batch size."""
    pictures, texts, log_scale, bias = pairs(5, further)
    bases = np.array([0, 1, 0, 2, 3, 1, 7, 8])[: 5 + further]  # of the pictures' texts and three more
    x, y = pictures.double().numpy(), texts.double().numpy()
    total = 0.0
    for i in range(5):
        for j in range(5 + further):
            if i == j or bases[i] != bases[j]:
                z = 1 if i == j else -1
                total += np.log1p(np.exp(-z * (np.exp(log_scale.double().item()) * x[i] @ y[j] + bias.item())))
    found = sigmoid_contrasting(pictures, texts, log_scale, bias, torch.from_numpy(bases[:5, None] == bases))
    assert found.item() == pytest.approx(total / 5, rel=1e-5)


def test_sigmoid_contrasting_is_siglips_loss_where_all_pairs_differ() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 20, "max_position_embeddings": 8, "projection_size": 16, "pad_token_id": 1}
    vision = small | {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
        ids, pixels = torch.randint(2, 20, (6, 8)), torch.randn(6, 3, 8, 8)
        out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    vectors = (F.normalize(each, dim=-1) for each in (out.image_embeds, out.text_embeds))
    found = sigmoid_contrasting(*vectors, torch.tensor(1.5), torch.tensor(-2.0), torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(found, out.loss)


def test_sigmoid_contrasting_begins_low_and_overfits_one_batch() -> None:
    """At the paper's start nearly all pairs are judged right, and each picture then finds its text."""
    torch.manual_seed(0)
    pictures, texts, same = torch.randn(8, 16), torch.randn(8, 16), torch.eye(8, dtype=torch.bool)
    towers = nn.ModuleList([nn.Linear(16, 12), nn.Linear(16, 12)])
    scale, bias = nn.Parameter(torch.tensor(np.log(10.0)).float()), nn.Parameter(torch.tensor(-10.0))
    optimizer = torch.optim.AdamW([*towers.parameters(), scale, bias], lr=0.03)
    seen = []
    for _ in range(150):
        vectors = [F.normalize(tower(x), dim=-1) for tower, x in zip(towers, (pictures, texts))]
        loss = sigmoid_contrasting(*vectors, scale, bias, same)
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 5 < seen[0] < 15  # about 10 for each picture's own text, next to nothing for the others
    assert seen[-1] < 0.05
    assert (vectors[0] @ vectors[1].mT).argmax(1).tolist() == list(range(8))


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
