"""`python -m lab eval scenes` on a made-up world: what is asked and compared, when it is void; and the blind look."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lab import cli
from lab.judge.facts import classes, facts, kind
from lab.judge.files import save_reader
from lab.judge.questions import Questions
from lab.judge.reader import Read, Reader, ReaderConfig, Shape
from lab.measure import blind, scene_sets
from lab.measure import scenes as measure
from lab.measure.scene_sets import DIFFERING, SIDES, Sets, prompts, spoken
from lab.measure.scenes import Album, Evaluation, ask, run, table
from lab.scenes.heldout import held_out
from qkv.errors import InputError, NotFoundError, OutputError

SMALL = Shape(stem=8, dims=(8, 16, 24), layers=(1, 1, 1), looks=1, heads=2, ffn_dim=32)


@pytest.fixture(scope="module")
def sets(scenes):
    made = Sets(scenes)
    object.__setattr__(made, "questions", Questions(scenes, imagined=2000))
    return made


@pytest.fixture
def judge_folder(tmp_path, words):
    torch.manual_seed(0)
    save_reader(tmp_path / "judge", Reader(ReaderConfig(shape=SMALL, classes=classes(words))))
    return tmp_path / "judge"


@pytest.fixture
def few(monkeypatch, sets):
    """A small table."""
    monkeypatch.setattr(measure, "COPIED", 60)
    monkeypatch.setattr(measure, "EXAMINED", 20)
    monkeypatch.setattr(measure, "Sets", lambda scenes: sets)
    monkeypatch.setattr(measure, "SEEDS", 1)


def knowing(monkeypatch, vocabulary):
    """A judge that recognises the real picture of a scene, whatever it is shown before."""
    known = classes(vocabulary)
    seen: dict[bytes, dict[str, str]] = {}
    drawn = scene_sets.render.draw

    def draw(scene, *rest):
        picture = drawn(scene, *rest)
        seen[picture.tobytes()] = facts(scene, vocabulary)
        return picture

    def read(judge, pictures):
        logs = {}
        for slot in facts(next(iter(many_scenes(vocabulary))), vocabulary):
            rows = np.zeros((len(pictures), len(known[kind(slot)])), np.float32)
            for row, picture in enumerate(pictures):
                told = seen.get(picture.tobytes())
                if told:
                    rows[row, known[kind(slot)].index(told[slot])] = 5.0
            logs[slot] = rows
        return Read(logs, {name: {value: i for i, value in enumerate(found)} for name, found in known.items()})

    monkeypatch.setattr(scene_sets.render, "draw", draw)
    monkeypatch.setattr(measure, "read", read)
    return seen


def many_scenes(vocabulary):
    yield prompts()[0].scene(0)


def noise(prompt, negative, seed):
    rng = np.random.default_rng([seed, len(prompt)])
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))


def test_the_prompts_say_what_they_show(words):
    """Every fact of the table's prompts can be asked about, and a scene of it drawn in both of the house's styles."""
    rows = prompts()
    assert len(rows) == 26
    assert [row.negative for row in rows[:6]] == [None] * 5 + ["yellow color"]
    known = classes(words)
    for row in rows:
        scenes = [row.scene(turn) for turn in range(8)]
        assert {scene.style for scene in scenes} <= {"noto", "gradient"}
        for scene in scenes:
            told = facts(scene, words)
            assert all(told[slot] in known[kind(slot)] for slot in row.slots())
        if "place" in row.silent:
            assert not {"place", "condition"} & set(row.slots())
            assert len({scene.place for scene in scenes}) > 1
    slots = {row.text: row.slots() for row in rows}
    assert "condition" in slots["a house in the snow at night"]
    assert "condition" not in slots["a penguin on the beach"]
    assert "count" in slots["three strawberries on a white background"]
    assert "count" not in slots["dogs playing poker"]


def test_a_prompt_for_what_training_never_sees(scenes, sets, words):
    """A cell that is held out: the picture is drawn in the house's other style. A concept that is: an error."""
    panda = next(row for row in prompts() if "panda" in row.text)

    def without(*cells):
        drawn = replace(words, drawn=words.drawn - {(style, "1F43C") for style in cells})
        made = Sets(replace(scenes, vocabulary=drawn))
        object.__setattr__(made, "questions", sets.questions)
        return made

    assert {one.scene.style for one in without("noto").of_prompt(panda, 8)} == {"gradient"}
    assert {one.scene.style for one in without().of_prompt(panda, 8)} == {"noto", "gradient"}
    with pytest.raises(InputError, match="1F43C"):
        without("noto", "gradient").of_prompt(panda, 1)


