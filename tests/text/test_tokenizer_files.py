"""Training a tokenizer, writing its folder, and reading folders that are broken or hostile."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from qkv.errors import CheckpointError, InputError, OutputError
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.text.tokenizer_files import EOS

TEXTS = ["A dog, a Dog's house", "ein Hund, 穿西裝的狗 🐶", "a dog in a suit", "ein Hund im Haus"]


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return tmp_path


def edit(folder, name, change):
    file = folder / name
    values = json.loads(file.read_text("utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def test_training_is_laid_out_like_clip(tokenizer, folder):
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    tokens = list(vocab)
    assert list(vocab.values()) == list(range(700))
    assert tokenizer.vocab == 700
    assert tokens[:3] == ["!", '"', "#"]
    assert tokens[256:258] == ["!</w>", '"</w>']
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert "dog</w>" in vocab


def test_training_stops_where_nothing_repeats():
    tokenizer = train_tokenizer(TEXTS, vocab=10_000)
    assert 514 < tokenizer.vocab < 700
    assert train_tokenizer([], vocab=10_000).vocab == 514
    assert train_tokenizer(TEXTS, vocab=520).vocab == 520
    with pytest.raises(InputError, match="vocab=513 is too small"):
        train_tokenizer(TEXTS, vocab=513)


def test_training_repeats_in_another_process(tmp_path):
    ties = ["".join(word) for word in itertools.permutations("dog狗é")] * 2  # every pair is as frequent as the next
    train_tokenizer(ties, vocab=560).save(tmp_path / "here")
    code = (
        "import pathlib, sys; from qkv.text.tokenizer import train_tokenizer; "
        f"train_tokenizer({ties!r}, vocab=560).save(pathlib.Path(sys.argv[1]))"
    )
    for k in range(3):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{k}")], check=True)
        assert (tmp_path / f"{k}" / "merges.txt").read_bytes() == (tmp_path / "here" / "merges.txt").read_bytes()


def test_any_text_trains():
    assert train_tokenizer(["\ud800 dog", "\0", EOS, ""] * 3, vocab=600).encode("dog")


def test_saved_and_loaded_it_is_the_same(tokenizer, folder, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    Tokenizer.load(folder).save(again)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }
    assert Tokenizer.load(again).encode("a dog, 🐶") == tokenizer.encode("a dog, 🐶")


def test_tokenizer_json_is_read_too(tokenizer, folder):
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    for merges in (lines, [line.split(" ") for line in lines]):
        model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")
        (folder / "vocab.json").unlink(missing_ok=True)
        assert Tokenizer.load(folder).encode("a dog") == tokenizer.encode("a dog")


def test_a_pattern_from_the_folder_is_never_run(folder):
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": []}
    pattern = {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": pattern}), encoding="utf-8")
    started = time.process_time()
    assert len(Tokenizer.load(folder).encode("a" * 10_000)) == 10_000
    assert time.process_time() - started < 2


VOCAB = {
    "an id twice": lambda vocab: vocab.update({"dog</w>": 5}),
    "a negative id": lambda vocab: vocab.update({"dog</w>": -1}),
    "a huge id": lambda vocab: vocab.update({"dog</w>": 2**40}),
    "an id that is no number": lambda vocab: vocab.update({"dog</w>": "7"}),
    "an id that is true": lambda vocab: vocab.update({"dog</w>": True}),
    "a byte less": lambda vocab: vocab.pop("Ā"),
    "a last byte less": lambda vocab: vocab.pop("z</w>"),
    "no control token": lambda vocab: vocab.pop(EOS),
    "a merge's product less": lambda vocab: vocab.pop("dog</w>"),
    "half a surrogate": lambda vocab: vocab.update({"\ud800": 10_000}),
}


@pytest.mark.parametrize("change", VOCAB.values(), ids=VOCAB.keys())
def test_a_wrong_vocabulary_is_refused(folder, change):
    edit(folder, "vocab.json", change)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


FILES = {
    ("vocab.json", "not JSON"): b"{",
    ("vocab.json", "empty"): b"",
    ("vocab.json", "a list"): b"[1]",
    ("vocab.json", "too deep"): b"[" * 10**6,
    ("vocab.json", "a long number"): b'{"a": ' + b"9" * 10**6 + b"}",
    ("vocab.json", "not UTF-8"): b'{"\xff": 1}',
    ("vocab.json", "too large"): b" " * (100 << 20),
    ("merges.txt", "not UTF-8"): b"\xff \xff\n",
    ("merges.txt", "three symbols"): b"a b c\n",
    ("merges.txt", "a blank line"): b"#version: 0.2\n\na b\n",
    ("merges.txt", "unknown symbols"): b"dogs cats\n",
    ("merges.txt", "one long line"): b"a" * (100 << 20),
    ("tokenizer.json", "another model"): b'{"model": {"type": "Unigram", "vocab": []}}',
    ("tokenizer.json", "another suffix"): b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    ("tokenizer.json", "no model"): b"{}",
    ("tokenizer.json", "no merges"): b'{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {}}}',
    ("tokenizer_config.json", "a padding that is no text"): b'{"added_tokens_decoder": {}, "pad_token": 7}',
    ("special_tokens_map.json", "an unknown padding"): b'{"pad_token": "<pad>"}',
}


@pytest.mark.parametrize(("name", "content"), [(key[0], data) for key, data in FILES.items()], ids=map(str, FILES))
def test_a_broken_file_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"json|txt") as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is not there"):
        Tokenizer.load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(folder):
    (folder / "vocab.json").unlink()
    os.mkfifo(folder / "vocab.json")
    with pytest.raises(CheckpointError, match="is not there"):
        Tokenizer.load(folder)


def test_a_folder_that_cannot_be_written(tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        tokenizer.save(tmp_path / "file")
