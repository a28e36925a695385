"""Drawing from a picture and into one: what is asked is checked, kept with the picture, and depends on nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qkv.errors import InputError
from qkv.pictures import picture as pictures
from qkv.pictures.picture import Picture
from qkv.pictures.request import Request, written_in
from qkv.tasks import draw as module
from qkv.tasks.draw import Progress, drawing

pytestmark = pytest.mark.processor


def noise(width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(*box: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    grey = Image.new("L", size)
    grey.paste(255, box or (8, 8, 24, 24))
    return grey


@pytest.fixture
def draw(tiny: Path):
    def run(**options: Any) -> list[Picture]:
        given = {"model": tiny, "steps": 4, "seed": 3, "image": noise(), "strength": 0.5}
        return module.draw("a dog in a suit", **given | options)

    return run


def same(left: Picture, right: Picture) -> bool:
    return left.image.tobytes() == right.image.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "auto"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
@pytest.mark.parametrize("masked", [False, True])
def test_alone_is_as_in_a_batch(draw, dtype: str, sampler: str, masked: bool) -> None:
    asked = {"dtype": dtype, "sampler": sampler, "mask": mask() if masked else None}
    batch = draw(count=3, **asked)
    assert same(batch[2], draw(seed=5, **asked)[0])
    assert not same(batch[1], batch[2])


def test_the_less_strength_the_nearer(draw) -> None:
    first = np.asarray(noise(), float)
    gaps = [np.abs(np.asarray(draw(strength=strength)[0].image) - first).mean() for strength in (0.25, 0.5, 1.0)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


def test_the_steps_that_are_shown_are_those_that_are_made(tiny: Path) -> None:
    request = Request(prompts=("a dog",), image=noise(), strength=0.3, steps=10)
    steps = [event for event in drawing(request, tiny) if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in steps] == [(1, 3), (2, 3), (3, 3)]


def test_files_and_their_turns(draw, tmp_path: Path) -> None:
    turned = noise().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    mask().save(tmp_path / "mask.webp", lossless=True)
    asked = {"image": tmp_path / "turned.png", "mask": str(tmp_path / "mask.webp")}
    assert same(draw(**asked)[0], draw(mask=mask())[0])


def test_a_picture_of_another_size_is_resampled_and_said(draw) -> None:
    (drawn,) = draw(image=noise(48, 40))
    assert drawn.image.size == (32, 32)
    assert "image-size: the picture of 48x40 was resampled to 32x32" in drawn.warnings
    assert same(drawn, draw(image=noise(48, 40).resize((32, 32), Image.Resampling.LANCZOS))[0])
    (asked,) = draw(image=noise(48, 40), size=(48, 40))
    assert asked.image.size == (48, 40)
    assert not [warning for warning in asked.warnings if warning.startswith("image-size")]


def test_the_file_says_what_it_began_from(draw, tiny: Path, tmp_path: Path) -> None:
    (drawn,) = draw(mask=mask())
    path = drawn.save(tmp_path / "a.png")
    settings, parameters, *_ = pictures.read(path)
    assert settings == drawn.settings
    assert (settings.strength, parameters.fields["Denoising strength"]) == (0.5, "0.5")
    assert settings.image != draw(image=noise(40, 32))[0].settings.image
    assert settings.mask != draw(mask=mask(0, 0, 8, 8))[0].settings.mask
    for given, lacks in (({}, "its image with --image"), ({"image": True}, "its mask with --mask")):
        with pytest.raises(InputError, match=lacks):
            written_in(path, **given)
    again = Request(**written_in(path, image=True, mask=True).asked, image=noise(), mask=mask())
    *_, event = drawing(again, tiny)
    assert same(event, drawn)
    assert "strength" not in module.draw("a dog", model=tiny, steps=1)[0].png().decode("latin-1")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a mask alone": ({"image": None, "strength": None, "mask": mask()}, "there is a mask, but no image"),
    "a strength alone": ({"image": None, "strength": 0.5}, "there is a strength, but no image"),
    "no strength": ({"strength": 0.0}, r"strength=0 of 4 steps is not one step"),
    "little": ({"strength": 0.2}, r"strength=0.2 of 4 steps is not one step; ask for more of either"),
    "much": ({"strength": 1.01}, r"strength=1.01 is not a number in 0..1"),
    "NaN": ({"strength": float("nan")}, "strength=nan is not a number"),
    "another size": ({"mask": mask(size=(16, 32))}, "the mask has 16x32 pixels, its picture 32x32"),
    "black": ({"mask": Image.new("L", (32, 32), 127)}, "the mask has no white"),
    "no picture": ({"image": 5}, "image=5 is not a Pillow image"),
    "nothing": ({"image": Image.new("RGB", (0, 5))}, "image has 0 x 5 pixels; it must have 1 to 80 million"),
    "a bomb": ({"image": Image.new("1", (30_000, 30_000))}, "image has 30000 x 30000 pixels"),
    "no file": ({"image": "none.png"}, "No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be(draw, name: str) -> None:
    asked, said = BAD[name]
    with pytest.raises(InputError, match=said):
        draw(**asked)


def test_a_broken_file_that_pillow_has_opened(draw, tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1500])
    with pytest.raises(InputError, match="image cannot be read"):
        draw(image=Image.open(tmp_path / "a.png"))


def test_several_pictures_in_a_file(draw, tmp_path: Path) -> None:
    noise().save(tmp_path / "a.webp", save_all=True, append_images=[mask().convert("RGB")])
    with pytest.raises(InputError, match=r"a\.webp holds several pictures; give one of them"):
        draw(image=tmp_path / "a.webp")
