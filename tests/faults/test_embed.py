"""Texts that cannot be, and folders of encoders that are broken or hostile: one clear line each."""

import io
import json
import shutil
import sys

import pytest

from qkv import cli
from qkv.cli.shared import named_file
from qkv.errors import CheckpointError, ConfigError, InputError, NotFoundError
from qkv.models.bert import MaskedBert
from qkv.tasks.embed import embed
from qkv.tasks.fill import fill
from qkv.text.bert import BertTokenizer, learn_wordpiece
from qkv.text.language import MAX_TEXT


@pytest.fixture(scope="module")
def whole(tiny_bert):
    return tiny_bert(MaskedBert)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "reader")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "text 1 of 1 is empty"),
        (["a dog", " \t\n"], "text 2 of 2 is empty"),
        (["a dog", None], "text 2 of 2 is no text but NoneType"),
        (["a dog", b"bytes"], "is no text but bytes"),
        ("x" * (MAX_TEXT + 1), "has 4,000,001 characters; at most 4,000,000"),
    ],
)
def test_texts_that_cannot_be(texts, message, folder):
    with pytest.raises(InputError, match=message):
        embed(texts, model=folder)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\u202eabc", "e" + "\u0301" * 50, "[MASK][SEP]", "☃" * 30])
def test_odd_texts_are_read(text, folder):
    vector = embed(text, model=folder, dtype="float32")
    assert abs(vector).max() < 1e3
    assert vector.any()


def test_no_texts(folder):
    assert embed([], model=folder).shape == (0, 32)


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"dtype": "int4"}, {"threads": 0}])
def test_options_that_cannot_be(options, folder):
    with pytest.raises(InputError):
        embed("a dog", model=folder, **options)


@pytest.mark.parametrize("model", ["../../etc", "a\0b", "x" * 10_000, "no-such-model"])
def test_models_that_are_not_here(model):
    with pytest.raises((NotFoundError, InputError, CheckpointError)):
        embed("a dog", model=model, offline=True)


def change(folder, name, **values):
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config | values))


CONFIGS = [
    ({"model_type": "gpt2"}, "unknown model_type 'gpt2'"),
    ({"model_type": None}, "unknown model_type"),
    ({"num_attention_heads": 0}, "heads=0"),
    ({"num_attention_heads": 5}, "not divisible by heads=5"),
    ({"vocab_size": -1}, "vocab=-1 is out of range"),
    ({"num_hidden_layers": 10**9}, "layers=1000000000"),
    ({"max_position_embeddings": 10**12}, "context=1000000000000"),
    ({"layer_norm_eps": float("nan")}, "norm_eps"),
    ({"hidden_act": "mish"}, "activation"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"type_vocab_size": 0}, "type_vocab_size=0"),
    ({"hidden_size": "64"}, "dim="),
]


@pytest.mark.parametrize(("values", "message"), CONFIGS)
def test_configurations_that_cannot_be(values, message, folder):
    change(folder, "config.json", **values)
    with pytest.raises(ConfigError, match=message):
        embed("a dog", model=folder)


def test_weights_of_another_shape(folder):
    change(folder, "config.json", vocab_size=61)
    with pytest.raises(CheckpointError, match="token.weight is"):
        embed("a dog", model=folder)


SAID = [
    ("modules.json", '{"type": "x.Dense", "path": "2_Dense"}', "asks for"),
    ("modules.json", '[{"type": "x.Pooling"}]', "asks for"),
    ("modules.json", "[" * 100_000, "is not JSON"),
    ("modules.json", '[{"type": "x.Pooling", "path": "../elsewhere"}]', "points out of the model folder"),
    ("modules.json", '[{"type": "x.Transformer", "path": "inner"}]', "must lie beside it"),
    ("sentence_bert_config.json", '{"max_seq_length": 0}', "max_seq_length=0 is out of range"),
    ("sentence_bert_config.json", '{"max_seq_length": "long"}', "is out of range"),
    ("sentence_bert_config.json", '{"transformer_task": "fill-mask"}', "transformer_task='fill-mask' is not supported"),
    ("config_sentence_transformers.json", '{"similarity_fn_name": "taxi"}', "similarity_fn_name='taxi' is not"),
    ("config_sentence_transformers.json", '{"default_prompt_name": "a"}', "default_prompt_name='a' is none of its"),
]


