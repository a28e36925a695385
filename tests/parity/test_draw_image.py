"""From a picture, and into one: what diffusers' img2img and inpainting pipelines draw out of our folder, we draw.

The random numbers are the pipelines' own, from one generator, so their order is compared with everything else.
"""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from qkv.errors import ConfigError, InputError
from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet
from qkv.models.vae import VAE
from qkv.pictures import initial
from qkv.sample import denoise, schedules
from qkv.tasks import draw as task
from qkv.weights.diffusers import load_latent_diffusion, save_latent_diffusion
from qkv.weights.scheduler import to_published

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own

SIZE = (48, 32)
SAMPLERS = ("ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm")


def picture(seed: int = 0) -> Image.Image:
    """Soft colours with sharp edges."""
    numbers = np.random.default_rng(seed)
    soft = Image.fromarray(numbers.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    soft.paste((250, 20, 30), (10, 8, 20, 20))
    return soft


def mask() -> Image.Image:
    grey = Image.new("L", SIZE)
    grey.paste(255, (13, 5, 40, 23))
    grey.paste(128, (0, 24, 11, 32))
    grey.paste(127, (40, 24, 48, 32))
    return grey


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory) -> Path:
    """Two folders, of a model with 4 channels and of one with 9; the schedule is Stable Diffusion's."""
    home, noise = tmp_path_factory.mktemp("models"), NoiseConfig(sampler="ddim", steps_offset=1)
    plain = dataclasses.replace(load_latent_diffusion(tiny), noise=noise, files={})
    save_latent_diffusion(plain, home / "plain")
    unet = UNet(dataclasses.replace(plain.unet.config, channels=9)).eval()
    weights = plain.unet.state_dict()
    more = torch.randn((16, 5, 3, 3), generator=torch.Generator().manual_seed(1)) / 6
    unet.load_state_dict(weights | {"enter.weight": torch.cat([weights["enter.weight"], more], dim=1)})
    save_latent_diffusion(dataclasses.replace(plain, unet=unet), home / "inpaints")
    return home


@pytest.fixture(scope="module")
def pipeline(folders: Path):
    """diffusers' pipeline of that kind over a folder, with the scheduler of one of our samplers."""

    @functools.cache
    def load(kind: str, name: str):
        pipeline = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pretrained(str(folders / name))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def make(kind: str, name: str, sampler: str):
        published = to_published(NoiseConfig(sampler=sampler, steps_offset=1))
        pipeline = load(kind, name)
        pipeline.scheduler = getattr(diffusers, published["_class_name"]).from_config(published)
        return pipeline

    return make


def theirs(pipeline, **asked: object) -> np.ndarray:
    asked |= {"generator": torch.Generator().manual_seed(11), "output_type": "np", "num_inference_steps": 8}
    return pipeline("a dog in a suit", negative_prompt="a red cat", guidance_scale=4.0, **asked).images[0] * 255


def ours(folder: Path, sampler: str, **asked: object) -> np.ndarray:
    given = {"negative": "a red cat", "guidance": 4.0, "seed": 11, "steps": 8, "dtype": "float32"} | asked
    return np.asarray(task.draw("a dog in a suit", model=folder, sampler=sampler, size=SIZE, **given)[0].image) * 1.0


def close(mine: np.ndarray, reference: np.ndarray) -> bool:
    assert mine.shape == reference.shape
    assert reference.std() > 20  # not a flat picture, which would be easy to equal
    return float(np.abs(mine - reference).max()) <= 0.6  # half a step of rounding


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_a_picture(pipeline, folders: Path, sampler: str, strength: float) -> None:
    asked = {"image": picture(), "strength": strength}
    reference = theirs(pipeline("Img2Img", "plain", sampler), **asked)
    assert close(ours(folders / "plain", sampler, **asked), reference)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", ["plain", "inpaints"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_into_a_picture(pipeline, folders: Path, sampler: str, name: str, strength: float) -> None:
    asked = {"image": picture(), "strength": strength}
    size = {"width": SIZE[0], "height": SIZE[1]}
    reference = theirs(pipeline("Inpaint", name, sampler), mask_image=mask(), **asked, **size)
    assert close(ours(folders / name, sampler, mask=mask(), **asked), reference)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_pndm_begins_with_a_whole_step(pipeline, folders: Path, strength: float, monkeypatch) -> None:
    """diffusers cuts its list of calls, in which the first step is two, as if each were a step: its picture is left
    with noise in it. Here it is given the calls of the steps that are left."""
    reference, asked = pipeline("Img2Img", "plain", "pndm"), {"image": picture(), "strength": strength}
    cut = theirs(reference, **asked)

    def left(steps: int, strength: float, device: object) -> tuple[torch.Tensor, int]:
        first, times = steps - int(steps * strength), reference.scheduler.timesteps
        rows = torch.cat([times[:1], times[2:]])[first:]
        return torch.cat([rows[:2], rows[1:]]), steps - first

    monkeypatch.setattr(reference, "get_timesteps", left)
    mine = ours(folders / "plain", "pndm", **asked)
    assert close(mine, theirs(reference, **asked))
    assert not close(mine, cut)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0.7},
        {"mask": None},
        {"mask": ImageOps.invert(mask())},
        {"image": ImageOps.mirror(picture())},
        {"seed": 12},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_something_else_is_noticed(pipeline, folders: Path, wrong: dict[str, object]) -> None:
    asked, size = {"image": picture(), "strength": 0.5}, {"width": SIZE[0], "height": SIZE[1]}
    reference = theirs(pipeline("Inpaint", "plain", "euler"), mask_image=mask(), **asked, **size)
    assert not close(ours(folders / "plain", "euler", **{"mask": mask()} | asked | wrong), reference)


def blind(keep, run, denoised, x, levels, noise):
    """Keeps the picture at the end only: the network does not see it."""
    *_, last = run(denoised, x, levels, noise)
    yield last._replace(latent=keep.at(schedules.CLEAN, last.latent))


MUTATIONS = {
    "blind": (denoise, "_keeping", blind),
    "a row too late": (task, "first_row", lambda steps, strength: steps - int(steps * strength) + 1),
    "the mean": (VAE, "latent", lambda self, mean, spread, noise: mean * self.config.scaling),
    "grey is white": (initial, "HALF", 127),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(pipeline, folders: Path, name: str, monkeypatch) -> None:
    asked, size = {"image": picture(), "strength": 0.5}, {"width": SIZE[0], "height": SIZE[1]}
    reference = theirs(pipeline("Inpaint", "plain", "euler"), mask_image=mask(), **asked, **size)
    monkeypatch.setattr(*MUTATIONS[name])
    assert not close(ours(folders / "plain", "euler", mask=mask(), **asked), reference)


def test_a_folder_that_inpaints_comes_back_as_one(folders: Path, tmp_path: Path) -> None:
    model = load_latent_diffusion(folders / "inpaints")
    assert model.inpaints
    save_latent_diffusion(model, tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path))
    assert isinstance(again, diffusers.StableDiffusionInpaintPipeline)
    assert again.unet.config.in_channels == 9


def test_what_inpaints_is_no_start_of_a_training(folders: Path) -> None:
    from lab.train.diffusion import begin

    with pytest.raises(ConfigError, match="draws into pictures only, which is not trained here"):
        begin(SimpleNamespace(start=folders / "inpaints"))


def test_what_inpaints_needs_a_picture_and_a_mask(folders: Path) -> None:
    for asked in ({}, {"image": picture()}):
        with pytest.raises(InputError, match="inpaints draws into pictures only; give it an image and a mask"):
            task.draw("a dog", model=folders / "inpaints", **asked)
