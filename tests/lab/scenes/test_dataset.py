"""The scenes as a data set, and the verb that draws a sheet of them."""

import pytest
from PIL import Image

from lab import cli
from lab.emblem import dataset as emblem
from lab.scenes import dataset
from lab.scenes.sprites import STYLES


def test_every_licence_is_in_the_notice():
    text = dataset.notice()
    for icons in emblem.table().sets:
        assert (icons.title in text) == (icons.style in STYLES)
    assert emblem.table().names.title in text
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "Unicode-3.0"):
        assert f"{licence}: https://spdx.org" in text
    assert "CC-BY-SA" not in text


def test_a_sheet_shows_every_scene(scenes):
    sheet = dataset.sheet(scenes, 5, columns=3)
    assert sheet.width > 3 * 256
    assert sheet.height > 2 * 256


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_the_verb_draws_a_sheet(scenes, monkeypatch, tmp_path, capsys):
    asked = {}

    def load(seed, **how):
        asked.update(how, seed=seed)
        return scenes

    monkeypatch.setattr(dataset, "load", load)
    path = tmp_path / "sheet.png"
    assert run("data", "scenes", "--sheet", path, "--count", 2, "--seed", 9, "--held-out", "ride") == 0
    assert Image.open(path).width > 2 * 256
    assert (asked["seed"], asked["kinds"]) == (9, frozenset(["ride"]))


def test_an_unknown_kind_is_one_line(capsys):
    assert run("data", "scenes", "--held-out", "rides") == 2
    assert "did you mean ride" in capsys.readouterr().err


def test_the_notice_needs_no_data(capsys):
    assert run("data", "scenes", "--notice") == 0
    assert "Twemoji" in capsys.readouterr().out