def test_held_out_rows_are_held_out(sets):
    assert all(held_out(one.scene) == set() for one in sets.of_kinds(frozenset(), 20))
    for name in measure.KINDS:
        assert all(held_out(one.scene) == {name} for one in sets.of_kinds(frozenset([name]), 5))


@pytest.mark.parametrize("language", SIDES)
def test_of_two_the_prompt_says_who_is_left(language, scenes, sets):
    for one in sets.differing("left, right", 8):
        text = spoken(scenes, one.scene, one.number, language)
        assert any(side in text for side in SIDES[language])


def test_captions_that_differ_in_one_thing(sets, words):
    asked = {name: sets.differing(name, 4) for name in DIFFERING}
    assert {name: len(rows[0].question) for name, rows in asked.items()} == {
        "left, right": 2, "above, below": 2, "on, under": 2, "in front, behind": 2, "rider, mount": 2,
        "how many of 2 to 5": 4, "which of 12 colours": 12, "painted how, of 8 ways": 8, "where, of 16 places": 16,
    }  # fmt: skip
    for name, rows in asked.items():
        for one in rows:
            true, *others = one.question
            assert true.items() <= facts(one.scene, words).items()
            assert all(other != true for other in others), name


def test_equal_prompts_are_drawn_once_and_kept(tmp_path, sets):
    asked = ask(sets, 0.05)
    counted: list[tuple[str, str | None, int]] = []

    def draw(prompt, negative, seed):
        counted.append((prompt, negative, seed))
        return noise(prompt, negative, seed)

    drawn = Album(tmp_path / "kept", "abc", draw).draw_all(asked, False)
    assert len(counted) == len(set(counted)) < sum(map(len, asked.values()))
    assert {pictures.shape[1:] for pictures in drawn.values()} == {(128, 128, 3)}
    again = Album(tmp_path / "kept", "abc", None).draw_all(asked, False)  # nothing is drawn anew
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)
    with pytest.raises(TypeError):
        Album(tmp_path / "kept", "another model", None).draw_all(asked, False)


def test_a_drawer_that_knows_scores_as_real_scenes(tmp_path, scenes, sets, few, judge_folder, monkeypatch):
    knowing(monkeypatch, scenes.vocabulary)
    known = {one.prompt + str(one.seed): one for rows in ask(sets, 0.05).values() for one in rows}

    def draw(prompt, negative, seed):
        prompt = prompt.replace("\\", "")
        return Image.fromarray(sets.real([known[prompt + str(seed)]])[0])

    result = run(folder=tmp_path / "out", sheet=tmp_path / "sheets", count=10, draw=draw, judge=judge_folder,
                 scenes=scenes, progress=False)  # fmt: skip
    assert not result["void"]
    for name, row in result["sets"].items():
        assert row["real"]["value"] == 1.0, name
        assert row["drawn"]["value"] == 1.0, name
        assert row["chance"] == pytest.approx(1 / row["of"])
    assert result["sets"]["seen"]["copying"]["value"] < 0.5  # a training scene is another one
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert (tmp_path / "out" / "table.txt").read_text() == table(result)
    assert len(list((tmp_path / "sheets").glob("*.png"))) == len(result["sets"])


