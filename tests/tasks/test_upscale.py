"""`qkv upscale`, and drawing with a model that has an upscaler: sizes, what files say, and the very same file again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import qkv as package
from qkv.errors import CheckpointError, InputError, NotFoundError
from qkv.loaded import files
from qkv.loaded.models import loaded, unload
from qkv.models.upscaler import Compact, CompactConfig
from qkv.pictures.enlarge import Enlarged
from qkv.pictures.picture import Upscaled, parse_parameters, read
from qkv.pictures.request import Request, written_in
from qkv.tasks.draw import Progress, draw, drawing
from qkv.tasks.export import export
from qkv.tasks.upscale import upscale, upscaling
from qkv.weights.diffusers import save_component
from qkv.weights.upscaler import published_upscaler
from tests.conftest import strengthen

pytestmark = pytest.mark.processor
UP = 4


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an upscaler."""
    network = Compact(CompactConfig(dim=8, layers=2)).eval()
    strengthen(network, 5)
    with torch.no_grad():
        network.body[-1].weight *= 0.1
    folder = tmp_path_factory.mktemp("up") / "sharp"
    save_component(folder, published_upscaler(network))
    return folder


@pytest.fixture(scope="module")
def drawer(tiny: Path, enlarging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with that upscaler beside its parts."""
    folder = tmp_path_factory.mktemp("drawer") / "tiny"
    shutil.copytree(tiny, folder)
    shutil.copytree(enlarging, folder / "upscaler")
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


@pytest.fixture
def qkv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command line in this process and an empty folder: exit code, stdout, stderr."""
    from qkv import cli

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_from_a_picture_the_decoder_draws_at_its_own_size(drawer: Path, photo: Path) -> None:
    asked = {"image": photo, "strength": 0.5, "model": drawer, "seed": 1, "steps": 4}
    (large,), (small,) = draw("a dog", **asked), draw("a dog", **asked, size=(32, 32), upscale=False)
    assert large.image.tobytes() == upscale(small.image, model=drawer).image.tobytes()
    for picture in (large, small):
        assert "image-size: the picture of 24x20 was resampled to 32x32" in picture.warnings


# Any picture.


def test_a_file_and_an_image_are_the_same(photo: Path, enlarging: Path) -> None:
    of_file = upscale(photo, model=enlarging)
    with Image.open(photo) as image:
        of_image = upscale(image, model=enlarging)
    assert of_file.image.tobytes() == of_image.image.tobytes()
    assert of_file.image.size == (UP * 24, UP * 20)
    assert np.asarray(of_file.image).std() > 20
    assert (of_file.upscale.scale, of_file.upscale.size, of_file.upscale.model) == (UP, (24, 20), "sharp")
    assert of_file.warnings == ()


def test_a_file_of_weights_a_folder_and_a_drawing_model(photo: Path, enlarging: Path, drawer: Path) -> None:
    file = enlarging / "diffusion_pytorch_model.safetensors"
    results = [upscale(photo, model=model) for model in (enlarging, file, str(file), drawer)]
    assert len({result.image.tobytes() for result in results}) == 1
    with pytest.raises(NotFoundError, match="emblem has no upscaler; name one by its file or folder"):
        upscale(photo, model="emblem")  # a model of its own will come


def test_a_pickle_only_on_request(photo: Path, enlarging: Path, tmp_path: Path, qkv) -> None:
    from qkv.weights.files import open_tensors

    weights = open_tensors(enlarging / "diffusion_pytorch_model.safetensors")
    torch.save({"params_ema": weights}, tmp_path / "x.pth")
    code, _, err = qkv("upscale", photo, "--model", tmp_path / "x.pth")
    assert (code, "is a pickle, which can run code" in err) == (2, True)
    assert qkv("upscale", photo, "--model", tmp_path / "x.pth", "--allow-pickle", "-o", "a.png")[:2] == (0, "a.png\n")
    with Image.open("a.png") as image:
        assert image.tobytes() == upscale(photo, model=enlarging).image.tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_every_mode(mode: str, enlarging: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 16 * 16).reshape(16, 16)
    if mode == "I;16":
        image = Image.fromarray((ramp * 257).astype(np.uint16))
    else:
        rgba = np.stack([ramp, ramp // 2, ramp, ramp.T], -1).astype(np.uint8)
        image = Image.fromarray(rgba, "RGBA").convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(file)
    result = upscale(file, model=enlarging).image
    assert result.size == (64, 64)
    assert result.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB") or mode == "P"
    assert np.asarray(result.convert("L")).std() > 20


def test_transparency_stays(enlarging: Path) -> None:
    """As a grey picture of the same network."""
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 0))
    image.paste((10, 200, 30, 255), (4, 4, 12, 12))
    result = upscale(image, model=enlarging).image
    grey = upscale(image.getchannel("A").convert("RGB"), model=enlarging).image
    mean = np.asarray(grey).mean(-1)
    assert np.abs(np.asarray(result)[..., 3] - mean).max() <= 1
    colours = upscale(Image.fromarray(np.asarray(image)[..., :3]), model=enlarging).image
    assert result.convert("RGB").tobytes() == colours.tobytes()


def test_a_turned_photo_is_upright(enlarging: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16), "red").save(tmp_path / "a.png", exif=exif)
    result = upscale(tmp_path / "a.png", model=enlarging)
    assert result.image.size == (UP * 16, UP * 24)
    result.save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif().get(0x0112, 1) == 1


