"""Searching pictures by words and by a picture: the nearest first, nothing computed twice, bad ones passed over."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qkv import cli
from qkv.errors import InputError, NotFoundError
from qkv.pictures.files import find_pictures, picture_named
from qkv.tasks import search_pictures as module
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.tasks.search import SearchProgress
from qkv.tasks.search_pictures import FoundPictures, save_sheet, search_pictures, searching_pictures

pytestmark = pytest.mark.processor

COLOURS = ["red", "green", "blue", "white", "black", "teal", "orange"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, colour in enumerate(COLOURS):
        noise = rng.integers(0, 60, (30 + number, 40, 3))
        pixels = np.clip(np.asarray(Image.new("RGB", (40, 30 + number), colour)) + noise, 0, 255)
        suffix = ("png", "jpg", "webp")[number % 3]
        Image.fromarray(pixels.astype(np.uint8)).save(place / ("more" if number > 4 else "") / f"{colour}.{suffix}")
    (place / "notes.txt").write_text("no picture")
    (place / ".hidden.png").write_bytes((place / "red.png").read_bytes())
    return place


def names(found: FoundPictures) -> list[str]:
    return [hit.file.stem for hit in found.hits]


def test_the_nearest_first(folder, tiny_clip, home):
    found = search_pictures("a red fish", folder, model=tiny_clip, dtype="float32")
    embedder = load_clip_embedder(tiny_clip, dtype="float32")
    files = {file.stem: file for file in folder.rglob("*.*") if file.stem in COLOURS}
    seen = [embedder.see(Image.open(files[colour])) for colour in COLOURS]
    cosines = embedder.embed_pixels(seen) @ embedder.embed_texts(["a red fish"]).vectors[0]
    order = np.argsort(-cosines)
    assert names(found) == [COLOURS[i] for i in order]
    np.testing.assert_allclose([hit.score for hit in found.hits], cosines[order], atol=1e-6)
    assert (found.pictures, found.computed, found.skipped, found.warnings) == (7, 7, (), ())
    assert len(search_pictures("a red fish", folder, model=tiny_clip, top=2).hits) == 2


def test_by_a_picture(folder, tiny_clip, home, tmp_path):
    query = tmp_path / "query"  # its name says nothing
    shutil.copy(folder / "blue.webp", query)
    found = search_pictures(query, folder, model=tiny_clip)
    assert names(found)[0] == "blue"
    assert found.hits[0].score == pytest.approx(1, abs=1e-3)


def test_nothing_is_computed_twice(folder, tiny_clip, home):
    first = search_pictures("a cat", folder, model=tiny_clip)
    shutil.move(folder / "red.png", folder / "more" / "moved.png")  # the content counts
    shutil.copy(folder / "green.jpg", folder / "copy.jpg")
    Image.new("RGB", (9, 9), "purple").save(folder / "new.png")
    again = search_pictures("a cat", folder, model=tiny_clip)
    assert (first.computed, again.computed, again.pictures) == (7, 1, 9)
    scores = {hit.file.stem: hit.score for hit in again.hits}
    assert scores["moved"] == next(hit.score for hit in first.hits if hit.file.stem == "red")
    assert scores["copy"] == scores["green"]
    other = "bfloat16" if load_clip_embedder(tiny_clip).stamp.endswith("float32") else "float32"
    assert search_pictures("a cat", folder, model=tiny_clip, dtype=other).computed == 8  # other vectors


def test_an_index_that_was_broken_off_goes_on(folder, tiny_clip, home, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    events = searching_pictures("a cat", folder, model=tiny_clip)
    assert [next(events) for _ in range(4)] == [
        SearchProgress(0, 7),
        SearchProgress(2, 7),
        SearchProgress(4, 7),
        SearchProgress(6, 7),
    ]
    events.close()
    assert search_pictures("a cat", folder, model=tiny_clip).computed == 1


def test_bad_pictures_are_named_and_passed_over(folder, tiny_clip, home):
    data = (folder / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "old.gif").write_bytes(b"GIF89a")
    found = search_pictures("a cat", folder, model=tiny_clip)
    assert sorted(names(found)) == sorted(COLOURS)
    reasons = {one.file.name: one.reason for one in found.skipped}
    assert reasons.pop("cut.png").startswith("its PNG data is broken: ")
    assert reasons == dict.fromkeys(["drawing.png", "old.gif"], "it is not a PNG, JPEG or WebP picture")


def test_where_nothing_can_be_kept(folder, tiny_clip, home):
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file is in the way")
    found = search_pictures("a cat", folder, model=tiny_clip)
    assert len(found.hits) == 7
    assert "the vectors are not kept for the next search" in found.warnings[0]


def test_the_sheet(folder, tiny_clip, home):
    Image.new("RGB", (800, 3), "red").save(folder / "long.png")
    found = search_pictures("a cat", folder, model=tiny_clip)
    (folder / "green.jpg").unlink()  # meanwhile
    sheet = found.sheet()
    assert sheet.width == 5 * (module.SIDE + 6) + 6
    save_sheet(sheet, folder / "sheet.png")
    assert [one.file.stem for one in find_pictures(folder) if one.file.stem in ("sheet", "red")] == ["red"]
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no picture that was found can be read any more"):
        found.sheet()


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query(query, folder, tiny_clip):
    with pytest.raises(InputError, match="the query is empty"):
        search_pictures(query, folder, model=tiny_clip)


def test_names_and_words(tmp_path, monkeypatch):
    """A query is a picture if there is such a file; the name of a picture that is not there is an error."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (5, 5)).save("cat.png")
    shutil.copy("cat.png", "cat")
    Path("dog").write_text("words")
    assert picture_named("cat.png") == Path("cat.png")
    assert picture_named("cat") == Path("cat")
    for words in ("dog", "a dog", "a dog in dog.png", "x" * 5000, "a\0b", ".", "/dev/zero"):
        assert picture_named(words) is None
    with pytest.raises(NotFoundError, match="there is no picture 'dog.PNG'"):
        picture_named("dog.PNG")