def test_random_pictures_score_chance(scenes, sets, judge_folder, words):
    """Whatever the question, and however many captions it has."""
    torch.manual_seed(1)
    evaluation = Evaluation(Reader(ReaderConfig(shape=SMALL, classes=classes(words))).eval(), sets)
    for name, many, low, high in (("left, right", 60, 0.25, 0.75), ("where, of 16 places", 60, 0.0, 0.2)):
        asked = sets.differing(name, many)
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (many, 128, 128, 3), np.uint8)
        assert low <= evaluation._score(pictures, asked).value <= high, name


def test_void_where_the_judge_fails(tmp_path, scenes, few, judge_folder):
    result = run(folder=tmp_path / "out", count=10, draw=noise, judge=judge_folder, scenes=scenes, progress=False)
    assert result["void"]
    assert table(result).startswith("VOID")
    assert result["sets"]["seen"]["drawn"]["value"] < 0.3


def test_what_cannot_be_measured(tmp_path, scenes, judge_folder):
    with pytest.raises(InputError, match="too few"):
        run(folder=tmp_path, count=3, draw=noise, judge=judge_folder, scenes=scenes)
    with pytest.raises(NotFoundError, match="train one"):
        run(folder=tmp_path, draw=noise, judge=tmp_path / "nobody", scenes=scenes)


def test_the_copy_is_a_training_scenes_picture(sets, judge_folder, monkeypatch, words):
    monkeypatch.setattr(measure, "COPIED", 40)
    evaluation = Evaluation(Reader(ReaderConfig(shape=SMALL, classes=classes(words))), sets)
    trained = replace(sets.scenes, seed=measure.TRAINED, kinds=frozenset())
    pictures = trained.pictures(40)
    for one, copy in zip(asked := sets.of_kinds(frozenset(), 4), evaluation.copies(asked)):
        assert any(np.array_equal(copy, picture) for picture in pictures), one.prompt


def test_the_verb(tmp_path, scenes, few, judge_folder, monkeypatch, capsys):
    monkeypatch.setattr(measure, "drawer", lambda model: noise)
    monkeypatch.setattr(measure, "fingerprint", lambda path: "abc")
    monkeypatch.setattr(measure.dataset, "load", lambda seed, progress: scenes)
    monkeypatch.setattr(Evaluation, "redrawn", lambda self, vae, asked: measure.Score(0.5, 0.1))
    where = ["--judge", str(judge_folder), "--folder", str(tmp_path / "out"), "--count", "10"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "scenes", *where])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "redrawn by its autoencoder" in said
    assert "dogs playing poker" in said


def test_a_blind_look_tells_no_prompt(tmp_path):
    key = blind.draw_blind("emblem", tmp_path / "look", draw=noise, progress=False)
    files = sorted((tmp_path / "look").iterdir())
    assert [file.name for file in files] == [f"{number:02d}.png" for number in range(1, 33)]
    told = json.loads(key.read_text())["pictures"]
    texts = [told[file.stem]["prompt"] for file in files]
    assert len(set(texts)) == 15  # one of the six comes with and without a negative prompt
    assert sorted(row["seed"] for row in told.values()) == [1] * 16 + [2] * 16
    assert texts != [prompt.text for prompt, _ in blind.shown()]  # shuffled
    for file in files:
        with Image.open(file) as image:
            assert not image.info
        assert not any(word in file.read_bytes() for word in (b"prompt", b"poker", b"parameters"))
    with pytest.raises(OutputError):
        blind.draw_blind("emblem", tmp_path / "look", draw=noise, progress=False)


def test_blind_by_the_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blind, "drawer", lambda model: noise)
    monkeypatch.setattr(sys, "argv", ["lab"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "scenes", "--blind", str(tmp_path / "look"), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["key"] == str(tmp_path / "look-key.json")