def test_what_a_png_says_is_kept_and_extended(enlarging: Path, tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("parameters", "a cat\nSteps: 30, Sampler: Euler a, CFG scale: 5, Seed: 3")
    said.add_text("workflow", "{}" * 1000, zip=True)
    said.add_itxt("Title", "穿西裝的狗", "zh", "題")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png", pnginfo=said)
    upscale(tmp_path / "a.png", model=enlarging).save(tmp_path / "b.png")
    upscale(tmp_path / "b.png", model=enlarging).save(tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (UP * UP * 16, UP * UP * 16)
        texts = dict(image.text)  # type: ignore[attr-defined]
    assert (texts["workflow"], texts["Title"]) == ("{}" * 1000, "穿西裝的狗")
    prompt, _, fields = parse_parameters(texts["parameters"])
    assert (prompt, fields["Seed"]) == ("a cat", "3")
    assert (fields["Postprocess upscale by"], fields["Postprocess upscaler"]) == ("4", "sharp")
    done = [json.loads(line) for line in texts["qkv upscale"].splitlines()]
    assert [each["size"] for each in done] == [[16, 16], [64, 64]]
    assert {each["fingerprint"] for each in done} == {files.fingerprint(enlarging)}


def test_what_cannot_be_kept_is_said(enlarging: Path, tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("a", "b")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=said)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data.replace(b"a\0b", b"a\0c"))
    assert "texts-lost" in upscale(tmp_path / "a.png", model=enlarging).warnings[0]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert "animation" in upscale(tmp_path / "a.webp", model=enlarging).warnings[0]


def test_what_is_no_picture(enlarging: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    for wrong in (tmp_path / "a.png", tmp_path / "none.png", 3, None, tmp_path):
        with pytest.raises(InputError):
            upscale(wrong, model=enlarging)  # type: ignore[arg-type]


def test_the_verb(qkv, photo: Path, enlarging: Path) -> None:
    other = photo.with_name("other.jpg")
    shutil.copyfile(photo, other)
    up = ("--model", enlarging)
    assert qkv("upscale", photo, *up) == (0, "photo-4x.png\n", "")
    assert qkv("upscale", photo, other, *up) == (0, "photo-4x-1.png\nother-4x.png\n", "")
    assert qkv("upscale", photo, other, *up, "-o", "b.png")[1] == "b-1.png\nb-2.png\n"
    code, out, _ = qkv("upscale", photo, *up, "-o", "new/", "--json")
    values = json.loads(out)
    assert (code, values["path"], values["size"], values["final"]) == (0, "new/photo-4x.png", [24, 20], [96, 80])
    assert qkv("upscale", photo, *up, "-o", "b.jpg")[0] == 2
    assert qkv("upscale", "none.png", *up)[0] == 2


def test_it_is_loaded_once_and_told_tile_by_tile(photo: Path, enlarging: Path) -> None:
    unload()
    events = list(upscaling(photo, model=enlarging))
    assert [type(event) for event in events] == [Enlarged, Upscaled]
    upscale(photo, model=enlarging)
    assert [(model.kind, model.name) for model in loaded()] == [("upscaling", "sharp")]
    assert package.upscale is upscale


# Drawing.


def quick(model: Path, **options: object):
    return draw("a dog in a suit", **{"model": model, "steps": 2, "seed": 3, "threads": 1} | options)[0]


def test_it_runs_after_the_decoder(drawer: Path, tiny: Path, enlarging: Path) -> None:
    large, off, without = quick(drawer), quick(drawer, upscale=False), quick(tiny)
    assert large.image.size == large.settings.size == (UP * 32, UP * 32)
    assert (off.image.size, off.settings.size, off.settings.upscale) == ((32, 32), (32, 32), None)
    assert off.image.tobytes() == without.image.tobytes()
    assert large.image.tobytes() == upscale(off.image, model=enlarging).image.tobytes()
    assert large.settings.drawn == (32, 32)
    assert large.warnings == ()
    assert quick(drawer, upscale=True).image.tobytes() == large.image.tobytes()
    with pytest.raises(InputError, match="upscale=True, but tiny has no upscaler"):
        quick(tiny, upscale=True)


def test_an_upscaler_that_lies_elsewhere_is_refused(drawer: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "linked")
    (tmp_path / "linked" / "upscaler").symlink_to(drawer / "upscaler")
    with pytest.raises(CheckpointError, match="is a link out of the model folder"):
        quick(tmp_path / "linked")
    assert quick(tmp_path / "linked", upscale=False).image.size == (32, 32)
    shutil.copytree(tiny, tmp_path / "half")
    (tmp_path / "half" / "upscaler").mkdir()
    with pytest.raises(CheckpointError, match=r"has no file 'upscaler/config.json'"):
        quick(tmp_path / "half")


def test_a_size_is_the_final_one(drawer: Path) -> None:
    wide = quick(drawer, size=(192, 128))
    assert wide.image.size == (192, 128)
    assert wide.settings.drawn == (48, 32)
    assert ["size: 192x128 is not the 128x128" in warning for warning in wide.warnings] == [True]
    with pytest.raises(InputError, match="width=136 is not a multiple of 32; the nearest is 128"):
        quick(drawer, size=(136, 128))
    assert quick(drawer, size=(136, 128), upscale=False).image.size == (136, 128)


def test_previews_counts_and_heat_maps(drawer: Path) -> None:
    request = Request(prompts=("a dog",), count=2, steps=2, seeds=(3,), attention=True)
    events = list(drawing(request, drawer))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.picture, event.step) for event in steps] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert steps[1].preview().size == (32, 32)
    pictures = [event for event in events if not isinstance(event, Progress)]
    assert [picture.image.size for picture in pictures] == [(128, 128)] * 2
    assert all(picture.attention for picture in pictures)


