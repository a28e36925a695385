"""Fine-tuning for classification: mails as texts, a split that no copy crosses, a tiny BERT that learns a rule."""

import json
import random

import pytest
import torch

from qkv.data.spam import Labelled, held_out, read, text_of
from qkv.errors import CheckpointError, ConfigError, InputError
from qkv.models.bert import BertConfig
from qkv.text.bert import BertTokenizer
from qkv.train.classify import Recipe, classifying, open_start, padded, predict, read_texts, scores, train
from qkv.train.loop import FitConfig
from qkv.train.optim import OptimConfig
from qkv.train.recipes import Context
from qkv.weights.bert import load_classifier
from qkv.weights.folder import Folder

MAIL = "From: a@b\nSubject: =?utf-8?q?M=C3=BCnchen?= calling\nContent-Type: {}\n\n{}"


def test_mails_as_texts():
    assert text_of(MAIL.format("text/plain", "one\n\n two")) == "München calling one two"
    markup = "<style>p {{}}</style><!-- no --><p>Buy &amp; win<br>now</p><script>x()</script>"
    assert text_of(MAIL.format("text/html", markup)) == "München calling Buy & win now"
    assert text_of(MAIL.format('text/plain; charset="no-such"', "caf\xe9")).startswith("München calling caf")
    assert text_of("Subject: =?no-such?q?x?=\n\nbody").endswith("body")
    parts = (
        "Content-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/plain\n\nplain\n"
        "--b\nContent-Type: text/html\n\n<b>html</b>\n--b\nContent-Type: image/png\n\nbytes\n--b--\n"
    )
    assert text_of(parts) == "plain"
    assert text_of("") == ""
    assert len(text_of(MAIL.format("text/html", "<" * 100_000 + "x" * 9000))) <= 4000


def test_a_corpus_of_mails(tmp_path):
    for name, text in {"easy-ham-1/a": "hello", "spam-2/b": "buy", "hard-ham-1/c": "hello", "other/d": "x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": f"Subject: s\n\n{text}"}))
    assert set(read(tmp_path)) == {Labelled("s hello", "ham"), Labelled("s buy", "spam")}
    (tmp_path / "spam-2" / "e.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no mail of the corpus"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="there are no mails"):
        read(tmp_path / "nowhere")


def test_the_split():
    out = [held_out("text " + "".join("abcdefghij"[int(digit)] for digit in str(i))) for i in range(2000)]
    assert 0.15 < sum(out) / len(out) < 0.25
    assert held_out("Dear ANN, 100 euros!") == held_out("dear ann, 7 euros")


def test_scores():
    truth = [Labelled("", label) for label in "aaab"]
    assert scores(list("aaab"), truth) == {"accuracy": 1, "f1": 1}
    assert scores(list("aaaa"), truth) == {"accuracy": 0.75, "f1": pytest.approx((6 / 7 + 0) / 2)}


def test_a_body_under_a_new_head(tiny_bert):
    for pooler in ("tanh", None):
        folder = tiny_bert(pooler=pooler)
        model, tokenizer = open_start(str(folder), ["no", "yes"], seed=1)
        assert model.body.config == BertConfig(**vars(model.body.config) | {"pooler": "tanh"})
        assert model.labels == ("no", "yes")
        read = read_texts(tokenizer, ["a dog in a suit and a cat", "mars"], 6)
        assert len(read[0]) == 6
        assert read[0][-1] == tokenizer.last
        batch = padded(read, [0, 1], tokenizer.pad)
        alone = padded(read[1:], [1], tokenizer.pad)
        with torch.no_grad():
            torch.testing.assert_close(model(batch.ids, batch.mask)[1:], model(alone.ids, alone.mask))
        assert classifying(model, batch, torch.Generator()).value > 0


@pytest.fixture
def animals(tmp_path):
    """Texts about a dog are "yes", about a cat "no", wherever the word stands."""
    rng = random.Random(0)
    words = ["a", "red", "blue", "fish", "horse", "on", "mars", "in", "suit", "riding"]
    rows = []
    for i in range(120):
        text = [rng.choice(words) for _ in range(4)]
        text.insert(rng.randrange(5), "dog" if i % 2 else "cat")
        rows.append({"text": " ".join(text), "label": "yes" if i % 2 else "no"})
    path = tmp_path / "animals.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def recipe(data, start, **values):
    fit = {"steps": 60, "dtype": "fp32", "ema": 0.0, "optim": OptimConfig(lr=2e-3, warmup=5)}
    return Recipe(data=str(data), start=str(start), context=40, batch=16, fit=FitConfig(**fit), **values)


def test_a_rule_is_learnt_and_published(animals, tiny_bert, tmp_path):
    context = Context(
        task="classify", folder=tmp_path / "run", device=torch.device("cpu"), resume=False, progress=False
    )
    train(recipe(animals, tiny_bert()), context)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["accuracy"] > 0.9
    assert records[-1]["f1"] > 0.9
    model = load_classifier(Folder(tmp_path / "run" / "model"))
    tokenizer = BertTokenizer.load(tmp_path / "run" / "model")
    assert model.labels == ("no", "yes")
    assert predict(model, tokenizer, ["a red dog on mars", "a red cat on mars"], 40) == ["yes", "no"]


def test_frozen_weights_stay(animals, tiny_bert, tmp_path):
    start = tiny_bert(pooler="tanh")
    context = Context(
        task="classify", folder=tmp_path / "run", device=torch.device("cpu"), resume=False, progress=False
    )
    result = train(recipe(animals, start, freeze=("body.token", "body.stack")), context)
    before, _ = open_start(str(start), ["no", "yes"], seed=0)
    for name, parameter in result.model.named_parameters():
        same = parameter.equal(dict(before.named_parameters())[name])
        assert same == name.startswith(("body.token", "body.stack")), name


def test_recipes_that_cannot_be(animals, tiny_bert, tmp_path):
    context = Context(
        task="classify", folder=tmp_path / "run", device=torch.device("cpu"), resume=False, progress=False
    )
    with pytest.raises(ConfigError, match="batch=0"):
        Recipe(batch=0, fit=FitConfig(steps=1))
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "b"}')
    with pytest.raises(InputError, match="has 1 texts with 1 labels"):
        train(recipe(tmp_path / "one.jsonl", tiny_bert()), context)
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a"}')
    with pytest.raises(InputError, match='line 2: it has no "text" and "label"'):
        train(recipe(tmp_path / "bad.jsonl", tiny_bert()), context)
    with pytest.raises(ConfigError, match="context=40 is more than the 20 tokens"):
        train(recipe(animals, tiny_bert(context=20)), context)
