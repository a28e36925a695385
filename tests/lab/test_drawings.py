"""`python -m lab eval emblem` on a made-up world: what is asked, what is compared, and when it is void."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.emblem.captions import plain_caption
from lab.emblem.dataset import EmblemData
from lab.judge.files import save_judge
from lab.judge.network import Judge, JudgeConfig, ranks
from lab.judge.training import picture_features
from lab.measure import drawings as emblem
from lab.measure.drawings import LANGUAGES, YELLOW, JudgedData, pick, table, yellow_cut
from qkv.errors import InputError, NotFoundError
from qkv.models.clip import TextConfig
from qkv.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def random_judge() -> tuple[Judge, Tokenizer]:
    torch.manual_seed(0)
    text = TextConfig(
        vocab=514, context=48, dim=16, layers=1, heads=2, ffn_dim=32, proj_dim=16, start=512, end=513, pad=513
    )
    return Judge(JudgeConfig(text=text, stem=8, dims=(8, 16), layers=(1, 1))).eval(), train_tokenizer(["a b"], 514)


@pytest.fixture
def judge_folder(
    tmp_path: Path, world: EmblemData, random_judge: tuple[Judge, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(emblem.dataset, "load", lambda: world)
    save_judge(tmp_path / "judge", *random_judge)
    return tmp_path / "judge"


class Recall:
    """A generator that knows the picture of every plain caption, and draws noise for others."""

    def __init__(self, data: EmblemData) -> None:
        self.known = {
            plain_caption(item, language=code): data.pictures[item.row]
            for item in data.items
            for code in ("en", *LANGUAGES)
        }
        self.asked: list[tuple[str, str | None, int]] = []

    def __call__(self, prompt: str, negative: str | None, seed: int) -> Image.Image:
        self.asked.append((prompt, negative, seed))
        if prompt in self.known:
            return Image.fromarray(self.known[prompt])
        # Yellow squares, which the negative prompt makes a quarter as large; of another size than the judge's.
        picture = np.full((64, 64, 3), 255, np.uint8)
        side = 16 if negative else 32
        picture[:side, :side] = (255, 204, 34)
        return Image.fromarray(picture)


def test_a_perfect_drawer_scores_as_real_pictures_and_copies(
    judge_folder: Path, tmp_path: Path, world: EmblemData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emblem, "TRUSTED", 0.0)
    draw = Recall(world)
    result = emblem.run(folder=tmp_path / "out", samples=40, draw=draw, judge=judge_folder, progress=False)
    assert not result["void"]
    for row in (*result["sets"].values(), *result["languages"].values()):
        assert row["drawn"] == row["real"]
        assert row["copies"]["drawn"] == row["copies"]["real"]
    seen = result["sets"]["seen"]
    assert seen["copying"] == seen["real"]  # the nearest caption to a seen one is itself
    assert seen["copies"]["drawn"]["value"] == 1
    assert result["copies"]["found"]["value"] > 0.8
    assert result["sets"]["unseen"]["copies"]["drawn"]["value"] < 0.1
    assert [result["sets"][name]["chance"] for name in ("seen", "unseen")] == [0.01, 0.05]
    assert result["distances"]["kernel"]["drawn"] == result["distances"]["kernel"]["real"]
    assert result["yellow"]["cut"]["value"] == pytest.approx(0.75, abs=0.1)
    assert [result["sets"][name]["count"] for name in result["sets"]] == [40, 30, 16, 30]

    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert (tmp_path / "out" / "table.txt").read_text() == table(result)
    sheets = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert sheets == {"seen", "cells", "tones", "unseen", *LANGUAGES, "yellow"}


def test_the_same_again_and_other_seeds_with_another_seed(
    judge_folder: Path, tmp_path: Path, world: EmblemData
) -> None:
    draws = [Recall(world) for _ in range(3)]
    first, again, other = (
        emblem.run(folder=tmp_path / "out", samples=10, seed=seed, draw=draw, judge=judge_folder, progress=False)
        for seed, draw in zip((0, 0, 1), draws)
    )
    assert first == again
    assert draws[0].asked == draws[1].asked
    assert [(prompt, seed + 1) for prompt, _, seed in draws[0].asked] == [(p, s) for p, _, s in draws[2].asked]
    assert other["sets"] == first["sets"]  # this drawer does not look at its seed
    english = {seed for _, _, seed in draws[0].asked[:10]}
    assert {seed for prompt, _, seed in draws[0].asked if prompt.endswith("Stil")} <= english  # the same noise
    negatives = Counter(negative for _, negative, _ in draws[0].asked)
    assert negatives["yellow"] == 2
    assert len({seed for prompt, _, seed in draws[0].asked if prompt.split(",")[0] in YELLOW}) == 2


def test_void_where_the_judge_fails(judge_folder: Path, tmp_path: Path, world: EmblemData) -> None:
    result = emblem.run(folder=tmp_path, samples=10, draw=Recall(world), judge=judge_folder, progress=False)
    assert result["void"]
    assert table(result).startswith("VOID")


@pytest.mark.parametrize(("cells", "tones", "void"), [(0.9, 0.9, False), (0.89, 1.0, True), (1.0, 0.89, True)])
def test_both_held_out_splits_must_be_judged_well(
    cells: float,
    tones: float,
    void: bool,
    judge_folder: Path,
    tmp_path: Path,
    world: EmblemData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trust = {"heldout_cell": emblem.Score(cells, 0.01), "heldout_tone": emblem.Score(tones, 0.01)}
    monkeypatch.setattr(JudgedData, "trust", lambda self, split: trust[split])
    result = emblem.run(folder=tmp_path, samples=10, draw=Recall(world), judge=judge_folder, progress=False)
    assert result["void"] is void
    assert table(result).startswith("VOID") is void


def test_a_random_judge_scores_chance(world: EmblemData, random_judge: tuple[Judge, Tokenizer]) -> None:
    judged = JudgedData(*random_judge, world)
    items = world.items[::3]
    features = picture_features(judged.judge, judged.real(items))
    found = ranks(judged.judge, judged.tokenizer, features, [judged.candidates.of(item) for item in items]).double()
    assert float((found == 0).double().mean()) < 0.05
    assert float(found.mean()) == pytest.approx(49.5, abs=8)


def test_the_judge_looks_at_every_held_out_picture(world: EmblemData, random_judge: tuple[Judge, Tokenizer]) -> None:
    judged = JudgedData(*random_judge, world)
    noise = judged.trust("heldout_cell").noise
    value = judged.trust("heldout_cell").value
    count = sum(item.split == "heldout_cell" for item in world.items)
    assert noise == pytest.approx((value * (1 - value) / count) ** 0.5)


def test_prompts_are_picked_once_for_all(world: EmblemData) -> None:
    train = [item for item in world.items if item.split == "train"]
    chosen = pick(train, 60)
    assert chosen == pick(random.Random(0).sample(train, len(train)), 60)
    assert pick(train, 200)[:60] == chosen
    assert len({(item.base, item.style) for item in chosen}) == 60
    everything = pick(train, 10**6)
    assert sorted(item.row for item in everything) == sorted(item.row for item in train)
    jobs = [item for item in everything[:200] if item.base.startswith("job")]
    assert 0.08 < sum(bool(item.tone) for item in jobs) / len(jobs) < 0.3  # weight 0.2 beside 1


def test_the_baseline_copies_from_training_alone(world: EmblemData, random_judge: tuple[Judge, Tokenizer]) -> None:
    judged = JudgedData(*random_judge, world)
    held_out = judged.items("heldout_cell")
    copied = judged.nearest(held_out, "en")
    assert {item.split for item in copied} == {"train"}
    assert sum(a.base == b.base for a, b in zip(held_out, copied)) > 0.9 * len(copied)
    german = judged.nearest(held_out, "de")
    assert sum(a.base == b.base for a, b in zip(held_out, german)) > 0.9 * len(german)


def test_yellow_cut_without_yellow_is_no_division_by_zero() -> None:
    white = np.full((4, 8, 8, 3), 255, np.uint8)
    assert yellow_cut(white, white)["without"] == {"value": 0.0, "noise": 0.0}


def test_faults_are_told(tmp_path: Path, judge_folder: Path) -> None:
    with pytest.raises(InputError, match="at least 10"):
        emblem.run(samples=3, judge=judge_folder)
    with pytest.raises(NotFoundError, match="unknown model"):
        emblem.run("emblme-nope", samples=10, judge=judge_folder, folder=tmp_path, progress=False)
