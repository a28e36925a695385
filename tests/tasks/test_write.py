"""`qkv write`: a small T5, its tokenizer in both published forms, against transformers, in Python and on the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

import qkv
from qkv.errors import CheckpointError, ConfigError, InputError, NotFoundError
from qkv.tasks.write import write_all
from qkv.text.unigram import Unigram

TEXTS = [
    "translate English to German: The house is wonderful.",
    "summarize: state authorities dispatched emergency crews tuesday to survey the damage",
    "  two  spaces, \u2026 an ellipsis \ufb01 and\na line",
    "The <extra_id_0> was in <extra_id_1> state",
    "unseen: \u6f22\u5b57 \u00df",
]


def _field(message: bytes, wanted: int) -> bytes:
    """The bytes of one field of a protobuf message: the characters' replacements lie in the model's normalizer."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 128:
                return value

    while True:
        key = number()
        size = {0: number, 1: lambda: 8, 2: number, 5: lambda: 4}[key & 7]()
        size = 0 if key & 7 == 0 else size
        if key >> 3 == wanted:
            return message[at : at + size]
        at += size


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """With tokenizer.json, and with spiece.model."""
    made = tmp_path_factory.mktemp("t5") / "json"
    made.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:3] * 30),
        model_prefix=str(made / "spiece"),
        vocab_size=70,
        hard_vocab_limit=False,
        model_type="unigram",
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    (made / "spiece.vocab").unlink()
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 192}
    config = transformers.T5Config(**shape, decoder_start_token_id=0, feed_forward_proj="gated-gelu")
    model = transformers.T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(made)
    pieces = made.parent / "pieces"
    pieces.mkdir()
    for file in made.iterdir():
        (pieces / file.name).write_bytes(file.read_bytes())
    model = sentencepiece.SentencePieceProcessor(model_file=str(made / "spiece.model"))
    scored = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    scored += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    table = _field(_field((made / "spiece.model").read_bytes(), 3), 2)
    transformers.T5Tokenizer(vocab=scored, _spm_precompiled_charsmap=table).save_pretrained(made)
    (made / "spiece.model").unlink()
    assert (made / "tokenizer.json").is_file()
    return made, pieces


@pytest.fixture(scope="module", params=[0, 1], ids=["tokenizer.json", "spiece.model"])
def folder(request, folders) -> Path:
    return folders[request.param]


def test_the_tokens_are_transformers(folder, folders):
    ours, theirs = Unigram.load(folder), transformers.AutoTokenizer.from_pretrained(folders[0])
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    ids = ours.encode(TEXTS[0])
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode([*ours.encode(TEXTS[3]), 191, 0]) == TEXTS[3]


def test_control_tokens_that_a_text_spells_are_text(folder):
    ours = Unigram.load(folder)
    assert ours.encode("a </s> b <pad>").count(ours.end) == 1
    assert ours.pad not in ours.encode("a </s> b <pad>")


@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_what_transformers_writes(folder, folders, beams):
    """The whole text is read, its task before it; greedy unless asked otherwise."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    options = {} if beams == 1 else {"beams": beams}
    for text, written in zip(TEXTS, write_all(TEXTS, model=folder, max_tokens=12, **options)):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = model.generate(ids, num_beams=beams, max_length=13, forced_eos_token_id=1)[0, 1:].tolist()
        expected = expected[: expected.index(1) + 1]
        assert written.text == Unigram.load(folder).decode(expected)
        assert (written.source, written.tokens, written.model) == (text, len(expected), folder.name)
    assert (
        qkv.write(TEXTS[0], model=folder, max_tokens=12, **options).text
        == write_all(TEXTS[:1], model=folder, max_tokens=12, **options)[0].text
    )


def test_the_folder_says_how_to_search(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 3, "max_length": 9}))
    assert write_all(TEXTS, model=tmp_path) == [
        written.__class__(**vars(written) | {"model": tmp_path.name})
        for written in write_all(TEXTS, model=folder, beams=3, max_tokens=8)
    ]
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    with pytest.raises(ConfigError, match="generation_config.json"):
        qkv.write(TEXTS[0], model=tmp_path)


def test_what_cannot_be_is_one_line(folder, monkeypatch):
    for text, message in (("  ", "there is no text"), (3, "no text but int"), ("a b " * 300, "reads at most 512")):
        with pytest.raises(InputError, match=message):
            qkv.write(text, model=folder)
    with pytest.raises(InputError, match="beams=0 is out of range"):
        qkv.write("a", model=folder, beams=0)
    monkeypatch.setattr("qkv.registry.listing", list)
    with pytest.raises(NotFoundError, match="name one, such as"):
        qkv.write("a")


BROKEN = [
    ({"model": {"type": "BPE", "vocab": {}}}, "no Unigram model"),
    ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "no list of pieces"),
    ({"model": {"type": "Unigram", "vocab": []}}, "no list of pieces"),
    ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9}}, "cannot be read"),
    ({"normalizer": {"type": "Lowercase"}}, "the normalizer .* is not T5's"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "table is broken"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}}, "the pre_tokenizer .* is not T5's"),
    ({"added_tokens": [{"id": 10**12, "content": "x"}]}, "cannot be read"),
    ({"added_tokens": [{"id": "x"}]}, "cannot be read"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_broken_tokenizers(folders, tmp_path, values, message):
    good = json.loads((folders[0] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(good | values))
    with pytest.raises(CheckpointError, match=message):
        Unigram.load(tmp_path)


def test_no_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="neither tokenizer.json nor spiece.model"):
        Unigram.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="spiece.model.* cannot be read"):
        Unigram.load(tmp_path)


def test_on_the_shell(folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS[0])
    expected = qkv.write(TEXTS[0], model=folder, max_tokens=6)
    for argument, stdin in ((TEXTS[0], ""), (str(tmp_path / "text.txt"), ""), ("-", TEXTS[0])):
        command = [sys.executable, "-m", "qkv", "write", argument, "--model", folder, "--max-tokens", "6", "--json"]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said == {**vars(expected), "warnings": []}
