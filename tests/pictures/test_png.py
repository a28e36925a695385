"""Chunks of strangers' PNG files: texts wherever they stand, metadata of any size, other tools' JSON."""

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from qkv.errors import InputError
from qkv.pictures.files import decode
from qkv.pictures.png import chunks, lean, texts
from qkv.pictures.request import Request, written_in

LINES = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x32"
BIG = np.random.default_rng(0).bytes(3 << 20)  # does not pack


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8))
    image.save(file, format=kind, **options)
    return file.getvalue()


def placed(text: bytes, where: str) -> bytes:
    """A PNG with a chunk before its pixels, behind them, or behind its end."""
    plain = saved()
    place = {"before": plain.index(b"IDAT") - 4, "behind": plain.index(b"IEND") - 4, "after": len(plain)}[where]
    return plain[:place] + text + plain[place:]


KINDS = {
    "tEXt": lambda word, text: chunk(b"tEXt", word + b"\0" + text.encode("latin-1")),
    "zTXt": lambda word, text: chunk(b"zTXt", word + b"\0\0" + zlib.compress(text.encode("latin-1"))),
    "iTXt": lambda word, text: chunk(b"iTXt", word + b"\0\0\0de\0Parameter\0" + text.encode()),
    "packed": lambda word, text: chunk(b"iTXt", word + b"\0\1\0\0\0" + zlib.compress(text.encode())),
}


