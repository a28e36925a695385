"""The translation recipe: its batches, its loss, a run that resumes to the bit, and the folder that comes out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.config import build
from qkv.data.parallel import Pair, write_pairs
from qkv.errors import ConfigError, InputError
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.tasks.translate import translate
from qkv.train.checkpoint import load, mean_weights
from qkv.train.recipes import Context
from qkv.train.translation import Buckets, Recipe, source_gain, train, translation_loss

WORDS = {"red": "rot", "blue": "blau", "green": "grün", "file": "datei", "open": "offen", "small": "klein"}
TRAIN = [Pair(f"{a} {b}", f"{WORDS[b]} {WORDS[a]}") for a in WORDS for b in WORDS if a != b]  # turned round

SHAPE = {"vocab": 330, "context": 40, "dim": 32, "layers": 1, "heads": 2, "ffn_dim": 32, "dropout": 0.0}
FIT = {"steps": 6, "save_every": 2, "sample_every": 4, "log_every": 1, "keep": 3, "ema": 0.0, "dtype": "fp32"}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_pairs(folder, "train", "en", "de", TRAIN)
    write_pairs(folder, "val", "en", "de", TRAIN[:8])
    return folder


def recipe(data, **values):
    plain = {
        "data": str(data),
        "model": SHAPE,
        "tokens": 120,
        "average": 2,
        "fit": FIT,
        "validation": 2,
        "search": {"max_tokens": 8},
    }
    return build(Recipe, plain | values)


def run(values, folder, resume=False):
    return train(
        values, Context(task="translation", folder=folder, device=torch.device("cpu"), resume=resume, progress=False)
    )


texts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(texts, st.integers(12, 60), st.integers(0, 5))
def test_batches(lengths, tokens, seed):
    """In an epoch every pair comes once, in batches within the bound, and the second epoch mixes them anew."""
    pairs = [([i + 1] * a, [i + 1] * b) for i, (a, b) in enumerate(lengths)]
    buckets = Buckets(pairs, 0, tokens=tokens, seed=seed)
    for epoch in range(2):
        steps = range(epoch * len(buckets.spans), (epoch + 1) * len(buckets.spans))
        rows = [buckets.rows(step) for step in steps]
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(pairs)))
        for step in steps:
            batch = buckets(step)
            assert len(batch.source) * max(batch.source.shape[1], batch.target.shape[1]) <= tokens
            for row, source, target in zip(buckets.rows(step), batch.source, batch.target):
                assert (source[source != 0].tolist(), target[target != 0].tolist()) == pairs[row]
    again = Buckets(pairs, 0, tokens=tokens, seed=seed)
    assert torch.equal(again(len(again.spans)).source, buckets(len(buckets.spans)).source)


def test_epochs_differ():
    buckets = Buckets([([i], [i]) for i in range(1, 50)], 0, tokens=10, seed=0)
    count = len(buckets.spans)
    assert any(buckets.rows(i).tolist() != buckets.rows(i + count).tolist() for i in range(count))


@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_padding_does_not_count(r_drop):
    torch.manual_seed(0)
    config = TranslatorConfig(
        vocab=20, context=12, dim=16, layers=1, heads=2, ffn_dim=16, start=19, pad=19, dropout=0.0
    )
    model = Translator(config)
    buckets = Buckets([([3, 0], [19, 4, 0]), ([3, 4, 5, 0], [19, 6, 7, 8, 0])], 19, tokens=100, seed=0)
    together = translation_loss(model, buckets(0), smoothing=0.1, r_drop=r_drop)
    singles = Buckets(buckets.pairs, 19, tokens=5, seed=0)
    alone = [translation_loss(model, singles(i), smoothing=0.1, r_drop=r_drop) for i in range(2)]
    assert together.count == sum(each.count for each in alone) == 6
    mean = sum(each.value * each.count for each in alone) / 6
    torch.testing.assert_close(together.value, mean)


def test_no_pairs_no_batches():
    assert Buckets([], 0, tokens=10, seed=0).spans == []


def test_what_the_sources_are_worth():
    """By hand for two pairs; nothing for an encoder that says the same of everything, and none for pairs alone."""
    torch.manual_seed(0)
    shape = {"vocab": 20, "context": 12, "dim": 16, "layers": 1, "heads": 2, "ffn_dim": 16}
    model = Translator(TranslatorConfig(**shape, start=19, pad=19)).eval()
    buckets = Buckets([([3, 4, 0], [19, 4, 0]), ([5, 6, 0], [19, 6, 7, 0])], 19, tokens=100, seed=0)
    batch = buckets(0)
    sources = (batch.source, batch.source[[1, 0]])
    right, wrong = (translation_loss(model, batch._replace(source=each)).value.item() for each in sources)
    gain = source_gain(model, buckets)
    assert gain == pytest.approx(wrong - right, abs=1e-6)
    assert abs(gain) > 1e-3
    assert np.isnan(source_gain(model, Buckets(buckets.pairs, 19, tokens=4, seed=0)))
    model.encoder.blocks[0].ffn_norm.weight.data.zero_()  # the last norm of the encoder
    assert source_gain(model, buckets) == 0


def warned(data, folder, monkeypatch, capsys, gain, **values):
    """The warnings of a run at whose validations the sources are worth `gain`."""
    monkeypatch.setattr("qkv.train.translation.source_gain", lambda *given: gain)
    train(
        recipe(data, **values),
        Context(task="translation", folder=folder, device=torch.device("cpu"), resume=False, progress=True),
    )
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step")]


def test_sources_that_are_not_read_are_told(data, tmp_path, monkeypatch, capsys):
    after = {"average": 1, "fit": FIT | {"optim": {"lr": 1e-3, "warmup": 5}}}
    (told,) = warned(data, tmp_path / "a", monkeypatch, capsys, 0.002, **after)  # at step 4 it is early yet
    assert "step 6: the source makes a difference of 0.002 nats a token" in told
    assert "lower fit.optim.lr" in told
    assert not warned(data, tmp_path / "b", monkeypatch, capsys, 0.5, **after)
    assert not warned(data, tmp_path / "c", monkeypatch, capsys, float("nan"), **after)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [record["source"] for record in records if "bleu" in record] == [0.002, 0.002]


def test_a_resumed_run_equals_an_unbroken_one(data, tmp_path):
    dropout = SHAPE | {"dropout": 0.2}
    whole = run(recipe(data, model=dropout), tmp_path / "whole")
    run(recipe(data, model=dropout, fit=FIT | {"steps": 4}), tmp_path / "parts")
    second = run(recipe(data, model=dropout), tmp_path / "parts", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert sum("bleu" in record for record in records) == 2  # at step 4 and at the end
    assert json.loads((tmp_path / "whole" / "average.json").read_text()).keys() == {"bleu"}


def test_the_result_is_the_mean_of_the_last_checkpoints(data, tmp_path):
    result = run(recipe(data), tmp_path / "run")
    mean = mean_weights(tmp_path / "run", 2)
    last = load(tmp_path / "run").groups["model"]
    assert not torch.equal(mean["token.weight"], last["token.weight"])
    assert all(torch.equal(tensor, mean[name]) for name, tensor in result.model.state_dict().items())


def test_it_learns_and_translates(data, tmp_path):
    """Two words, the other way round: what needs attention. And transformers opens the folder."""
    optim = {"lr": 1e-2, "betas": [0.9, 0.98], "warmup": 10, "schedule": "inverse_sqrt", "weight_decay": 0.0}
    fit = FIT | {"steps": 150, "save_every": 150, "sample_every": 150, "optim": optim}
    result = run(recipe(data, fit=fit, average=1, smoothing=0.0, tokens=400, validation=8), tmp_path / "run")
    assert result.loss < 0.1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["source"] > 1
    folder = tmp_path / "run" / "model"
    said = [translate(pair.source, model=folder, to="de").text for pair in TRAIN[:6]]
    assert said == [pair.target for pair in TRAIN[:6]]
    transformers = pytest.importorskip("transformers")
    model = transformers.MarianMTModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    given = tokenizer([pair.source for pair in TRAIN[:6]], return_tensors="pt", padding=True)
    theirs = tokenizer.batch_decode(model.generate(**given), skip_special_tokens=True)
    assert theirs == said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokens": 10}, "tokens=10"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"r_drop": -1.0}, "r_drop"),
        ({"average": 4}, "fit.keep"),
        ({"validation": 0}, "validation"),
        ({"text": "moses"}, "text"),
    ],
)
def test_recipes_that_cannot_be(data, values, words):
    with pytest.raises(ConfigError, match=words):
        recipe(data, **values)


def test_no_pair_fits(data, tmp_path):
    with pytest.raises(InputError, match="context=2"):
        run(recipe(data, model=SHAPE | {"context": 2}), tmp_path / "run")
