"""Our folder opened by diffusers draws our picture: same noise, sampler, steps, guidance and negative prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qkv.tasks.draw import draw

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


@pytest.fixture(scope="module")
def pipeline(tiny: Path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(tiny))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline, seed: int, size: tuple[int, int], **options: object) -> np.ndarray:
    width, height = size
    latents = torch.randn((1, 4, height // 4, width // 4), generator=torch.Generator().manual_seed(seed))
    return np.asarray(pipeline(latents=latents, width=width, height=height, **options).images[0]).astype(int)


# Steps that divide 1000: elsewhere diffusers' DDIM does not land where its next step begins (sample/denoise).
CASES = [
    {},
    {"negative": "a red cat"},
    {"guidance": 1.0},
    {"prompt": "穿西裝的狗", "steps": 2},
    {"size": (48, 32), "negative": "a blue fish"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diffusers_draws_the_same(pipeline, tiny: Path, case: dict[str, object]) -> None:
    given = {"prompt": "a dog in a suit", "steps": 5, "guidance": 5.0, "size": (32, 32)} | case
    ours = draw(**given, seed=11, model=tiny, dtype="float32")[0]
    assert ours.settings.sampler == "ddim"
    reference = theirs(
        pipeline,
        11,
        given["size"],
        prompt=given["prompt"],
        negative_prompt=given.get("negative"),
        num_inference_steps=given["steps"],
        guidance_scale=given["guidance"],
    )
    assert np.abs(np.asarray(ours.image).astype(int) - reference).max() <= 2
    assert reference.std() > 20  # not a flat picture, which would be easy to equal


def test_a_wrong_word_or_guidance_is_noticed(pipeline, tiny: Path) -> None:
    options = {"num_inference_steps": 5, "guidance_scale": 5.0}
    reference = theirs(pipeline, 11, (32, 32), prompt="a dog in a suit", **options)
    for wrong in ({"prompt": "a cat in a suit"}, {"guidance": 4.9}, {"seed": 12}, {"steps": 4}):
        given = {"prompt": "a dog in a suit", "steps": 5, "guidance": 5.0, "seed": 11} | wrong
        ours = np.asarray(draw(**given, model=tiny, dtype="float32")[0].image).astype(int)
        assert np.abs(ours - reference).max() > 2
