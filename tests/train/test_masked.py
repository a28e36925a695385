"""Pre-training by masks: which tokens are asked for, a loss that falls, a folder that fills in what it learnt."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qkv.errors import ConfigError, InputError
from qkv.models.bert import BertConfig, MaskedBert
from qkv.tasks.fill import fill
from qkv.text.bert import learn_wordpiece
from qkv.train.loop import FitConfig
from qkv.train.masked import IGNORED, Masked, MaskedWindows, Recipe, encode, filling, mask, measure, train
from qkv.train.optim import OptimConfig
from qkv.train.recipes import Context

TEXT = f"{'sun ' * 60}\n{'moon ' * 60}\n" * 20  # what is masked is what stands around it
SHAPE = {"vocab": 20, "context": 16, "dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "segments": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return learn_wordpiece(TEXT.splitlines(), 20)


def test_the_shares_of_the_paper(tokenizer):
    ids = np.random.default_rng(0).integers(5, 20, (300, 300))
    given, asked = mask(ids, 0.15, tokenizer, np.random.default_rng(1))
    assert asked.mean() == pytest.approx(0.15, abs=0.005)
    assert (given[~asked] == ids[~asked]).all()
    assert (given[asked] == tokenizer.mask).mean() == pytest.approx(0.8 + 0.1 / 20, abs=0.01)
    assert (given[asked] == ids[asked]).mean() == pytest.approx(0.1 + 0.1 / 20, abs=0.01)


def test_windows_are_a_function_of_the_step(tokenizer):
    ids = encode(tokenizer, TEXT.splitlines())
    windows = MaskedWindows(ids, tokenizer, 16, 8, 0.15, seed=3)
    first, again, other = windows(0), windows(0), windows(1)
    assert all(a.equal(b) for a, b in zip(first, again))
    assert not first.ids.equal(other.ids)
    assert first.ids.shape == first.targets.shape == (8, 16)
    assert (first.ids[:, 0] == tokenizer.first).all()
    assert (first.ids[:, -1] == tokenizer.last).all()
    asked = first.targets != IGNORED
    assert not asked[:, [0, -1]].any()
    whole = torch.where(asked, first.targets, first.ids)[:, 1:-1]
    text = ids.tolist()
    assert all(any(text[i : i + 14] == row for i in range(len(text))) for row in whole.tolist())


def test_only_what_is_asked_for_counts():
    torch.manual_seed(0)
    model = MaskedBert(BertConfig(**SHAPE)).eval()
    ids, targets = torch.randint(5, 20, (2, 16)), torch.full((2, 16), IGNORED)
    targets[0, 3], targets[1, 9] = 7, 8
    loss = filling(model, Masked(ids, targets), torch.Generator())
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(loss.value, expected)
    assert loss.count == 2
    nothing = filling(model, Masked(ids, torch.full((2, 16), IGNORED)), torch.Generator())
    assert (nothing.value.item(), nothing.count) == (0, 0)


def test_measured_under_the_same_masks(tokenizer):
    model = MaskedBert(BertConfig(**SHAPE)).eval()
    windows = MaskedWindows(encode(tokenizer, TEXT.splitlines()), tokenizer, 16, 8, 0.15, seed=3)
    assert measure(model, windows) == measure(model, windows)
    assert measure(model, windows)["validation"] == pytest.approx(np.log(20), rel=0.1)


def test_it_learns_and_fills(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    fit = FitConfig(steps=120, dtype="fp32", ema=0.9, optim=OptimConfig(lr=5e-3, warmup=20))
    recipe = Recipe(data=tmp_path / "text.txt", model=BertConfig(**SHAPE), batch=16, share=0.3, fit=fit)
    train(
        recipe,
        Context(task="masked", folder=tmp_path / "run", device=torch.device("cpu"), resume=False, progress=False),
    )
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["validation"] < 0.5
    for word in ("sun", "moon"):
        filled = fill(f"{word} {word} [MASK] {word}", model=tmp_path / "run" / "model")
        assert filled.text == f"{word} {word} {word} {word}"


def test_recipes_that_cannot_be(tmp_path):
    model, fit = BertConfig(**SHAPE), FitConfig(steps=1)
    for values, message in (
        ({"batch": 0}, "batch=0"),
        ({"share": 0.0}, "share=0.0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"model": BertConfig(**SHAPE | {"context": 2})}, "model.context=2"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe(**{"data": tmp_path, "model": model, "fit": fit} | values)
    context = Context(task="masked", folder=tmp_path / "run", device=torch.device("cpu"), resume=False, progress=False)
    (tmp_path / "short.txt").write_text(TEXT[:700])
    with pytest.raises(InputError, match="tokens for validation; context=16 needs more"):
        train(Recipe(data=tmp_path / "short.txt", model=model, fit=fit), context)
