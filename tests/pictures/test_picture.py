"""What a PNG file says about its picture comes back, and a hostile file is refused."""

import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from qkv.errors import InputError, OutputError
from qkv.pictures.picture import PUBLISHED_SAMPLERS, Picture, Settings, parameters, parse_parameters, read
from qkv.pictures.request import Request, written_in

SETTINGS = Settings(
    prompt="a (dog:1.3), in a suit",
    negative="yellow: color",
    seed=965400086,
    model="emblem",
    fingerprint="45dee52b00",
    sampler="euler_ancestral",
    steps=20,
    guidance=7.5,
    size=(64, 32),
    device="cpu",
    dtype="float32",
    threads=2,
    versions={"qkv": "0.1.0", "torch": "2.13.0"},
)


def picture(settings: Settings = SETTINGS) -> Picture:
    return Picture(image=Image.new("RGB", settings.size, "red"), settings=settings)


def test_the_lines_of_the_web_ui() -> None:
    assert parameters(SETTINGS) == (
        "a (dog:1.3), in a suit\nNegative prompt: yellow: color\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 965400086, Size: 64x32, "
        "Model hash: 45dee52b00, Model: emblem, RNG: CPU, Version: qkv 0.1.0"
    )
    karras = parameters(replace(SETTINGS, sampler="dpmpp_2m_karras", model="/models/a,b"))
    assert "Sampler: DPM++ 2M, Schedule type: Karras," in karras
    assert 'Model: "a,b"' in karras


def test_lines_of_others_are_read() -> None:
    text = (
        "a cat,\n  on a mat\nNegative prompt: dog\nbird\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, "
        'Seed: 5, Size: 512x768, Model hash: 45dee52b, Lora hashes: "a: 1, b: \\"2\\"", Clip skip: 2'
    )
    prompt, negative, fields = parse_parameters(text)
    assert (prompt, negative) == ("a cat,\non a mat", "dog\nbird")
    assert fields["Lora hashes"] == 'a: 1, b: "2"'
    assert fields["Clip skip"] == "2"
    assert parse_parameters("a cat\nSteps: 20, Seed: 1") == ("a cat\nSteps: 20, Seed: 1", "", {})  # too few fields


def plain_line(text: str) -> bool:
    return not text.startswith("Negative prompt:") and text == text.strip()


LINE = st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp"], exclude_characters="\n\r\0\x0b\x0c\x85")).filter(
    plain_line
)
LINES = st.lists(LINE.filter(bool), min_size=1, max_size=3).map("\n".join)


@given(prompt=LINES, negative=LINES, model=LINE.filter(lambda name: name and not name.endswith("/") and name != "."))
def test_parameters_come_back(prompt: str, negative: str, model: str) -> None:
    read_back = parse_parameters(parameters(replace(SETTINGS, prompt=prompt, negative=negative, model=model)))
    assert read_back.prompt == prompt
    assert read_back.negative == negative
    assert read_back.fields["Model"] == Path(model).name
    assert read_back.fields["Seed"] == "965400086"


@given(text=st.text())
def test_any_text_is_parsed(text: str) -> None:
    parse_parameters(text)


@pytest.mark.parametrize(
    "text", ["a" * 500_000, "a:" * 250_000, '"' * 500_000, ('a: "' + "\\" * 9) * 40_000, "a b: \n" * 100_000]
)
def test_hostile_lines_cost_linear_time(text: str) -> None:
    parse_parameters(text + ",")  # seconds if it were quadratic: the suite would show it


@given(prompt=st.text(), negative=st.text(), seed=st.integers(0, 2**64 - 1), guidance=st.floats(0, 100))
def test_settings_come_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, negative: str, seed: int, guidance: float
) -> None:
    path = tmp_path_factory.mktemp("p") / "a.png"
    settings = replace(SETTINGS, prompt=prompt, negative=negative, seed=seed, guidance=guidance)
    picture(settings).save(path)
    assert read(path).settings == settings


def test_half_surrogates_are_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, prompt="a \udc80 dog\0")
    written = read(picture(settings).save(tmp_path / "a.png"))
    assert written.settings == settings
    assert written.parameters is not None
    assert written.parameters.prompt == "a ? dog\ufffd"


def test_others_read_our_texts(tmp_path: Path) -> None:
    with Image.open(picture().save(tmp_path / "a.png")) as image:
        assert image.text["parameters"] == parameters(SETTINGS)
        assert json.loads(image.text["qkv"])["seed"] == SETTINGS.seed
    chinese = picture(replace(SETTINGS, prompt="穿西裝的狗")).save(tmp_path / "b.png")
    with Image.open(chinese) as image:
        assert image.text["parameters"].startswith("穿西裝的狗")


