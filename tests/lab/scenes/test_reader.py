"""The judge of scenes: what it reads, how captions are scored, and a small one that learns."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.judge import scenes as recipe
from lab.judge.facts import SLOTS, classes, facts, kind, only, said
from lab.judge.files import load_reader, save_reader
from lab.judge.questions import Questions
from lab.judge.reader import DOUBT, Reader, ReaderConfig, Shape, read
from lab.judge.scenes import Exam, Lessons, log_odds, reading, wear
from lab.scenes.imagine import STYLE_SHARES
from qkv.errors import CheckpointError, ConfigError
from qkv.train.recipes import run

SMALL = Shape(stem=8, dims=(8, 16, 24), layers=(1, 1, 1), looks=1, heads=2, ffn_dim=32)


@pytest.fixture(scope="module")
def known(words):
    return classes(words)


@pytest.fixture
def judge(known):
    torch.manual_seed(0)
    return Reader(ReaderConfig(shape=SMALL, classes=known)).eval()


def test_a_caption_scores_its_facts(judge, scenes, words):
    """The plain sum of log-probabilities, each mixed with some doubt."""
    pictures = scenes.pictures(3)
    found = read(judge, pictures)
    logits = judge(torch.from_numpy(pictures.transpose(0, 3, 1, 2)).float() / 127.5 - 1)
    for row in range(3):
        told = only(facts(scenes.facts(row), words), said(scenes.facts(row)))
        expected = 0.0
        for slot, value in told.items():
            values = judge.config.classes[kind(slot)]
            share = logits[slot][row].softmax(-1)[values.index(value)].item()
            expected += math.log((1 - DOUBT) * share + DOUBT / len(values))
        assert found.score(row, told) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(KeyError):
        found.score(0, {"place": "atlantis"})


def test_no_single_fact_decides(judge, scenes):
    with torch.no_grad():
        judge.heads["place"].bias[0] = 1e4
    found = read(judge, scenes.pictures(1))
    assert found.score(0, {"place": "mars"}) == pytest.approx(math.log(DOUBT / 16), abs=1e-3)
    assert found.best(0, "place") == "plain"


def test_ties_count_against_the_picture(judge, scenes, many):
    for parameter in judge.heads.parameters():
        torch.nn.init.zeros_(parameter)
    questions = Questions(scenes, imagined=1000)
    asked = [questions.of(row, number) for number, row in enumerate(many["ride"][:4])]
    assert read(judge, scenes.pictures(4)).ranks(asked).tolist() == [99] * 4


def test_a_judge_without_an_eye_scores_chance(judge, scenes, many):
    """Pictures of noise, and weights of chance: no question is answered by its captions alone."""
    questions = Questions(scenes, imagined=2000)
    rows = [row for event in sorted(many) for row in many[event][:14]]
    asked = [questions.of(row, number) for number, row in enumerate(rows)]
    noise = np.random.default_rng(0).integers(0, 256, (len(rows), 128, 128, 3), np.uint8)
    ranks = read(judge, noise).ranks(asked)
    assert float((ranks == 0).float().mean()) < 0.05
    assert 30 < float(ranks.float().mean()) < 70


def test_larger_drawings_are_scaled_down(judge, scenes):
    picture = scenes.pictures(1)
    large = picture.repeat(4, axis=1).repeat(4, axis=2)
    assert large.shape == (1, 512, 512, 3)
    for slot, logs in read(judge, picture).logs.items():
        np.testing.assert_allclose(read(judge, large).logs[slot], logs, atol=2e-2)


def test_the_folder_gives_back_the_judge(tmp_path, judge, scenes):
    save_reader(tmp_path, judge.half().float())
    again = load_reader(tmp_path)
    assert again.config == judge.config
    pictures = scenes.pictures(2)
    for slot, logs in read(judge, pictures).logs.items():
        np.testing.assert_allclose(read(again, pictures).logs[slot], logs, atol=1e-5)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_reader(tmp_path)


def test_every_slot_needs_classes(known):
    with pytest.raises(ConfigError, match=r"classes\.worn"):
        ReaderConfig(classes={**known, "worn": ("",)})


def test_lessons_depend_on_the_step_alone(scenes, words, known):
    lessons = Lessons(scenes, known, batch=4, worn=0.5, steps=10)
    first, again, other = lessons(8), lessons(8), lessons(9)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pictures"], other["pictures"])
    assert [lessons.side(step) for step in (0, 2, 4, 6, 9)] == [64, 80, 96, 112, 128]  # small ones come first
    assert first["pictures"].shape == (4, 3, 128, 128)
    told = [facts(scenes.facts(number), words) for number in range(32, 36)]
    for slot in SLOTS:
        assert [known[kind(slot)][i] for i in first[slot]] == [row[slot] for row in told]


def test_worn_pictures_show_the_same(scenes):
    pictures = scenes.pictures(8)
    clean, bad = (wear(pictures, share, 128, random.Random(1)) for share in (0.0, 1.0))
    plain = torch.from_numpy(pictures.transpose(0, 3, 1, 2)).float() / 127.5 - 1
    assert clean.shape == bad.shape == plain.shape
    assert bad.abs().max() <= 1
    off, further = ((picture - plain).abs().mean((1, 2, 3)) for picture in (clean, bad))
    assert (off < further).all()
    # Worn down, each is still nearest to itself.
    small = [torch.nn.functional.avg_pool2d(x, 16).flatten(1) for x in (bad, plain)]
    assert torch.cdist(*small).argmin(1).tolist() == list(range(8))


def test_how_often_a_class_is_drawn(scenes, known):
    odds = log_odds(scenes, known, 400, torch.device("cpu"))
    often = [scenes.facts(number).event for number in range(400)].count("alone")
    assert float(odds["event"][known["event"].index("alone")].exp()) == pytest.approx((often + 1) / 417)
    assert all(abs(float(row.exp().sum()) - 1) < 1e-5 for row in odds.values())


def test_overfits_one_batch(scenes, known):
    torch.manual_seed(0)
    judge = Reader(ReaderConfig(shape=replace(SMALL, dims=(16, 24, 32)), classes=known))
    batch = Lessons(scenes, known, batch=8, worn=0.0, steps=10)(0)
    odds = {slot: torch.zeros(len(known[kind(slot)])) for slot in SLOTS}
    optimizer = torch.optim.Adam(judge.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = reading(odds, judge, batch, torch.Generator()).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_recipe_trains_a_judge(tmp_path, scenes, monkeypatch):
    """It keeps a judge with each validation, and that opens; what it learns in so few steps is not looked at."""
    asked = replace(scenes, kinds=None, styles=STYLE_SHARES)
    monkeypatch.setattr(recipe, "own_scenes", lambda seed, hidden, progress: replace(asked, seed=seed))
    monkeypatch.setattr(recipe, "EXAMINED", 6)
    monkeypatch.setattr(recipe, "COUNTED", 200)
    file = tmp_path / "judge.toml"
    file.write_text(
        """task = "scenes-judge"
