"""Recipes 2 and 3 of the scenes on a tiny world: a text tower that drafts, a U-Net, a folder that diffusers opens."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.emblem.dataset import EmblemData
from lab.scenes import diffusion, draft, latents, mix
from lab.scenes.diffusion import lend
from lab.scenes.draft import move_patches
from lab.train.diffusion import preview, read_text, save_text
from qkv import draw
from qkv.errors import ConfigError, InputError
from qkv.loaded.drawer import DrawingDefaults
from qkv.models.clip import TextConfig, TextTower
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.text.tokenizer import train_tokenizer
from qkv.train.recipes import run
from qkv.weights.diffusers import load_latent_diffusion, save_component
from qkv.weights.vae import AUTOENCODER

RECIPES = Path(__file__).parents[3] / "recipes"
FIT = ["fit.log_every=1", "fit.save_every=2", "fit.optim.warmup=1", "batch=8", "house=1"]
SMALL = ["model.channels=2", "model.out_channels=2", "model.dims=[16, 16, 32]", "model.heads=[2, 2, 2]"]
SMALL += ["model.groups=8", "model.memory_dim=32", "drawing.steps=2"]


def autoencoder() -> VAE:
    torch.manual_seed(0)
    dims = (4, 4, 4, 4)
    config = VAEConfig(
        latent_channels=2, dims=dims, layers=1, groups=2, scaling=1.0, middle_attention=False, sample_size=128
    )
    return VAE(config).eval()


def text_tower(vocab: int, dim: int = 32) -> TextTower:
    torch.manual_seed(1)
    return TextTower(
        TextConfig(
            vocab=vocab,
            dim=dim,
            layers=1,
            heads=2,
            ffn_dim=64,
            start=vocab - 2,
            end=vocab - 1,
            pad=vocab - 1,
            proj_dim=0,
        )
    )


@pytest.fixture
def home(scenes, words, world, tmp_path, monkeypatch) -> Path:
    """A folder with an autoencoder, its latents of 12 scenes and 40 drawings, and a text tower."""
    monkeypatch.setattr(latents, "SHARD", 6)
    monkeypatch.setattr(mix, "HELD", 2)
    items = [replace(item, split="validation" if item.row < 4 else "train") for item in world.items[:40]]
    data = EmblemData(pictures=world.pictures[:40], items=items)
    monkeypatch.setattr(draft.dataset, "load", lambda **_: data)
    monkeypatch.setattr(draft.sprites, "load", lambda **_: scenes.sprites)
    monkeypatch.setattr(draft.vocabulary, "load", lambda _: words)
    vae = autoencoder()
    save_component(tmp_path / "ae/vae", AUTOENCODER.export(vae))
    latents.encode(vae, scenes, tmp_path / "latents", 12, progress=False)
    latents.encode_drawings(vae, data.pictures, tmp_path / "latents", progress=False)
    tokenizer = train_tokenizer([scenes.caption(number, mix.Random(number)) for number in range(50)], 600)
    save_text(text_tower(tokenizer.vocab), tokenizer, tmp_path / "clip")
    return tmp_path


def test_a_tower_drafts_and_a_unet_draws(home):
    scenes = f'scenes="{home}/latents"'
    drafting = [scenes, f'clip="{home}/clip"', "components=8", "begun=24", "fit.steps=30", "fit.sample_every=30"]
    run(RECIPES / "scenes-draft.toml", [*FIT, *drafting], folder=home / "draft", progress=False)
    rows = [json.loads(text) for text in (home / "draft/metrics.jsonl").open()]
    wrong = [row["patches"] for row in rows if "patches" in row]
    assert wrong[-1] < 0.9 * wrong[0]
    assert {"scenes_whole", "scenes_patches", "drawings_moved"} <= rows[-1].keys()

    parts = [scenes, f'autoencoder="{home}/ae"', f'clip="{home}/draft/model"', *SMALL, "fit.sample_every=2"]
    done = run(RECIPES / "scenes-unet.toml", [*FIT, *parts, "fit.steps=2"], folder=home / "unet", progress=False)
    assert (home / "unet/samples/00000002.png").is_file()
    last = [json.loads(text) for text in (home / "unet/metrics.jsonl").open()][-1]
    assert {"scenes", "drawings"} <= last.keys()
    drafted = read_text(home / "draft/model")[0].token.weight
    assert torch.equal(done.model.text.token.weight, drafted.float())  # held still

    more = [*FIT, *parts, "fit.steps=4"]
    run(RECIPES / "scenes-unet.toml", more, folder=home / "unet", resume=True, progress=False)
    run(RECIPES / "scenes-unet.toml", more, folder=home / "whole", progress=False)
    rows = [[json.loads(text) for text in (home / name / "metrics.jsonl").open()] for name in ("unet", "whole")]
    resumed, unbroken = ([row["loss"] for row in found if "loss" in row] for found in rows)
    assert resumed == pytest.approx(unbroken, rel=1e-4)  # products of so few rows may differ in their last bits

    (picture,) = draw("a thing", model=home / "unet/model", seed=1)
    assert picture.image.size == (128, 128)
    assert (picture.settings.steps, picture.settings.guidance) == (2, 4)  # the recipe's


def test_diffusers_opens_what_comes_out(home):
    """Its pictures are ours, to a shade of 255."""
    diffusers = pytest.importorskip("diffusers")
    parts = [f'scenes="{home}/latents"', f'autoencoder="{home}/ae"', f'clip="{home}/clip"', *SMALL, "fit.steps=1"]
    run(RECIPES / "scenes-unet.toml", [*FIT, *parts], folder=home / "unet", progress=False)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(home / "unet/model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.scaling_factor == 1
    assert pipe.vae.config.shift_factor is None
    noise = torch.randn((1, 2, 16, 16), generator=torch.Generator().manual_seed(5))
    theirs = pipe("a thing", num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="np").images[0]
    (ours,) = draw("a thing", model=home / "unet/model", seed=5, steps=3, guidance=4.0, dtype="float32")
    assert np.abs(np.asarray(ours.image) - 255 * theirs).max() < 1.5


def test_latents_of_another_autoencoder_are_refused(home):
    save_component(home / "other/vae", AUTOENCODER.export(VAE(autoencoder().config)))
    parts = [f'scenes="{home}/latents"', f'autoencoder="{home}/other"', f'clip="{home}/clip"', *SMALL, "fit.steps=1"]
    with pytest.raises(InputError, match="another autoencoder's"):
        run(RECIPES / "scenes-unet.toml", [*FIT, *parts], folder=home / "unet", progress=False)
    with pytest.raises(ConfigError, match="--from RUN"):
        run(RECIPES / "scenes-unet.toml", [*FIT, *parts, f'start="{home}"'], folder=home / "unet", progress=False)


def test_a_unet_lends_what_fits():
    small = {"dims": (16, 32), "attention": (False, True), "heads": (2, 2), "layers": 1, "memory_dim": 8, "groups": 4}
    torch.manual_seed(0)
    lender, unet = UNet(UNetConfig(channels=2, out_channels=2, **small)), UNet(UNetConfig(**small))
    assert lend(unet, lender) == ["enter.weight", "leave.bias", "leave.weight"]
    assert torch.equal(unet.middle.residuals[0].conv1.weight, lender.middle.residuals[0].conv1.weight)
    assert unet.enter.weight.shape == (16, 4, 3, 3)


def test_patches_move_with_their_positions():
    tower = text_tower(40)
    before = tower.position.weight.detach().clone()
    move_patches(tower, 5, 9, 3)
    after = tower.position.weight.detach()
    assert torch.equal(after[9:12], before[5:8])
    assert torch.equal(after[5:9], before[4:5].expand(4, -1))
    assert torch.equal(after[:5], before[:5])
    assert torch.equal(after[12:], before[12:])
    with pytest.raises(ConfigError, match="cannot begin at 75"):
        move_patches(tower, 5, 75, 3)


def test_a_run_whose_steps_are_set_later(home):
    """As `train-within` does: first far more steps than there is time for, then so many as fit."""
    parts = [*FIT, f'scenes="{home}/latents"', f'clip="{home}/clip"', "components=8"]
    probe = [*parts, "fit.steps=10_000_000", "fit.minutes=0.001"]
    first = run(RECIPES / "scenes-draft.toml", probe, folder=home / "draft", progress=False)
    assert first.ended == "minutes"
    more = [*parts, f"fit.steps={first.steps + 2}"]
    last = run(RECIPES / "scenes-draft.toml", more, folder=home / "draft", resume=True, progress=False)
    assert (last.ended, last.steps) == ("done", first.steps + 2)


def test_the_preview_draws_every_prompt(home):
    parts = [f'scenes="{home}/latents"', f'autoencoder="{home}/ae"', f'clip="{home}/clip"', *SMALL, "fit.steps=1"]
    run(RECIPES / "scenes-unet.toml", [*FIT, *parts], folder=home / "unet", progress=False)
    model = load_latent_diffusion(home / "unet/model", dtype=torch.float32)
    sheet = preview(model, DrawingDefaults(steps=2, guidance=2.0), diffusion.SHOWN[:3])
    assert sheet.height > 2 * 128
