"""The web UI's own client, unchanged, against a live server; what it draws is what the library draws."""

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image, ImageFilter, ImageOps

import qkv
from qkv.models.upscaler import Compact, CompactConfig
from qkv.pictures.picture import parameters
from qkv.weights.diffusers import save_component
from qkv.weights.upscaler import published_upscaler

GIVEN = {"prompt": "a dog in a suit", "seed": 3, "steps": 4, "width": 32, "height": 32, "sampler_name": "Euler a"}
OURS = {"model": "tiny", "seed": 3, "steps": 4, "size": (32, 32), "sampler": "Euler a", "guidance": 7.0}


@pytest.fixture
def api(live) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{live.address}/sdapi/v1")


def soft(size: tuple[int, int] = (32, 32), seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def mask(*box: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    grey = Image.new("L", size)
    grey.paste(255, box)
    return grey


def packed(image: Image.Image, format: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.size == right.size and left.tobytes() == right.tobytes()


def test_from_a_text(api) -> None:
    found = api.txt2img(**GIVEN, negative_prompt="blue", batch_size=2, n_iter=1)
    ours = qkv.draw("a dog in a suit", negative="blue", count=2, **OURS)
    for image, picture, text in zip(found.images, ours, found.info["infotexts"], strict=True):
        assert same(image, picture.image)
        assert image.info["parameters"] == text == parameters(picture.settings)
    assert found.info["all_seeds"] == [3, 4]
    assert found.info["sampler_name"] == "Euler a"
    assert found.parameters["prompt"] == "a dog in a suit"
    assert json.loads(found.json["info"])["warnings"] == found.json["warnings"] == []


def test_schedules(api) -> None:
    for sampler, schedule, ours in (
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "karras", "dpmpp_2m_karras"),
        ("DDIM", "automatic", "ddim"),
    ):
        found = api.txt2img(**GIVEN | {"sampler_name": sampler}, scheduler=schedule, eta=0.0)
        assert same(found.image, qkv.draw("a dog in a suit", **OURS | {"sampler": ours})[0].image)
    with pytest.raises(RuntimeError, match="scheduler=.*karras.* does not go with sampler .*Heun"):
        api.txt2img(**GIVEN | {"sampler_name": "Heun"}, scheduler="karras")


def test_from_a_picture(api) -> None:
    found = api.img2img(images=[soft((48, 40))], denoising_strength=0.5, **GIVEN)
    (ours,) = qkv.draw("a dog in a suit", image=soft((48, 40)), strength=0.5, **OURS)
    assert same(found.image, ours.image)
    assert found.info["denoising_strength"] == 0.5
    assert "image-size: the picture of 48x40 was resampled to 32x32" in found.info["warnings"]
    cropped = api.img2img(images=[soft((48, 40))], denoising_strength=0.5, resize_mode=1, **GIVEN)
    fitted = ImageOps.fit(soft((48, 40)), (32, 32))
    assert same(cropped.image, qkv.draw("a dog in a suit", image=fitted, strength=0.5, **OURS)[0].image)


@pytest.mark.parametrize("invert", [0, 1])
def test_into_a_picture(api, invert: int) -> None:
    """What is not masked is the client's own picture, to the pixel; the mask is soft."""
    given = {"images": [soft()], "mask_image": mask(8, 8, 20, 24), "mask_blur": 2, "inpaint_full_res": False}
    found = api.img2img(**given, inpainting_mask_invert=invert, inpainting_fill=1, denoising_strength=0.75, **GIVEN)
    white = ImageOps.invert(given["mask_image"]) if invert else given["mask_image"]
    white = white.filter(ImageFilter.GaussianBlur(2))
    (ours,) = qkv.draw("a dog in a suit", image=soft(), mask=white, strength=0.75, **OURS)
    assert same(found.image, Image.composite(ours.image, soft(), white))
    kept = np.asarray(white) == 0
    np.testing.assert_array_equal(np.asarray(found.image)[kept], np.asarray(soft())[kept])
    assert found.info["warnings"] == []


def test_only_the_masked_part_is_drawn(api) -> None:
    """At its own size, with its surroundings, in the shape of the picture that was asked for."""
    image, white = soft((96, 64)), mask(40, 20, 60, 30, size=(96, 64))
    given = {"images": [image], "mask_image": white, "mask_blur": 0, "inpaint_full_res_padding": 4}
    found = api.img2img(**given, inpaint_full_res=True, denoising_strength=0.75, **GIVEN)
    box = (36, 11, 64, 39)  # 28 x 18 pixels with padding, made square
    (ours,) = qkv.draw("a dog in a suit", image=image.crop(box), mask=white.crop(box), strength=0.75, **OURS)
    expected = image.copy()
    expected.paste(ours.image.resize((28, 28), Image.Resampling.LANCZOS), box, white.crop(box))
    assert same(found.image, expected)
    assert any(warning.startswith("inpainting_fill=0") for warning in found.info["warnings"])


REFUSED = {
    "hires": ({"enable_hr": True}, "enable_hr=True cannot be honoured"),
    "styles": ({"styles": ["x"]}, "styles=.* cannot be honoured"),
    "scripts": ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts=.* cannot be honoured"),
    "script": ({"script_name": "x/y"}, "script_name=.* cannot be honoured"),
    "sampler": ({"sampler_name": "DPM++ SDE"}, "unknown sampler"),
    "size": ({"width": 33}, "width=33 is not a multiple"),
    "model": ({"override_settings": {"sd_model_checkpoint": "../etc"}}, "unknown model"),
    "steps": ({"steps": 10**6}, "steps=1000000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said(api, name: str) -> None:
    asked, said = REFUSED[name]
    with pytest.raises(RuntimeError, match=said) as refused:
        api.txt2img(**GIVEN | asked)
    body = json.loads(refused.value.args[1])
    assert refused.value.args[0] in (400, 404)
    assert body.keys() >= {"error", "detail"}


def test_what_changes_nothing_is_said(api) -> None:
    override = {"sd_model_checkpoint": "tiny.safetensors [0123abcd]", "CLIP_stop_at_last_layers": 2}
    found = api.txt2img(**GIVEN, restore_faces=True, tiling=True, subseed_strength=0.3, override_settings=override)
    ignored, options = found.info["warnings"]
    assert ignored.startswith("ignored: ")
    assert set(ignored[9:].removesuffix(" changed nothing").split(", ")) == {
        *("restore_faces=True", "tiling=True", "subseed_strength=0.3")
    }
    assert "CLIP_stop_at_last_layers" in options
    assert same(found.image, qkv.draw("a dog in a suit", **OURS)[0].image)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("http://127.0.0.1/a.png", "addresses are not fetched"),
        ("data:image/png;base64,AAAA", "it is not a PNG, JPEG or WebP picture"),
        ("data:image/svg+xml,<svg/>", "a data URL without base64"),
        (packed(Image.new("1", (30_000, 30_000))), "it has 30000 x 30000 pixels; at most 80 million are read"),
        (packed(soft(), save_all=True, append_images=[soft(seed=1)], format="WEBP"), "holds several pictures"),
        (packed(soft())[:200], "its PNG data is broken"),
    ],
)
def test_pictures_that_are_none(live, image: str, said: str) -> None:
    answer = requests.post(f"{live.address}/sdapi/v1/img2img", json={"prompt": "a dog", "init_images": [image]})
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_numbers_that_json_has_not(live) -> None:
    """Python's JSON reads them; the answer, which repeats what was asked, is JSON for all."""
    body = json.dumps(GIVEN | {"subseed_strength": float("inf"), "s_noise": float("nan"), "negative_prompt": "\ud800"})
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{live.address}/sdapi/v1/txt2img", data=body, headers=headers)
    assert answer.status_code == 400  # half a character is no text
    answer = requests.post(f"{live.address}/sdapi/v1/txt2img", data=body.replace("\\ud800", ""), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["subseed_strength"] is None
    assert "subseed_strength=inf" in answer.json()["warnings"][0]


def test_what_a_picture_says(api) -> None:
    found = api.png_info(api.txt2img(**GIVEN).image)
    (ours,) = qkv.draw("a dog in a suit", **OURS)
    assert found.info == parameters(ours.settings)
    assert found.parameters["Seed"] == "3"
    assert found.parameters["Prompt"] == "a dog in a suit"
    assert api.png_info(soft()).info == ""


def test_progress_interrupt_and_skip(api) -> None:
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    long = GIVEN | {"steps": 900, "batch_size": 2}
    seen: dict[str, object] = {}
    thread = threading.Thread(target=lambda: seen.update(found=api_of(api).txt2img(**long)))
    thread.start()
    while (now := api.get_progress())["current_image"] is None:
        time.sleep(0.01)
    assert 0 < now["progress"] < 1
    assert (now["state"]["job_count"], now["state"]["sampling_steps"]) == (2, 900)
    assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).size == (32, 32)
    api.skip()
    while api.get_progress()["state"]["job_no"] != 1 or api.get_progress()["state"]["sampling_step"] == 0:
        time.sleep(0.01)
    api.interrupt()
    thread.join(60)
    found = seen["found"]
    assert found.json["warnings"] == ["interrupted: 0 of 2 pictures are done"]
    assert [image.size for image in found.images] == [(32, 32)]  # as far as it was
    api.util_wait_for_ready(check_interval=0.05)


def test_who_looks_on_changes_nothing(api) -> None:
    seen: list[Image.Image] = []
    thread = threading.Thread(target=lambda: seen.append(api_of(api).txt2img(**GIVEN | {"steps": 150}).image))
    thread.start()
    shown = 0
    while thread.is_alive():
        shown += api.get_progress()["current_image"] is not None
    assert shown
    assert same(seen[0], qkv.draw("a dog in a suit", **OURS | {"steps": 150})[0].image)


def api_of(api: webuiapi.WebUIApi) -> webuiapi.WebUIApi:
    """Another session, for another thread."""
    return webuiapi.WebUIApi(baseurl=api.baseurl)


def test_lists(api) -> None:
    assert "tiny" in api.util_get_model_names()
    assert "Euler a" in api.util_get_sampler_names()
    assert api.util_get_scheduler_names() == ["automatic", "karras"]
    assert api.util_get_current_model() == "tiny"
    assert [each["name"] for each in api.get_upscalers()][:3] == ["None", "Lanczos", "Nearest"]
    for ask in ("sd_vae", "loras", "hypernetworks", "face_restorers", "prompt_styles", "latent_upscale_modes"):
        assert getattr(api, f"get_{ask}")() == []
    for ask in ("realesrgan_models", "artist_categories", "artists"):
        assert getattr(api, f"get_{ask}")() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags() == {}
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.refresh_checkpoints() is None


def test_options(api) -> None:
    options = api.get_options()
    assert api.set_options(options) is None  # as clients post the whole of it back
    api.util_set_model("tyni")
    assert api.util_get_current_model() == "tiny"
    assert "samples_format" in api.set_options({"samples_format": "webp"})["warnings"][0]
    assert "unknown model" in api.set_options({"sd_model_checkpoint": "nothing"})["detail"]


def test_enlarging(api) -> None:
    image = soft()
    image.putalpha(mask(4, 4, 20, 20))
    assert same(api.extra_single_image(image).image, image.resize((64, 64), Image.Resampling.LANCZOS))
    found = api.extra_batch_images(
        [soft(), soft(seed=1)], resize_mode=1, upscaling_resize_w=40, upscaling_resize_h=20, upscaler_1="Nearest"
    )
    expected = [ImageOps.fit(soft(seed=seed), (40, 20), Image.Resampling.NEAREST) for seed in (0, 1)]
    assert all(map(same, found.images, expected))
    for asked, said in (
        ({"upscaler_1": "LDSR"}, "upscaler_1=.* is not here; there are None, Lanczos, Nearest"),
        ({"upscaling_resize": 9}, "upscaling_resize=9"),
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility=0.5 cannot be honoured"),
    ):
        with pytest.raises(RuntimeError, match=said):
            api.extra_single_image(image, **asked)


@pytest.fixture
def enlarging(models_home: Path, tiny: Path) -> Iterator[str]:
    """A model with an upscaler of twice the side, as long as the test lasts."""
    folder = models_home / "models" / "large"
    shutil.copytree(tiny, folder)
    network = Compact(CompactConfig(dim=8, layers=1, scale=2)).eval()
    save_component(folder / "upscaler", published_upscaler(network))
    yield "large"
    shutil.rmtree(folder)


def test_enlarging_by_a_network(api, enlarging: str) -> None:
    """As the library does it, then resampled to what was asked."""
    deadline = time.monotonic() + 30
    while enlarging not in [each["name"] for each in api.get_upscalers()]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ours = qkv.upscale(soft(), model=enlarging).image
    assert same(api.extra_single_image(soft(), upscaler_1=enlarging, upscaling_resize=2).image, ours)
    larger = api.extra_single_image(soft(), upscaler_1=enlarging, upscaling_resize=3).image
    assert same(larger, ours.resize((96, 96), Image.Resampling.LANCZOS))
