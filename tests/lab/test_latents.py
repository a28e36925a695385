"""Latents are computed once, and travel packed."""

import json
from pathlib import Path

import numpy as np
import pytest

from lab.emblem import dataset
from lab.emblem.items import Item
from lab.train import latents
from qkv.errors import CheckpointError
from qkv.models.vae import VAE, VAEConfig

ITEM = {
    "style": "flat", "icon": "", "concept": "sun", "base": "sun", "name": "sun", "keywords": ["day"], "group": "nature",
    "subgroup": "", "tone": "", "gender": "", "colours": ["yellow"], "weight": 1.0,
}  # fmt: skip
SPLITS = ("train", "test", "train", "validation", "judge_style")


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VAE:
    monkeypatch.setenv("QKV_HOME", str(tmp_path))
    folder = dataset.data_folder()
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (len(SPLITS), 128, 128, 3), np.uint8)
    np.save(folder / "pictures.npy", pictures)
    lines = [json.dumps(ITEM | {"icon": str(row), "split": split}) for row, split in enumerate(SPLITS)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    words = {"tones": {"de": {"dark": "dunkel"}}, "concepts": {"sun": {"de": ["Sonne", ["Tag"], "Natur"]}}}
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "manifest.json").write_text("{}")
    return VAE(VAEConfig(latent_channels=3, dims=(8, 8, 8, 8), layers=1, groups=4, sample_size=128)).eval()


def test_packed_latents_are_the_pictures_own(vae: VAE, tmp_path: Path) -> None:
    whole = latents.of_pictures(vae, progress=False)
    assert len(list((tmp_path / "data/latents").iterdir())) == 1
    latents.pack(vae, tmp_path / "packed.npz", progress=False)
    packed = latents.unpack(tmp_path / "packed.npz")
    assert [item.icon for item in packed.items] == ["0", "2", "3"]
    assert [item.row for item in packed.items] == [0, 1, 2]
    assert packed.items[0].words["de"].name == "Sonne"
    expected = whole.latents[[0, 2, 3]].astype(np.float32)
    largest = np.abs(expected).max(axis=(0, 2, 3), keepdims=True)
    assert (np.abs(packed.latents.astype(np.float32) - expected) <= largest * (1 / 254 + 1 / 1024)).all()
    assert packed.scaling == pytest.approx(whole.scaling, rel=0.01)


def test_training_draws_tints_too_and_scales_by_the_rest() -> None:
    splits = ("train", "test", "tint", "validation")
    items = [Item(row=row, **ITEM | {"icon": str(row), "split": split}) for row, split in enumerate(splits)]  # type: ignore[arg-type]
    numbers = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float16)
    data = latents.LatentData(numbers, items)
    assert set(data.draw(64, 0).at(0)) == {0, 2}
    assert data.scaling == pytest.approx(1 / numbers[0].astype(np.float32).std())


@pytest.mark.parametrize("broken", ["missing", "no archive", "half", "other arrays", "pickle"])
def test_a_broken_file_is_said_in_one_line(vae: VAE, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "packed.npz"
    latents.pack(vae, path, progress=False)
    if broken == "missing":
        path.unlink()
    elif broken == "no archive":
        path.write_bytes(b"hello")
    elif broken == "half":
        path.write_bytes(path.read_bytes()[:1000])
    elif broken == "other arrays":
        np.savez(path, latents=np.zeros((2, 3, 4, 4), np.int8))
    else:
        np.savez(path, latents=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="holds no packed latents") as caught:
        latents.unpack(path)
    assert "\n" not in str(caught.value)