def test_every_sampler_of_another_tool_is_found(tmp_path: Path) -> None:
    for ours in PUBLISHED_SAMPLERS:
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", parameters(replace(SETTINGS, sampler=ours)))
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
        asked, settings, warnings = written_in(tmp_path / "a.png")
        assert settings is None
        assert [warning.split(":")[0] for warning in warnings] == ["another-tool"]
        request = Request(**asked)
        assert (request.sampler, request.size, request.seeds, request.steps) == (ours, (64, 32), (965400086,), 20)


def foreign(path: Path, line: str) -> Path:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", f"a cat\n{line}")
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


FOREIGN = "Steps: 20, CFG scale: 7, Seed: 5, Size: 64x32, Model hash: 45dee52b, Version: v1.9.4"


@pytest.mark.parametrize(
    ("fields", "asked", "lost"),
    [
        ("Sampler: Euler, Schedule type: Automatic, RNG: CPU, Clip skip: 1", {"sampler": "euler"}, None),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", {"sampler": "dpmpp_2m_karras"}, None),
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m_karras"}, None),
        ("Sampler: Euler, Schedule type: Karras", {"sampler": "euler"}, "Schedule type: Karras"),
        ("Sampler: DDIM, Eta: 0.5", {"sampler": "ddim", "eta": 0.5}, None),
        ("Sampler: Euler a, Eta: 0.5", {"sampler": "euler_ancestral"}, "Eta: 0.5"),
        ("Sampler: DDIM, Clip skip: 2, RNG: GPU", {"sampler": "ddim"}, "Clip skip: 2, RNG: GPU"),
        ("Model: v1-5, Denoising strength: 0.5", {}, "Model: v1-5, Denoising strength: 0.5"),
    ],
)
def test_what_another_tool_did_and_we_do_not_is_said(
    tmp_path: Path, fields: str, asked: dict[str, object], lost: str | None
) -> None:
    found = written_in(foreign(tmp_path / "a.png", f"{FOREIGN}, {fields}"))
    plain = {"prompts": ("a cat",), "negatives": ("",), "seeds": (5,), "steps": 20, "guidance": 7, "size": (64, 32)}
    assert found.asked == plain | asked
    (warning,) = found.warnings
    assert warning.startswith(f"another-tool: {tmp_path / 'a.png'} was not drawn by qkv")
    assert warning.partition("not honoured: ")[2] == (lost or "")


@pytest.mark.parametrize("field", ["Steps: many", "Seed: 1.5", "CFG scale: x", "Size: 512", "Size: x"])
def test_fields_that_cannot_be_read_are_named(tmp_path: Path, field: str) -> None:
    path = foreign(tmp_path / "a.png", f"Sampler: Euler, Version: v1, Model hash: 1, {field}")
    with pytest.raises(InputError, match=f"its `parameters` cannot be read: {field}"):
        written_in(path)


def test_saving_fails_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="PNG files"):
        picture().save(tmp_path / "a.jpg")
    with pytest.raises(OutputError, match="No such file"):
        picture().save(tmp_path / "none" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        picture().save(tmp_path / "b.png")
    assert os.listdir(tmp_path) == ["b.png"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(b"\0" * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + start + b"".join(chunks) + end


def text(value: str) -> bytes:
    return chunk(b"tEXt", b"qkv\0" + value.encode("latin-1"))


HOSTILE = {
    "empty": b"",
    "html": b"<html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript": b"%!PS-Adobe-3.0\n",
    "gif": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "cut": png()[:40],
    "no text": png(),
    "a bomb of pixels": png(size=(30_000, 30_000)),
    "a bomb of text": png(chunk(b"zTXt", b"qkv\0\0" + zlib.compress(b"a" * (100 << 20)))),
    "an international bomb": png(chunk(b"iTXt", b"qkv\0\1\0\0\0" + zlib.compress(b"a" * (100 << 20)))),
    "long text": png(text("a" * (2 << 20))),
    "a chunk beyond the end": png()[:33] + struct.pack(">I", 2**31 - 1) + b"tEXtqkv\0",
    "not JSON": png(text("{")),
    "a list": png(text("[]")),
    "nested": png(text("[" * 100_000)),
    "a long number": png(text('{"seed": ' + "9" * 10_000 + "}")),
    "missing": png(text("{}")),
    "unknown key": png(text('{"__class__": 1}')),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError) as caught:
        written_in(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/none/a.png", "a\0b.png"])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(InputError):
        read(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError):
        read(tmp_path / "a.png")


@pytest.mark.parametrize(
    "change", [{"seed": -1}, {"steps": 10**9}, {"guidance": float("nan")}, {"size": [3, 3]}, {"sampler": "x"}]
)
def test_settings_that_cannot_be_are_no_request(tmp_path: Path, change: dict[str, object]) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("qkv", json.dumps(vars(SETTINGS) | change))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises((InputError, LookupError)):
        Request(**written_in(tmp_path / "a.png")[0])