@pytest.mark.parametrize("where", ["before", "behind", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_found_wherever_they_stand(tmp_path, kind, where):
    data = placed(KINDS[kind](b"parameters", LINES), where)
    (tmp_path / "a.png").write_bytes(data)
    asked = written_in(tmp_path / "a.png").asked
    assert (asked["prompts"], asked["negatives"], asked["seeds"], asked["steps"]) == (("a cat",), ("dog",), (5,), 20)
    if where != "after":
        with Image.open(tmp_path / "a.png") as image:
            image.load()
            assert texts(data, ["parameters"], 1 << 20)["parameters"] == image.text["parameters"] == LINES


@pytest.mark.parametrize("word", ["ICC", "XMP", "text"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_of_any_size_breaks_no_picture(tmp_path, kind, word):
    """Pillow refuses to unpack a text or profile of more than 1 MiB."""
    plain = saved(kind)
    if kind == "PNG":
        note = {
            "ICC": chunk(b"iCCP", b"profile\0\0" + zlib.compress(BIG)),
            "XMP": KINDS["packed"](b"XML:com.adobe.xmp", BIG.hex()),
            "text": KINDS["zTXt"](b"Comment", BIG.hex()) + KINDS["tEXt"](b"parameters", LINES),
        }[word]
        data = placed(note, "before")
    elif word == "text":
        pytest.skip("a text is PNG's")
    elif kind == "JPEG" and word == "XMP":
        data = saved(kind, xmp=b"<x/>" + BIG.hex()[:60_000].encode())  # its segments are short
    else:
        data = saved(kind, **{"icc_profile" if word == "ICC" else "xmp": BIG})
    assert len(data) > len(plain)
    assert decode(data).image.tobytes() == decode(plain).image.tobytes()
    if kind == "PNG" and word == "text":
        (tmp_path / "a.png").write_bytes(data)
        assert written_in(tmp_path / "a.png").asked["prompts"] == ("a cat",)


@pytest.mark.parametrize("large", [0, 2 << 20])
@pytest.mark.parametrize("kind", ["iTXt", "packed"])
def test_a_description_still_turns_the_picture(kind, large):
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>{" " * large}'
    data = placed(KINDS[kind](b"XML:com.adobe.xmp", xmp), "before")
    small = placed(KINDS["iTXt"](b"XML:com.adobe.xmp", xmp[:80]), "before")
    with Image.open(io.BytesIO(small)) as image:
        turned = ImageOps.exif_transpose(image)
    assert decode(data).image.size == turned.size == (9, 7)
    assert decode(data).image.tobytes() == turned.convert("RGB").tobytes()


def test_a_picture_without_metadata_is_not_copied():
    plain = saved()
    assert lean(plain) is plain
    assert b"".join(bytes(one.whole) for one in chunks(plain)) == plain[8:]


def test_a_broken_text_is_named(tmp_path):
    data = bytearray(placed(KINDS["tEXt"](b"parameters", LINES), "behind"))
    data[data.index(b"a cat")] = ord("b")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="the checksum of its text 'parameters' is wrong"):
        written_in(tmp_path / "a.png")


@given(st.binary(max_size=300))
def test_bytes_of_no_sense(data):
    for whole in (b"\x89PNG\r\n\x1a\n" + data, placed(data, "behind")):
        lean(whole)
        with contextlib.suppress(ValueError):
            texts(whole, ["parameters"], 1000)


# SwarmUI 0.9 and Fooocus 2.5, as their sources write them.
SWARM = {
    "sui_image_params": {
        "prompt": "a cat",
        "negativeprompt": "dog",
        "model": "OfficialStableDiffusion/sd_xl_base_1.0",
        "images": 1,
        "seed": 12345678901234567890,
        "steps": 20,
        "cfgscale": 7.0,
        "aspectratio": "1:1",
        "width": 64,
        "height": 32,
        "sampler": "euler_ancestral",
        "scheduler": "normal",
        "automaticvae": True,
        "swarm_version": "0.9.3.1",
    },
    "sui_extra_data": {"date": "2025-01-25", "generation_time": "4.84 sec"},
    "sui_models": [{"name": "sd_xl_base_1.0.safetensors", "param": "model", "hash": "0xd7a9"}],
}
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "full_negative_prompt": ["dog", "unrealistic"],
    "full_prompt": ["cinematic still a cat", "a cat"],
    "guidance_scale": 4.0,
    "loras": [],
    "metadata_scheme": "fooocus",
    "negative_prompt": "dog",
    "performance": "Speed",
    "prompt": "a cat",
    "refiner_model": "None",
    "resolution": "(64, 32)",
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "seed": "5",
    "sharpness": 2.0,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}


def foreign(path: Path, **said: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in said.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_swarmui_is_replayed(tmp_path):
    found = written_in(foreign(tmp_path / "a.png", parameters=json.dumps(SWARM)))
    request = Request(**found.asked)
    assert (request.prompts, request.negatives, request.seeds) == (("a cat",), ("dog",), (12345678901234567890,))
    assert (request.steps, request.guidance, request.sampler, request.size) == (20, 7, "euler_ancestral", (64, 32))
    (warning,) = found.warnings
    assert warning.endswith("not honoured: model: OfficialStableDiffusion/sd_xl_base_1.0")


def test_swarmui_of_an_older_version_and_without_a_size(tmp_path):
    given = {"prompt": "x", "seed": 1, "comfyuisampler": "dpmpp_2m", "comfyuischeduler": "karras", "loras": ["a"]}
    found = written_in(foreign(tmp_path / "a.png", parameters=json.dumps({"sui_image_params": given})))
    assert found.asked == {"prompts": ("x",), "negatives": ("",), "seeds": (1,), "sampler": "dpmpp_2m_karras"}
    assert found.warnings[0].endswith("not honoured: loras: ['a']")


def test_fooocus_is_replayed(tmp_path):
    found = written_in(foreign(tmp_path / "a.png", parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus"))
    request = Request(**found.asked)
    assert (request.prompts, request.negatives, request.seeds) == (("a cat",), ("dog",), (5,))
    assert (request.steps, request.guidance, request.sampler, request.size) == (30, 4, "dpmpp_2m_karras", (64, 32))
    for lost in ("styles: ['Fooocus V2']", "base_model: juggernautXL", "sharpness: 2.0", "clip_skip: 2"):
        assert lost in found.warnings[0]


def test_a_sampler_that_we_have_not_may_be_replaced(tmp_path):
    found = written_in(foreign(tmp_path / "a.png", parameters=json.dumps(FOOOCUS | {"sampler": "dpmpp_2m_sde_gpu"})))
    assert found.asked["sampler"] == "dpmpp_2m_sde_gpu"
    with pytest.raises(LookupError, match="unknown sampler 'dpmpp_2m_sde_gpu'"):
        Request(**found.asked)
    Request(**found.asked | {"sampler": "euler"})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"parameters": '{"text": "a cat"}'}, "JSON of a tool that is not known .with text."),
        ({"parameters": '{"sui_image_params": {}}'}, "JSON of a tool that is not known"),
        ({"parameters": json.dumps(FOOOCUS | {"seed": "x"})}, "cannot be read: Seed: x"),
        ({"prompt": "{}", "workflow": "{}"}, "was drawn by ComfyUI, whose settings are not read"),
        ({"invokeai_metadata": "{}"}, "was drawn by InvokeAI"),
        ({"Comment": '{"uc": ""}'}, "was drawn by NovelAI"),
        ({"other": "x"}, "does not say how it was drawn"),
    ],
)
def test_what_is_not_replayed_is_refused_by_name(tmp_path, said, message):
    with pytest.raises(InputError, match=message):
        written_in(foreign(tmp_path / "a.png", **said))


def test_a_prompt_may_begin_with_a_bracket(tmp_path):
    found = written_in(foreign(tmp_path / "a.png", parameters="{red|blue} cat\nSteps: 1, Seed: 2, Size: 8x8"))
    assert found.asked["prompts"] == ("{red|blue} cat",)


def test_no_text_is_too_far_behind(tmp_path):
    (tmp_path / "a.png").write_bytes(saved() + os.urandom(100))
    with pytest.raises(InputError, match="does not say"):
        written_in(tmp_path / "a.png")
