"""The autoencoder's recipe: what it sees, how it is measured, and a run of a few steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.emblem.dataset import EmblemData
from lab.scenes import autoencoder
from lab.scenes.autoencoder import Batches, psnr
from lab.train.batches import Draw
from qkv.config import build
from qkv.train import recipes
from qkv.weights.folder import Folder
from qkv.weights.vae import load_vae

RECIPE = Path(__file__).parents[3] / "recipes" / "scenes-autoencoder.toml"
TINY = ["model.dims=[8, 8, 8, 8]", "model.groups=4", "model.latent_channels=2", "batch=4", "crop=32", "fit.steps=3"]


def batches(scene, singles=1, crop=64):
    drawings = np.full((5, 128, 128, 3), 255, np.uint8)
    drawings[:, :, :64] = 0
    return Batches(scene, drawings, Draw.of(list(range(5)), [1.0] * 5, 4, 0), singles, crop)


def test_a_batch_is_mixed_and_a_function_of_its_step(scenes):
    made = batches(scenes.picture)
    pictures = made(3)
    assert pictures.shape == (4, 3, 64, 64)
    assert pictures.abs().max() <= 1
    assert torch.equal(pictures, made(3))
    assert not torch.equal(pictures, made(4))


def test_no_scene_comes_twice():
    seen = []

    def scene(number):
        seen.append(number)
        return np.zeros((128, 128, 3), np.uint8)

    for step in range(5):
        batches(scene)(step)
    assert seen == list(range(15))


def test_single_drawings_are_mirrored_half_of_the_time():
    made = batches(lambda number: np.zeros((128, 128, 3), np.uint8), singles=4, crop=128)
    left = [float(picture[0, 0, 0]) for step in range(40) for picture in made(step)]
    assert 0.35 < np.mean([value > 0 for value in left]) < 0.65


def test_psnr_against_its_definition():
    pictures = torch.rand(3, 3, 8, 8) * 2 - 1
    assert psnr(pictures, pictures).min() > 90
    off = (pictures + 0.2).clone()  # 0.1 of pictures in [0, 1]
    assert psnr(off, pictures) == pytest.approx([20.0] * 3, abs=1e-3)


@pytest.fixture
def small(scenes, world, monkeypatch):
    """Two dozen drawings and scenes of shapes in place of the data."""
    items = [replace(item, row=i, split="train" if i % 3 else "validation") for i, item in enumerate(world.items[:24])]
    data = EmblemData(pictures=world.pictures[:24], items=items)
    monkeypatch.setattr(autoencoder.dataset, "load", lambda: data)
    monkeypatch.setattr(autoencoder, "load", lambda seed, painted=True: replace(scenes, seed=seed, painted=painted))
    monkeypatch.setattr(autoencoder, "LOOKED_AT", 4)


def run(folder, *changes, resume=False):
    return recipes.run(RECIPE, [*TINY, *changes], folder=folder, resume=resume, progress=False)


def test_the_recipe_trains_resumes_and_is_measured(small, tmp_path):
    whole = run(tmp_path / "whole", "fit.sample_every=3", "fit.save_every=2")
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"psnr_scenes", "psnr_drawings", "latent_std"} <= set(records[-1])
    assert list((tmp_path / "whole" / "samples").glob("*.png"))

    run(tmp_path / "cut", "fit.minutes=0.00001")
    again = run(tmp_path / "cut", resume=True)
    assert again.steps == whole.steps == 3
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name

    vae = load_vae(Folder(tmp_path / "whole" / "model")).float().eval()
    numbers, sheet = autoencoder.measure(vae, 4)
    assert set(numbers) == {"psnr_scenes", "psnr_scenes_worst", "psnr_drawings", "psnr_drawings_worst"}
    assert sheet.width > 128


def test_what_is_measured_is_not_what_is_trained_on(small, scenes):
    held = autoencoder.held_out(4)
    assert {name: len(pictures) for name, pictures in held.items()} == {"scenes": 4, "drawings": 4}
    assert build(autoencoder.Recipe, {"fit": {"steps": 1}}).fit.seed != autoencoder.HELD_SEED