def test_places_without_pictures(tmp_path, tiny_clip, home):
    for nowhere in ("nowhere", "x" * 5000):
        with pytest.raises(NotFoundError, match="there is no file or folder"):
            search_pictures("x", tmp_path / nowhere, model=tiny_clip)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"there is no picture in .*; name a folder"):
        search_pictures("x", tmp_path, model=tiny_clip)
    with pytest.raises(InputError, match=r"notes.txt: it is not a PNG"):
        search_pictures("x", tmp_path / "notes.txt", model=tiny_clip)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"a.png: its PNG data is broken"):
        search_pictures("x", tmp_path, model=tiny_clip)
    with pytest.raises(InputError, match="top=0 is out of range"):
        search_pictures("x", tmp_path, model=tiny_clip, top=0)


def test_the_command(folder, tiny_clip, home, tmp_path):
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    command = [sys.executable, "-m", "qkv", "search", "a red fish", folder, "--model", tiny_clip, "-k", "3"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    sheet, *ranked = ran.stdout.splitlines()
    assert sheet == "search-a-red-fish.png"
    with Image.open(tmp_path / sheet) as image:
        assert image.format == "PNG"
    found = search_pictures("a red fish", folder, model=tiny_clip, top=3)
    assert ranked == [f"{hit.score:6.3f}  {hit.file}" for hit in found.hits]
    assert re.fullmatch(r"qkv: skipped \S+bad.jpg: its JPEG data is broken: [^\n]+\n", ran.stderr)


def test_ctrl_c_loses_next_to_nothing(tiny_clip, home, tmp_path):
    place, count = tmp_path / "many", 1000
    place.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (number % 256, number // 256, 0)).save(place / f"{number:04}.png", compress_level=1)
    command = [sys.executable, "-m", "qkv", "search", "a dog", place, "--model", tiny_clip, "--json"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background of a shell ignores it
    running = subprocess.Popen(
        command, cwd=tmp_path, preexec_fn=heard, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline:
        if any(keys.stat().st_size for keys in home.glob("vectors/*/keys")):
            break
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60) == ("", "")
    assert running.returncode == 130
    assert list(tmp_path.glob("*.png")) == []
    found = search_pictures("a dog", place, model=tiny_clip)
    assert found.pictures == count
    assert 0 < found.computed <= count - module.CHUNK


def test_the_command_as_json_and_by_a_picture(folder, tiny_clip, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["search", folder / "blue.webp", folder, "--model", tiny_clip, "--json", "-o", "found.png"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 0
    first, *hits = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"sheet": "found.png", "pictures": 7, "computed": 7, "skipped": 0}
    assert Path(hits[0]["file"]).name == "blue.webp"
    assert len(hits) == 7


def test_what_there_is_more_of_is_searched(folder, tiny_clip, tiny_bert, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        (folder / f"{number}.txt").write_text("a dog in a suit")

    def run(*options: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["search", "a dog", str(folder), "-k", "1", *map(str, options)])
        return int(ended.value.code or 0), *capsys.readouterr()

    assert "a dog in a suit" in run("--model", tiny_bert())[1]  # 9 texts, 7 pictures
    assert run("--pictures", "--model", tiny_clip)[1].startswith("search-a-dog.png\n")
    code, out, err = run("--texts", "-o", "x.png")
    assert (code, out) == (2, "")
    assert err == "qkv: error: -o is for pictures; leave it or --texts out\n"
    code, _, err = run("--pictures", "-o", "x.jpg")
    assert code == 2
    assert "ends in .png" in err


def test_what_a_models_files_say_and_we_do_not_know(folder, tiny_clip, home, tmp_path):
    shutil.copytree(tiny_clip, tmp_path / "odd")
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        said = json.loads((tmp_path / "odd" / file).read_text())
        (tmp_path / "odd" / file).write_text(json.dumps(said | {"gate": 1}))
    for query in ("a dog", str(next(folder.glob("*.png")))):
        warnings = search_pictures(query, folder, model=tmp_path / "odd").warnings
        assert [warning.split()[1] for warning in warnings] == [
            "config.json",
            "preprocessor_config.json",
            "odd/tokenizer_config.json",
        ]
