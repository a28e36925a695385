"""The upscaler's recipe: exact pairs, what is seen of them, how it is measured, and a run of a few steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.emblem.dataset import EmblemData
from lab.scenes import upscaler
from lab.scenes.upscaler import Batches, Recipe, single, small, soften, to_unit
from qkv.config import build
from qkv.models.upscaler import Compact, CompactConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.train import recipes
from qkv.weights.diffusers import save_component
from qkv.weights.upscaler import load_upscaler
from qkv.weights.vae import AUTOENCODER

RECIPE = Path(__file__).parents[3] / "recipes" / "scenes-upscaler.toml"
TINY = ["model.dim=8", "model.layers=1", "pictures=2", "crops=2", "crop=16", "fit.steps=3"]


def batches(scenes, vae=None, **changes):
    drawings = [("noto", key) for key in sorted(scenes.sprites.images["noto"])[:5]]
    return Batches(scenes, drawings, build(Recipe, {"fit": {"steps": 1}, "crop": 16} | changes), vae)


def test_a_batch_is_a_function_of_its_step(scenes):
    made = batches(scenes)
    pairs = made(3)
    assert pairs.low.shape == (8, 3, 16, 16)
    assert pairs.high.shape == (8, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(pairs, made(3)))
    assert not torch.equal(pairs.high, made(4).high)


def test_pairs_are_exact_where_nothing_is_softened(scenes, monkeypatch):
    monkeypatch.setattr(upscaler, "soften", lambda picture, rng: picture)
    for single_share in (0.0, 1.0):
        low, high = batches(scenes, single=single_share)(1)
        assert (torch.nn.functional.avg_pool2d(high, 4) - low).abs().max() <= 0.5 / 255 + 1e-6


def test_small_against_pillow(scenes):
    picture = scenes.picture(3, 64)
    small_one = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)).astype(int)
    assert np.abs(small(picture[None])[0] - small_one).max() <= 1


def test_one_of_five_is_as_it_is_and_none_is_far_from_it(scenes):
    picture = scenes.picture(3)
    seen = [soften(picture, np.random.default_rng(i)).astype(int) for i in range(60)]
    same = [bool((each == picture).all()) for each in seen]
    assert 4 <= sum(same) <= 24
    assert max(np.abs(each - picture).mean() for each in seen) < 25
    assert all((soften(picture, np.random.default_rng(7)) == soften(picture, np.random.default_rng(7))).ravel())


def test_a_share_of_crops_is_what_an_autoencoder_redraws(scenes):
    class Grey(VAE):
        def encode(self, pictures, noise=None):
            return pictures[:, :1]

        def decode(self, latent):
            return torch.zeros_like(latent).expand(-1, 3, -1, -1)

    grey = Grey(VAEConfig(dims=(8, 8), layers=1, groups=4))
    plain, redrawn = batches(scenes, crops=8)(2), batches(scenes, grey, crops=8)(2)
    share = [(a != b).float().mean() > 0.3 for a, b in zip(plain.low, redrawn.low)]
    assert 3 <= sum(share) <= 13
    near = (redrawn.low - 0.5).abs() <= (plain.low - 0.5).abs() + 1e-6
    assert near.all()
    assert torch.equal(plain.high, redrawn.high)


def test_a_drawing_is_whole_and_on_white(sprites):
    concept = sorted(sprites.images["noto"])[0]
    picture = single(sprites, "noto", concept)
    assert picture.shape == (512, 512, 3)
    assert (picture[[0, -1]] == 255).all()
    assert picture.std() > 5


@pytest.fixture
def little(scenes, world, monkeypatch):
    """Scenes of shapes, and a held-out concept."""
    held = replace(world.items[0], concept=sorted(scenes.sprites.images["noto"])[0], split="validation")
    data = EmblemData(pictures=world.pictures[:1], items=[held])
    monkeypatch.setattr(upscaler.emblem, "load", lambda: data)
    monkeypatch.setattr(upscaler.sprites, "load", lambda side: scenes.sprites)
    monkeypatch.setattr(upscaler, "load", lambda seed, painted=True: replace(scenes, seed=seed, painted=painted))
    monkeypatch.setattr(upscaler, "LOOKED_AT", 2)


def run(folder, *changes, resume=False):
    return recipes.run(RECIPE, [*TINY, *changes], folder=folder, resume=resume, progress=False)


def test_the_recipe_trains_resumes_and_is_measured(little, tmp_path):
    vae = VAE(VAEConfig(dims=(8, 8, 8, 8), layers=1, groups=4, sample_size=128))
    save_component(tmp_path / "ae" / "vae", AUTOENCODER.export(vae))
    through = f'autoencoder="{tmp_path}/ae"'
    whole = run(tmp_path / "whole", through, "fit.sample_every=3", "fit.save_every=2")
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"psnr_scenes_exact", "psnr_drawings_soft", "psnr_scenes_redrawn"} <= set(records[-1])
    assert list((tmp_path / "whole" / "samples").glob("*.png"))

    run(tmp_path / "cut", through, "fit.minutes=0.00001")
    again = run(tmp_path / "cut", through, resume=True)
    assert again.steps == whole.steps == 3
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name

    network, warnings = load_upscaler(tmp_path / "whole" / "model" / "upscaler")
    assert warnings == []
    numbers, sheet = upscaler.measure(network, count=2)
    assert {"nearest_scenes_exact", "bicubic_drawings_soft", "ours_drawings_exact"} <= set(numbers)
    assert sheet.width > 4 * 512


def test_the_first_result_is_the_picture_itself_in_large():
    torch.manual_seed(0)
    network, low = upscaler.initial(CompactConfig(dim=48, layers=16)), torch.rand(1, 3, 16, 16)
    assert isinstance(network, Compact)
    with torch.no_grad():
        more = network(low) - upscaler.enlarge(low, "nearest")
    assert 0.001 < float(more.std()) < 0.3


def test_training_and_measuring_hold_different_drawings(little, scenes):
    seen, unseen = upscaler.split(scenes.sprites)
    assert unseen
    assert not {concept for _, concept in seen} & {concept for _, concept in unseen}
    assert to_unit(upscaler.held_out(unseen, 2)["drawings"]).shape[2:] == (512, 512)
