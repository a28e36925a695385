"""The model that ships: diffusers opens its folder with no argument but the path and draws our picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qkv.registry import ASSETS, resolve
from qkv.tasks.draw import draw
from qkv.weights.clip import load_clip
from qkv.weights.folder import Folder

pytestmark = [pytest.mark.weights, pytest.mark.filterwarnings("ignore")]


def test_diffusers_draws_emblems_picture() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(resolve("emblem")))
    pipeline.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    for prompt, negative, seed in (("a red apple, flat style", None, 3), ("dog in a suit", "yellow color", 4)):
        (ours,) = draw(prompt, negative=negative, seed=seed, steps=20, guidance=4.0, dtype="float32")
        latents = torch.randn((1, 8, 16, 16), generator=torch.Generator().manual_seed(seed))
        options = {"num_inference_steps": 20, "guidance_scale": 4.0, "height": 128, "width": 128}
        theirs = pipeline(prompt, negative_prompt=negative, latents=latents, **options).images[0]
        difference = np.abs(np.asarray(ours.image).astype(int) - np.asarray(theirs).astype(int))
        assert difference.max() <= 2
        assert np.asarray(theirs).std() > 20


def test_emblems_clip_knows_colours() -> None:
    """Beside the pipeline's text tower lies the picture tower that it was trained with."""
    from lab.train.clip import pack
    from qkv.text.tokenizer import Tokenizer

    emblem = resolve("emblem")
    clip, tokenizer = (
        load_clip(Folder(ASSETS / "clip"), texts=Folder(emblem), dtype=torch.float32),
        Tokenizer.load(emblem / "tokenizer"),
    )
    disc = (torch.linspace(-1, 1, 128)[:, None] ** 2 + torch.linspace(-1, 1, 128)[None] ** 2) < 0.7
    colours = {"red": (0.8, -0.8, -0.8), "blue": (-0.8, -0.4, 0.9), "black": (-0.9, -0.9, -0.9)}
    pictures = torch.stack([torch.where(disc, torch.tensor(rgb)[:, None, None], 1.0) for rgb in colours.values()])
    ids = pack(tokenizer, [f"a {name} circle, flat style" for name in colours], 40)
    with torch.inference_mode():
        assert clip.logits(pictures, ids).argmax(0).tolist() == [0, 1, 2]


def test_what_ships_is_small() -> None:
    """Weights travel in the repository: 72 MiB in all, 56 of them the pipeline, no file above 16."""
    sizes = {file: file.stat().st_size for file in Path(ASSETS).rglob("*") if file.is_file()}
    assert max(sizes.values()) <= 16 << 20
    assert sum(sizes.values()) <= 72 << 20
    assert sum(size for file, size in sizes.items() if ASSETS / "emblem" in file.parents) <= 56 << 20