def test_both_sizes_are_in_the_file(drawer: Path, tmp_path: Path) -> None:
    written = read(quick(drawer).save(tmp_path / "a.png"))
    assert written.settings
    assert written.parameters
    assert written.settings.upscale
    assert (written.settings.size, written.settings.upscale.size) == ((128, 128), (32, 32))
    assert written.settings.upscale.fingerprint == files.fingerprint(drawer / "upscaler")
    fields = written.parameters.fields
    assert (fields["Size"], fields["Postprocess upscale by"]) == ("32x32", "4")


def test_the_models_fingerprint_is_without_its_upscaler(drawer: Path, tiny: Path) -> None:
    assert quick(drawer).settings.fingerprint == quick(tiny).settings.fingerprint == files.fingerprint(tiny)
    assert files.fingerprint(drawer) != files.fingerprint(tiny)


@pytest.mark.parametrize("options", [[], ["--size", "160x128"], ["--upscale", "off"]], ids=str)
def test_replay_is_the_same_file(qkv: Callable, drawer: Path, options: list[str]) -> None:
    common = ("--model", drawer, "--threads", 1)
    assert qkv("draw", "a dog", "--steps", 2, "--seed", 1, *common, *options, "-o", "a.png")[0] == 0
    code, _, err = qkv("draw", "--replay", "a.png", *common, "-o", "b.png")
    assert (code, "changed" in err) == (0, False)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_picture_from_before_there_was_an_upscaler(qkv: Callable, drawer: Path, tiny: Path) -> None:
    """Draws again without one, byte for byte and without a warning, though the folder has one now."""
    assert qkv("draw", "a dog", "--steps", 2, "--seed", 1, "--model", tiny, "--threads", 1, "-o", "a.png")[0] == 0
    with Image.open("a.png") as image:
        assert "upscale" not in json.loads(image.text["qkv"])  # type: ignore[attr-defined]
    assert written_in("a.png").asked["upscale"] is False
    assert qkv("draw", "--replay", "a.png", "--model", drawer, "--threads", 1, "-o", "b.png") == (0, "b.png\n", "")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_replay_with_the_switch_changed(qkv: Callable, drawer: Path, tiny: Path) -> None:
    common = ("--model", drawer, "--threads", 1, "--steps", 2)
    qkv("draw", "a dog", "--seed", 1, *common, "-o", "large.png")
    qkv("draw", "a dog", "--seed", 1, *common, "--upscale", "off", "-o", "small.png")
    assert qkv("draw", "--replay", "large.png", *common, "--upscale", "off", "-o", "a.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("small.png").read_bytes()
    code, _, err = qkv("draw", "--replay", "small.png", *common, "--upscale", "on")
    assert (code, "say its final --size, too" in err) == (2, True)
    again = ("draw", "--replay", "small.png", *common, "--upscale", "on", "--size", "128x128", "-o", "b.png")
    assert qkv(*again)[0] == 0
    assert Path("b.png").read_bytes() == Path("large.png").read_bytes()
    code, _, err = qkv("draw", "--replay", "large.png", "--model", tiny)
    assert (code, "tiny has no upscaler" in err) == (2, True)
    assert qkv("draw", "a", "--upscale", "maybe")[2] == "qkv: error: upscale='maybe' is not on or off\n"


def test_replay_of_a_picture_that_was_enlarged_since(qkv: Callable, tiny: Path, enlarging: Path) -> None:
    common = ("--model", tiny, "--threads", 1)
    qkv("draw", "a dog", "--steps", 2, "--seed", 1, *common, "-o", "a.png")
    assert qkv("upscale", "a.png", "--model", enlarging, "-o", "large.png")[0] == 0
    code, _, err = qkv("draw", "--replay", "large.png", *common, "-o", "b.png")
    assert (code, "upscaled-since: large.png was enlarged after it was drawn" in err) == (0, True)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_an_export_takes_it_along(drawer: Path, tmp_path: Path) -> None:
    export(drawer, tmp_path / "copy")
    for file in (drawer / "upscaler").iterdir():
        assert (tmp_path / "copy" / "upscaler" / file.name).read_bytes() == file.read_bytes()
    assert quick(tmp_path / "copy").image.tobytes() == quick(drawer).image.tobytes()


@pytest.mark.filterwarnings("ignore")  # the reference's own
def test_diffusers_opens_the_rest(drawer: Path, tiny: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipelines = [StableDiffusionPipeline.from_pretrained(str(folder)) for folder in (drawer, tiny)]
    assert set(pipelines[0].components) == set(pipelines[1].components)
