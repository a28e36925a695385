"""Pieces of a translator's vocabulary: any text comes back, ids lie as Marian's, words are found again."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import CheckpointError, InputError
from qkv.text.pieces import Pieces, learn_pieces, read_pieces

TEXTS = [
    "Click the button to open the file.",
    "Klicken Sie auf die Schaltfläche, um die Datei zu öffnen.",
    "The file is open. The button is closed.",
    "Die Datei ist geöffnet. Die Schaltfläche ist geschlossen.",
] * 3


@pytest.fixture(scope="module")
def pieces():
    return learn_pieces(TEXTS, 400)


def test_ids_as_marian_has_them(pieces):
    assert pieces.ids["</s>"] == pieces.end == 0
    assert pieces.ids["<unk>"] == 1
    assert pieces.ids["<pad>"] == pieces.pad == pieces.vocab - 1 == 399


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z", "Cf")), max_size=20))
def test_any_text_comes_back(pieces, text):
    if "▁" not in text:  # SentencePiece's own space
        ids = pieces.encode(text)
        assert ids[-1] == pieces.end
        assert pieces.decode(ids) == text


def test_learnt_the_same_in_every_process(pieces):
    program = (
        f"from qkv.text.pieces import learn_pieces; print(hash('a'), learn_pieces({TEXTS!r}, 400).models[0].hex())"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program]
        told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed})
        assert told.stdout.split()[1:] == [pieces.models[0].hex()], told.stderr


def test_words(pieces):
    ids = pieces.encode("Click the button.")
    words = pieces.words(ids)
    assert [word for word, _ in words] == ["Click", "the", "button."]
    assert [place for _, places in words for place in places] == list(range(len(ids) - 1))


def test_marks_are_one_token(pieces):
    ids = {**pieces.ids, ">>de<<": pieces.vocab}
    marked = Pieces(*pieces.models, ids)
    assert marked.encode(">>de<< the file") == [pieces.vocab, *pieces.encode("the file")]
    assert marked.encode(">>fr<< the file") == pieces.encode(">>fr<< the file")


def test_there_and_back(pieces, tmp_path):
    pieces.save(tmp_path / "new")
    names = ("source.spm", "target.spm", "vocab.json")
    again = read_pieces(*((tmp_path / "new" / name).read_bytes() for name in names))
    assert again.ids == pieces.ids
    assert again.encode(TEXTS[0]) == pieces.encode(TEXTS[0])


def test_control_symbols_in_a_text_are_text(pieces):
    assert pieces.end not in pieces.encode("a </s> b <pad>")[:-1]
    assert pieces.pad not in pieces.encode("a </s> b <pad>")


@pytest.mark.parametrize("vocab", [3, 100_000])
def test_vocabularies_that_cannot_be(vocab):
    with pytest.raises(InputError, match=f"vocab={vocab}"):
        learn_pieces(TEXTS, vocab)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: ids.pop("</s>"), "has no </s>"),
        (lambda ids: ids.update({"<pad>": 5}), "numbers are not"),
        (lambda ids: ids.update({"x": "y"}), "no table"),
    ],
)
def test_broken_vocabularies(pieces, change, words):
    ids = dict(pieces.ids)
    change(ids)
    with pytest.raises(CheckpointError, match=words):
        read_pieces(*pieces.models, json.dumps(ids).encode())


@pytest.mark.parametrize("model", [b"", b"no model at all", b"\n\xff\xff\xff\xff\x0f"])
def test_broken_models(pieces, model):
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read_pieces(model, pieces.models[1], json.dumps(pieces.ids).encode())


@pytest.mark.parametrize("vocabulary", [b"[1, 2]", b"{", b"\xff", b"[" * 100_000])
def test_vocabularies_that_are_no_json(pieces, vocabulary):
    with pytest.raises(CheckpointError, match="vocab.json"):
        read_pieces(*pieces.models, vocabulary)
