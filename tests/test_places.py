"""Where `qkv draw` writes: a name that we choose is a new file's, whoever writes beside us; a given one is replaced."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from qkv.cli.pictures import SHEET, Target, changed
from qkv.errors import OutputError
from qkv.pictures.picture import Picture, Settings

SETTINGS = Settings(
    prompt="a red apple",
    seed=1,
    model="emblem",
    fingerprint="0123456789ab",
    sampler="ddim",
    steps=2,
    guidance=1.0,
    size=(8, 8),
    device="cpu",
    dtype="float32",
    threads=1,
    versions={},
)


def picture(number: int = 0) -> Picture:
    return Picture(image=Image.new("RGB", (8, 8), (number, 0, 0)), settings=SETTINGS)


def test_a_name_is_taken_when_it_is_given(tmp_path: Path) -> None:
    place = Target(f"{tmp_path}/g/")
    names = [place.of(picture(), 0, 1).name for _ in range(3)]
    assert names == ["a-red-apple-1.png", "a-red-apple-1-1.png", "a-red-apple-1-2.png"]


def test_until_it_is_written_there_is_no_file(tmp_path: Path) -> None:
    """Who looks on sees a whole picture or none."""
    place = Target(str(tmp_path))
    path = place.of(picture(), 0, 1)
    assert list(tmp_path.glob("[!.]*")) == []
    place.write(path, picture().save)
    assert os.listdir(tmp_path) == [path.name]


def test_a_heat_map_s_name_is_its_picture_s(tmp_path: Path) -> None:
    (tmp_path / f"a-red-apple-1{SHEET}").write_bytes(b"")
    assert Target(str(tmp_path)).of(picture(), 0, 1).name == "a-red-apple-1-1.png"


def test_threads_leave_a_picture_each(tmp_path: Path) -> None:
    def run(number: int) -> Path:
        place = Target(str(tmp_path))
        return place.write(place.of(picture(), 0, 1), picture(number).save)

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(run, range(64), timeout=60))
    assert len(set(paths)) == 64
    assert {Image.open(path).getpixel((0, 0)) for path in paths} == {(number, 0, 0) for number in range(64)}


def test_processes_leave_a_picture_each(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qkv", "draw", "a red apple", "--seed", "1", "--steps", "1", "--model", str(tiny)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, "-o", f"{tmp_path}/g/"], stdout=subprocess.PIPE, env=environment) for _ in range(8)
    ]
    told = {each.communicate(timeout=200)[0].decode().strip() for each in running}
    assert [each.returncode for each in running] == [0] * 8
    assert told == {str(path) for path in (tmp_path / "g").iterdir()}
    assert len(told) == 8
    assert len({Path(path).read_bytes() for path in told}) == 1


def test_a_name_that_is_given_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    for number in (1, 2):
        place = Target(str(file))
        assert place.write(place.of(picture(), 0, 1), picture(number).save) == file
    assert Image.open(file).getpixel((0, 0)) == (2, 0, 0)
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_fails_leaves_no_name(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise OutputError("the disk is full")

    place = Target(str(tmp_path))
    with pytest.raises(OutputError):
        place.write(place.of(picture(), 0, 1), fail)
    assert os.listdir(tmp_path) == []
    (tmp_path / "kept.png").write_bytes(b"mine")
    with pytest.raises(OutputError):
        Target(str(tmp_path / "kept.png")).write(tmp_path / "kept.png", fail)
    assert (tmp_path / "kept.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("fingerprint", "said"),
    [("0123456789ab", []), ("ffffffffffff", ["model-changed"]), ("45dee52b00", ["model-unknown"])],
)
def test_what_is_said_of_the_model_when_drawn_again(fingerprint: str, said: list[str]) -> None:
    """Ten digits are of an older fingerprint, which the same model no longer has."""
    warnings = changed(replace(SETTINGS, fingerprint=fingerprint), SETTINGS, Path("a.png"))
    assert [warning.partition(":")[0] for warning in warnings] == said