@pytest.mark.parametrize(("name", "text", "message"), SAID)
def test_what_a_folder_says_wrong(name, text, message, folder):
    (folder / name).write_text(text)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        embed("a dog", model=folder)


@pytest.mark.parametrize(
    "pooling", [{}, {"pooling_mode": "lasttoken"}, {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}]
)
def test_poolings_that_are_not_known(pooling, folder):
    (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    change(folder, "1_Pooling/config.json", **pooling)
    with pytest.raises(ConfigError, match="is not supported; known"):
        embed("a dog", model=folder)


WORDPIECE = {
    "normalizer": {"type": "BertNormalizer", "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "a": 4}},
}
TOKENIZERS = [
    ({"model": {"type": "Unigram", "vocab": []}}, "a Unigram model"),
    ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "[CLS]": 1}}}, r"no token '\[SEP\]'"),
    ({"model": {"type": "WordPiece", "vocab": {"[CLS]": 0, "[SEP]": 1}}}, r"no token '\[UNK\]'"),
    ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 1}}}, "the same id"),
    ({"model": {"type": "WordPiece", "vocab": {"[UNK]": -1, "[CLS]": 1, "[SEP]": 2}}}, "ids count from 0"),
    ({"model": {"type": "WordPiece", "vocab": {"[UNK]": True, "[CLS]": 1, "[SEP]": 2}}}, "ids count from 0"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}, "prepares texts by"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, "prepares texts by"),
    ({"model": None}, "has no vocab and merges"),
]


@pytest.mark.parametrize(("values", "message"), TOKENIZERS)
def test_tokenizers_that_cannot_be(values, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDPIECE | values))
    with pytest.raises(CheckpointError, match=message):
        BertTokenizer.load(tmp_path)


def test_tokenizer_files_that_are_broken(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        BertTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        BertTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"no token '\[UNK\]'"):
        BertTokenizer.load(tmp_path)


def test_a_tokenizer_of_another_model(folder):
    learn_wordpiece(["abc def"], 20).save(folder)
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "\n".join(f"w{i}" for i in range(100)))
    for run in (lambda: embed("a dog", model=folder), lambda: fill("[MASK]", model=folder)):
        with pytest.raises(CheckpointError, match="the model 60"):
            run()


def test_labels_that_cannot_be():
    from qkv.weights.bert import read_labels

    assert read_labels({}) == ["LABEL_0", "LABEL_1"]
    assert read_labels({"num_labels": 3}) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    for names in ({"1": "a"}, {"0": 3}, {}, ["a"]):
        with pytest.raises(ConfigError, match="must hold a name for each number"):
            read_labels({"id2label": names})
    for count in (10**12, "2"):
        with pytest.raises(ConfigError, match="must hold a name for each number"):
            read_labels({"num_labels": count})


COMMANDS = [
    (["embed", ""], "text 1 of 1 is empty"),
    (["embed", "a", "-o", "vectors.txt"], "end the name in .npy or .jsonl"),
    (["embed", "{binary}"], "it is binary, not text"),
    (["embed", "{empty}"], "there is no text in"),
    (["embed", "{folder}"], "is a folder; name a file in it"),
    (["embed", "nothing.txt"], "there is no file 'nothing.txt'"),
    (["embed", "/dev/zero"], "it is not a regular file"),
    (["embed", "-"], "the input: it is binary, not text"),
    (["fill", "-"], "the input: it is binary, not text"),
    (["embed", "a", "-o", "nowhere/vectors.npy"], "cannot write"),
    (["fill", "no mask"], "the text has no mask"),
    (["search", "x", "{binary}"], "there is no text in"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS)
def test_one_line_and_2(arguments, message, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "binary").write_bytes(b"\0\1")
    (tmp_path / "empty").write_bytes(b"\n\n")
    paths = {"binary": tmp_path / "binary", "empty": tmp_path / "empty", "folder": tmp_path}
    given = [word.format(**paths) for word in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\0b")))
    with pytest.raises(SystemExit) as ended:
        cli.main([*given, "--model", str(folder)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["x" * 300, "a dog " * 1000, "a\0b", "dog.", "and/or", "a dog, in ./here.txt"])
def test_texts_that_are_no_names_of_files(text):
    assert named_file(text) is None
