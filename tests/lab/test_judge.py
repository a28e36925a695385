"""The judge: its loss, its fairness to what is drawn, and a small one that learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.emblem.captions import plain_caption
from lab.emblem.dataset import EmblemData
from lab.emblem.items import Item
from lab.judge import training as recipe
from lab.judge.files import load_judge, save_judge
from lab.judge.network import Judge, JudgeConfig, embed_captions, ranks, tokenize
from lab.judge.training import JudgeBatches, augment, contrast, halve, mirrors, picture_features, top_1
from lab.train.batches import Draw, to_signed
from qkv.errors import CheckpointError, ConfigError
from qkv.models.clip import TextConfig
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.train.recipes import run

VOCAB = 514
NAMES = ["red", "green", "blue", "black"]
COLOURS = [(220, 20, 20), (20, 160, 40), (30, 60, 220), (0, 0, 0)]


def text_config(**values: int) -> TextConfig:
    shape = {"vocab": VOCAB, "context": 24, "dim": 32, "layers": 1, "heads": 2, "ffn_dim": 64, "proj_dim": 16}
    return TextConfig(**{**shape, "start": VOCAB - 2, "end": VOCAB - 1, "pad": VOCAB - 1, **values})  # type: ignore[arg-type]


def small_judge(seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    return Judge(JudgeConfig(text=text_config(), stem=8, dims=(8, 16), layers=(1, 1)))


def make_item(row: int, name: str, style: str = "flat", **values: object) -> Item:
    blank = Item(
        row=row, style=style, icon=str(row), concept=name, base=name, name=name, keywords=(), group="objects",
        subgroup="", tone="", gender="", colours=(), split="train", weight=1.0,
    )  # fmt: skip
    return replace(blank, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def squares() -> EmblemData:
    """Squares of four colours in three styles, which are sizes; one cell is held out."""
    rows = [(name, colour, side) for name, colour in zip(NAMES, COLOURS) for side in (32, 64, 96)]
    pictures = np.full((len(rows), 128, 128, 3), 255, np.uint8)
    items = []
    for row, (name, colour, side) in enumerate(rows):
        pictures[row, 64 - side // 2 : 64 + side // 2, 64 - side // 2 : 64 + side // 2] = colour
        style = {32: "flat", 64: "3d", 96: "noto"}[side]
        items.append(make_item(row, name, style, split={4: "heldout_cell", 8: "heldout_tone"}.get(row, "train")))
    return EmblemData(pictures=pictures, items=items)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["red green"], VOCAB)


def batches(data: EmblemData, tokenizer: Tokenizer, batch: int = 8) -> JudgeBatches:
    draw = Draw.of(range(len(data.items)), [1.0] * len(data.items), batch, 5)
    return JudgeBatches.of(data, tokenizer, 24, draw, steps=10)


def test_overfits_one_batch(squares: EmblemData, tokenizer: Tokenizer) -> None:
    judge, generator = small_judge(), torch.Generator()
    batch = batches(squares, tokenizer)(0)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = contrast(judge, batch, generator).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0] / 5


def test_batches_depend_on_the_step_alone(squares: EmblemData, tokenizer: Tokenizer) -> None:
    first, again, other = (batches(squares, tokenizer)(step) for step in (8, 8, 9))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pictures"], other["pictures"])
    assert first["pictures"].is_contiguous(memory_format=torch.channels_last)
    assert first["pictures"].shape == (8, 3, 64, 64)
    sides = [batches(squares, tokenizer)(step)["pictures"].shape[-1] for step in (0, 2, 4, 6, 10)]
    assert sides == [32, 40, 48, 56, 64]  # small ones come first


def test_every_base_is_asked_about(squares: EmblemData, tokenizer: Tokenizer) -> None:
    few = batches(squares, tokenizer, batch=2)
    known = {tuple(ids.tolist()): i // few.captions.shape[1] for i, ids in enumerate(few.captions.flatten(0, 1))}
    for step in range(20):
        lesson = few(step)
        asked = [known[tuple(ids.tolist())] for ids in lesson["ids"]]
        shown = [NAMES.index(squares.items[row].name) for row in few.draw.at(step)]
        assert asked[:2] == shown  # first the captions of the pictures
        assert sorted(asked[2:]) == sorted(set(range(4)) - set(shown))
        assert [[a == b for b in asked] for a in shown] == lesson["same"].tolist()


def test_captions_leave_style_and_tone_to_chance(squares: EmblemData, tokenizer: Tokenizer) -> None:
    tones = ("", "light", "dark", "medium")
    items = [replace(item, tone=tones[i] if item.name == "red" else "") for i, item in enumerate(squares.items[:4])]
    found = batches(replace(squares, items=items), tokenizer).captions
    plain = [replace(items[0], style=style, tone=tone) for style in ("flat", "3d", "noto") for tone in tones]
    spoken = tokenize(tokenizer, [plain_caption(item) for item in plain], 24)
    assert {text(ids) for ids in found[0]} < {text(ids) for ids in spoken}
    assert len({text(ids) for ids in found[1]}) == 3  # green, in each style


def text(ids: torch.Tensor) -> tuple[int, ...]:
    """Without its padding, which depends on the others."""
    return tuple(ids[: ids.tolist().index(VOCAB - 1)].tolist())


def test_augmented_pictures_keep_white_white_and_show_the_same(squares: EmblemData) -> None:
    generator = torch.Generator().manual_seed(0)
    white = torch.ones(4, 3, 64, 64)
    assert torch.equal(augment(white, torch.ones(4, dtype=torch.bool), 48, generator), white[..., :48, :48])
    red = to_signed(halve(squares.pictures[[1]]))
    found = augment(red.expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.bool), 64, generator)
    assert (found[:, 0, 32, 32] > found[:, 1, 32, 32] + 0.3).all()  # still red in the middle
    assert (found[:, :, 1, 1] > 0.99).all()  # and nothing in the corner
    assert len({round(float(value), 4) for value in found.mean((1, 2, 3))}) > 12


def test_only_what_may_be_is_mirrored() -> None:
    names = {"dog": True, "backhand index pointing left": False, "right-facing fist": False}
    assert {name: mirrors(make_item(0, name)) for name in names} == {**names}
    assert not mirrors(make_item(0, "copyright", group="symbols"))
    half = torch.ones(64, 3, 64, 64)
    half[..., :32] = -1  # black on the left
    generator = torch.Generator().manual_seed(0)
    kept = augment(half, torch.zeros(64, dtype=torch.bool), 64, generator)
    turned = augment(half, torch.ones(64, dtype=torch.bool), 64, generator)
    assert (kept[:, :, 32, 12].mean(1) < kept[:, :, 32, 52].mean(1)).all()
    assert 16 < (turned[:, :, 32, 12].mean(1) > turned[:, :, 32, 52].mean(1)).sum() < 48


def test_halved_pictures_are_the_means() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
    mean = pictures.reshape(3, 4, 2, 3, 2, 3).mean((2, 4))
    assert np.abs(halve(pictures) - mean).max() <= 0.5


def test_ranks_are_those_of_the_plain_scores(squares: EmblemData, tokenizer: Tokenizer) -> None:
    judge = small_judge().eval()
    features = picture_features(judge, squares.pictures)
    questions = [[items[i].name for i in np.roll(range(4), row)] for row, items in enumerate([squares.items[::3]] * 12)]
    found = ranks(judge, tokenizer, features, questions)
    for row, question in enumerate(questions):
        scores = judge.vision.embed(features[[row]]) @ embed_captions(judge, tokenizer, question).mT
        assert found[row] == (scores[0, 1:] > scores[0, 0]).sum()
    torch.nn.init.zeros_(judge.vision.project.weight)  # without an opinion nothing is right
    assert ranks(judge, tokenizer, features, questions).tolist() == [3] * 12


def test_captions_are_cut_at_the_context(tokenizer: Tokenizer) -> None:
    ids = tokenize(tokenizer, ["ab", "abcdefgh " * 20], 24)
    assert ids.shape[0] == 2
    assert 12 < ids.shape[1] <= 24
    assert (ids == VOCAB - 1).any(-1).all()  # an end in each


def test_folder_gives_back_the_judge(tmp_path: Path, squares: EmblemData, tokenizer: Tokenizer) -> None:
    judge = small_judge().half().float().eval()
    save_judge(tmp_path, judge, tokenizer)
    again, read = load_judge(tmp_path)
    assert again.config == judge.config
    torch.testing.assert_close(picture_features(again, squares.pictures), picture_features(judge, squares.pictures))
    assert read.encode("red green") == tokenizer.encode("red green")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_judge(tmp_path)


def test_the_recipe_trains_a_judge(tmp_path: Path, squares: EmblemData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe.dataset, "load", lambda: squares)
    monkeypatch.setattr(recipe, "Candidates", lambda items: _Four())
    file = tmp_path / "judge.toml"
    file.write_text(
        f"""task = "judge"
batch = 12
[model]
stem = 8
dims = [8, 16]
layers = [1, 1]
[model.text]
vocab = {VOCAB}
start = {VOCAB - 2}
end = {VOCAB - 1}
pad = {VOCAB - 1}
context = 24
dim = 32
layers = 1
heads = 2
ffn_dim = 64
proj_dim = 16
[fit]
steps = 120
dtype = "fp32"
ema = 0.9
optim = {{ lr = 5e-3, warmup = 5 }}
"""
    )
    run(file, folder=tmp_path / "run", progress=False)
    judge, tokenizer = load_judge(tmp_path / "run" / "model")
    assert top_1(judge, tokenizer, squares.pictures, squares.items, _Four()) > 0.7  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model.text has vocab=600"):
        run(file, ["model.text.vocab=600"], folder=tmp_path / "other", progress=False)


class _Four:
    """Questions over the four colours."""

    def of(self, item: Item) -> list[str]:
        return [f"{name}, {item.style} style" for name in sorted(NAMES, key=lambda name: name != item.name)]