batch = 4
[model]
stem = 8
dims = [8, 16, 24]
layers = [1, 1, 1]
looks = 1
heads = 2
ffn_dim = 32
[fit]
steps = 3
dtype = "fp32"
sample_every = 2
log_every = 1
"""
    )
    run(file, folder=tmp_path / "run", progress=False)
    assert load_reader(tmp_path / "run" / "model").config.shape == SMALL
    assert '"top1_real"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_an_exam_finds_a_judge_that_knows(scenes, known, monkeypatch):
    """A judge that reads what the scenes are is right every time."""
    exam = Exam.of(scenes, 8)
    judge = Reader(ReaderConfig(shape=SMALL, classes=known)).eval()

    def knows(pictures):
        rows = [{slot: known[kind(slot)].index(told[slot]) for slot in SLOTS} for told in exam.told]
        return {
            slot: 20.0 * torch.nn.functional.one_hot(torch.tensor([row[slot] for row in rows]), len(known[kind(slot)]))
            for slot in SLOTS
        }

    monkeypatch.setattr(Reader, "forward", lambda self, pictures: knows(pictures))
    numbers = exam.ask(judge, 128)
    assert numbers["top1_real"] == numbers["top1_worn"] == numbers["event_real"] == numbers["name_1_worn"] == 1.0
