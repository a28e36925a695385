"""What trained classifiers and taggers say, against transformers on the same folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, BertTokenizerFast

import qkv
from qkv import cli
from qkv.errors import CheckpointError, InputError
from qkv.models.bert import BertClassifier, BertTagger

TEXT = "The dog runs, an unbelievable doggedness."
LABELS = ["ham", "spam", "neither"]


@pytest.fixture(scope="module")
def classifier(tiny_bert: Callable[..., Path]) -> Path:
    return tiny_bert(lambda config: BertClassifier(config, LABELS), pooler="tanh")


@pytest.fixture(scope="module")
def tagger(tiny_bert: Callable[..., Path]) -> Path:
    return tiny_bert(lambda config: BertTagger(config, ["O", "B-DOG"]))


def reference(folder: Path, kind: type, text: str) -> torch.Tensor:
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    with torch.no_grad():
        return kind.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).logits[0].double()


def test_a_text(classifier: Path) -> None:
    expected = reference(classifier, AutoModelForSequenceClassification, TEXT)
    found = qkv.classify_text(TEXT, model=classifier, dtype="float32")
    assert {one.label: one.score for one in found.labels} == pytest.approx(
        dict(zip(LABELS, expected.tolist())), abs=1e-5
    )
    shares = dict(zip(LABELS, expected.softmax(-1).tolist()))
    assert {one.label: one.probability for one in found.labels} == pytest.approx(shares, abs=1e-5)
    likely = [one.probability for one in found.labels]
    assert likely == sorted(likely, reverse=True)
    assert (found.model, found.warnings) == ("reader", ())


def test_words(tagger: Path) -> None:
    expected = reference(tagger, AutoModelForTokenClassification, TEXT).softmax(-1)
    pieces = BertTokenizerFast(str(tagger / "vocab.txt")).tokenize(TEXT)
    first = [row for row, piece in enumerate(pieces) if not piece.startswith("##")]
    found = qkv.tag_text(TEXT, model=tagger, dtype="float32").words
    assert [one.probability for one in found] == pytest.approx(expected[1:-1].max(-1)[0][first].tolist(), abs=1e-5)
    names = [["O", "B-DOG"][number] for number in expected[1:-1].argmax(-1)[first]]
    assert [one.label for one in found] == names
    assert "".join(one.word for one in found) == "".join(pieces).replace("##", "")


def test_a_long_text_is_cut_with_a_warning(classifier: Path) -> None:
    found = qkv.classify_text("dog " * 100, model=classifier)
    assert found.warnings == ("the text has 102 tokens; only the first 40 were read",)


def test_keys_that_are_not_known_are_named(
    classifier: Path, tagger: Path, odd_keys: Callable[[Path], tuple[Path, tuple[str, ...]]]
) -> None:
    for folder, classify in ((classifier, qkv.classify_text), (tagger, qkv.tag_text)):
        copy, expected = odd_keys(folder)
        assert classify("the dog", model=copy).warnings == expected


def test_what_cannot_be(classifier: Path, tagger: Path, tiny_bert: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        qkv.classify_text(" ", model=classifier)
    with pytest.raises(InputError, match="labels words, not texts; use tag_text"):
        qkv.classify_text("dog", model=tagger)
    with pytest.raises(InputError, match="labels texts, not words; use classify_text"):
        qkv.tag_text("dog", model=classifier)
    with pytest.raises(CheckpointError, match="is no classifier"):
        qkv.classify_text("dog", model=tiny_bert())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command(
    classifier: Path, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bert: Callable[..., Path]
) -> None:
    expected = qkv.classify_text(TEXT, model=classifier).labels
    lines = [f"{one.probability:6.3f}  {one.label}" for one in expected]
    mail = tmp_path / "mail.txt"
    mail.write_text(TEXT, encoding="utf-8")
    for what in (TEXT, mail):
        assert run(capsys, "classify", what, "--model", classifier)[1].splitlines() == lines
    rows = [json.loads(line) for line in run(capsys, "classify", TEXT, "--model", tagger, "--json")[1].splitlines()]
    words = qkv.tag_text(TEXT, model=tagger).words
    assert [(row["word"], row["label"], row["probability"]) for row in rows] == [
        (one.word, one.label, one.probability) for one in words
    ]
    code, _, err = run(capsys, "classify", TEXT, "--model", tiny_bert())
    assert (code, err) == (2, "qkv: error: no label leaves no choice; give two or more\n")
