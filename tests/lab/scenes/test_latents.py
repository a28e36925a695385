"""Latents of scenes: each beside its own facts, made once, gone on with, and of one encoder only."""

import numpy as np
import pytest
import torch

from lab.scenes import latents
from lab.train.batches import to_signed
from qkv.errors import CheckpointError, InputError
from qkv.models.vae import VAE, VAEConfig


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 6)
    monkeypatch.setattr(latents, "PART", 4)


def made(seed=0):
    torch.manual_seed(seed)
    config = VAEConfig(
        latent_channels=2, dims=(4, 4, 4, 4), layers=1, groups=2, middle_attention=False, sample_size=128
    )
    return VAE(config).eval()


def test_each_latent_lies_beside_its_facts(scenes, tmp_path):
    vae = made()
    latents.encode(vae, scenes, tmp_path, 10, progress=False)
    data = latents.load(tmp_path)
    assert len(data) == 12
    assert [data.scene(number) for number in range(12)] == [scenes.facts(number) for number in range(12)]
    found = data.at(np.array([7, 0, 11]))
    with torch.inference_mode():
        expected = vae.distribution(to_signed(np.stack([scenes.picture(n) for n in (7, 0, 11)])))[0]
    assert found.shape == (3, 2, 16, 16)
    assert np.abs(found - expected.numpy()).max() < 2e-3


def test_an_ended_run_goes_on(scenes, tmp_path):
    latents.encode(made(), scenes, tmp_path, 6, progress=False)
    first = (tmp_path / "scenes-00000.npy").stat().st_mtime_ns
    latents.encode(made(), scenes, tmp_path, 12, progress=False)
    assert (tmp_path / "scenes-00000.npy").stat().st_mtime_ns == first
    assert len(latents.load(tmp_path)) == 12


def test_another_encoder_or_seed_is_refused(scenes, tmp_path):
    latents.encode(made(), scenes, tmp_path, 6, progress=False)
    with pytest.raises(InputError, match="another encoder"):
        latents.encode(made(1), scenes, tmp_path, 6, progress=False)


def test_drawings_lie_beside_them(scenes, tmp_path, world):
    vae, pictures = made(), world.pictures[:8]
    latents.encode(vae, scenes, tmp_path, 6, progress=False)
    assert latents.load(tmp_path).drawings is None
    latents.encode_drawings(vae, pictures, tmp_path, progress=False)
    found = latents.load(tmp_path).drawings
    with torch.inference_mode():
        expected = vae.distribution(to_signed(pictures))[0]
    assert found is not None
    assert np.abs(found - expected.numpy()).max() < 2e-3
    with pytest.raises(InputError, match="another encoder"):
        latents.encode_drawings(made(1), pictures, tmp_path, progress=False)


def test_other_hands_may_paint(scenes, tmp_path):
    asked = []

    def paint(numbers):
        asked.extend(numbers)
        return [scenes.picture(number) for number in numbers]

    latents.encode(made(), scenes, tmp_path / "a", 6, paint=paint, progress=False)
    latents.encode(made(), scenes, tmp_path / "b", 6, progress=False)
    assert asked == list(range(6))
    assert np.array_equal(latents.load(tmp_path / "a").shards[0], latents.load(tmp_path / "b").shards[0])


def test_the_decoder_does_not_count():
    one, other = made(), made()
    with torch.no_grad():
        other.decoder.leave.weight.add_(1)
    assert latents.encoder_hash(one) == latents.encoder_hash(other) != latents.encoder_hash(made(1))


def test_what_is_broken_is_refused(scenes, tmp_path):
    with pytest.raises(CheckpointError, match="holds no latents"):
        latents.load(tmp_path)
    latents.encode(made(), scenes, tmp_path, 12, progress=False)
    (tmp_path / "scenes-00000.npy").unlink()
    with pytest.raises(CheckpointError, match="shards are missing"):
        latents.load(tmp_path)
