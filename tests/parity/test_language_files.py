"""A tokenizer's folder read as transformers' AutoTokenizer reads it, whichever of its files say what."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from qkv.errors import CheckpointError, ConfigError
from qkv.text.bert import BertTokenizer
from qkv.text.chat import ChatTemplate, Message
from qkv.text.language import LanguageTokenizer
from qkv.text.language_files import KEYS, read_told

TEXTS = [
    "user cafe\u0301",
    "user caf\u00e9 12345",
    "  two  spaces\n\n",
    "It's <tool> here<|im_end|>",
    "",
    "\u6f22 \U0001f642",
]
pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


@pytest.fixture(scope="module")
def learnt() -> dict[str, Any]:
    """A byte-level tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=265, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["user caf\u00e9 it's 12345"] * 9, trainer)
    assert tokenizer.get_vocab_size() == 265
    return json.loads(tokenizer.to_str())


def folder_of(path: Path, **files: Any) -> Path:
    for name, value in files.items():
        suffix = "txt" if name == "merges" else "json"
        (path / f"{name}.{suffix}").write_text(value if suffix == "txt" else json.dumps(value))
    return path


def split(learnt: dict[str, Any], **more: int) -> dict[str, Any]:
    """As vocab.json and merges.txt."""
    merges = "#version: 0.2\n" + "\n".join(map(" ".join, learnt["model"]["merges"]))
    return {"vocab": learnt["model"]["vocab"] | more, "merges": merges}


def added(first: int, *names: str, **flags: bool) -> dict[str, dict[str, Any]]:
    return {str(first + i): {"content": name, "special": True} | flags for i, name in enumerate(names)}


QWEN = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
TOOL = {"<tool>": {"content": "<tool>", "special": False, "normalized": False}}
CASES: dict[str, dict[str, Any]] = {
    "Qwen 2": {"tokenizer_config": QWEN | {"added_tokens_decoder": added(265, "<|im_start|>", "<|im_end|>")}},
    "Qwen 2, its space": {
        "tokenizer_config": QWEN
        | {"add_prefix_space": True, "added_tokens_decoder": added(265, "<|im_start|>", "<|im_end|>")}
    },
    "Qwen 2 by its model": {"config": {"model_type": "qwen2"}},
    "GPT-2": {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}},
    "GPT-2, its space": {"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}},
    "older: added_tokens.json": {
        "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"},
        "special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens": {"<|im_start|>": 265, "<|im_end|>": 266, "<tool>": 267},
    },
    "a token that is not special": {
        "tokenizer_config": QWEN
        | {"added_tokens_decoder": added(265, "<|im_end|>") | {"266": TOOL["<tool>"]}, "unk_token": "<|im_end|>"}
    },
    "named only": {
        "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "bos_token": "<|im_end|>"}
        | {"additional_special_tokens": ["<|im_start|>", "<tool>"]}
    },
}


@pytest.mark.parametrize("name", CASES)
def test_vocab_and_merges(tmp_path: Path, learnt: dict[str, Any], name: str) -> None:
    folder = folder_of(tmp_path, **split(learnt), **CASES[name])
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), LanguageTokenizer.load(folder)
    for text in [*TEXTS, "<|im_start|>user"]:
        assert ours.encode(text, control=True) == theirs.encode(text), text
    if "<|im_end|>" in ours.vocabulary.ids:
        assert ours.stops >= {theirs.convert_tokens_to_ids("<|im_end|>")}
    assert not ours.vocabulary.warnings


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("written", [True, False])
def test_the_space_before_a_text(tmp_path, learnt, asked, kind, written) -> None:
    """tokenizer_config.json against tokenizer.json: who wins depends on the class."""
    whole = learnt | {"pre_tokenizer": learnt["pre_tokenizer"] | {"add_prefix_space": written}}
    config = {"tokenizer_class": kind} | ({} if asked is None else {"add_prefix_space": asked})
    folder = folder_of(tmp_path, tokenizer=whole, tokenizer_config=config)
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), LanguageTokenizer.load(folder)
    for text in TEXTS:
        assert ours.encode(text, control=True) == theirs.encode(text), text


def test_tokens_beside_tokenizer_json(tmp_path: Path, learnt: dict[str, Any]) -> None:
    """added_tokens_decoder adds what tokenizer.json has not, and an export keeps it."""
    decoder = added(265, "<|im_start|>", "<|im_end|>") | {"267": TOOL["<tool>"]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    folder = folder_of(tmp_path, tokenizer=learnt, tokenizer_config=config | {"added_tokens_decoder": decoder})
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), LanguageTokenizer.load(folder)
    ours.save(tmp_path / "again")
    for tokenizer in (ours, LanguageTokenizer.load(tmp_path / "again")):
        for text in [*TEXTS, "<pad><|im_start|>user"]:
            assert tokenizer.encode(text, control=True) == theirs.encode(text), text
        assert tokenizer.vocabulary.named["pad_token"] == "<pad>"
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (again.pad_token, again.eos_token) == ("<pad>", "<|im_end|>")


def test_a_class_that_needs_its_tokenizer_json(tmp_path: Path, learnt: dict[str, Any]) -> None:
    folder = folder_of(tmp_path, **split(learnt), tokenizer_config={"tokenizer_class": "DebertaTokenizer"})
    with pytest.raises(CheckpointError, match="DebertaTokenizer cuts texts .* get the folder's tokenizer.json"):
        LanguageTokenizer.load(folder)


@pytest.mark.parametrize(
    "said",
    [{"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False}, {}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_how_bert_cleans_texts(tmp_path: Path, said: dict[str, Any], kind: str) -> None:
    """do_lower_case against tokenizer.json: the class cleans, a generic one does as the file says."""
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*control, "user", "USER", "caf\u00e9", "cafe", "\u6f22", "\u6f22\u5b57", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), control))
    folder = folder_of(
        tmp_path, tokenizer=json.loads(tokenizer.to_str()), tokenizer_config={"tokenizer_class": kind} | names | said
    )
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), BertTokenizer.load(folder)
    for text in ("user USER", "CAF\u00c9 caf\u00e9s", "\u6f22\u5b57"):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text)[1:-1] == expected, text


def test_words_that_bert_was_given(tmp_path: Path) -> None:
    """Tokens that were added and are not special are one id, on either way to say so."""
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*control, "a", "cat", "##s"]) + "\n")
    decoder = {"8": {"content": "<cat-toy>", "special": False, "normalized": True}}
    for files in (
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder}},
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer"}, "added_tokens": {"<cat-toy>": 8}},
    ):
        folder = folder_of(tmp_path, **files)
        theirs, ours = hf.AutoTokenizer.from_pretrained(folder), BertTokenizer.load(folder)
        for text in ("a cat <cat-toy> cats", "<cat-toy><cat-toy>", "a <CAT-toy>"):
            assert ours.encode(text) == theirs.encode(text), text
        ours.save(tmp_path / "again")
        assert BertTokenizer.load(tmp_path / "again").encode("a <cat-toy>") == ours.encode("a <cat-toy>")


def test_chat_templates_see_every_named_token(tmp_path: Path, learnt: dict[str, Any]) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    template = (
        "{% for m in messages %}{{ pad_token }}{{ unk_token }}{% filter trim %}  {{ m.content }}  {% endfilter %}"
        "{{ eos_token }}{{ cls_token }}{% endfor %}"
    )
    folder = folder_of(tmp_path, **split(learnt), tokenizer_config=config | {"chat_template": template})
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), LanguageTokenizer.load(folder)
    found = ChatTemplate.load(folder).encode([Message("user", " user caf\u00e9 ")], ours)
    said = theirs.apply_chat_template([{"role": "user", "content": " user caf\u00e9 "}], return_dict=False)
    assert found == said
    assert ours.decode(found, control=True) == "<pad><unk>user caf\u00e9</s>"


CLASSES = (hf.GPT2Tokenizer, hf.Qwen2Tokenizer, hf.LlamaTokenizer, hf.RobertaTokenizer, hf.BertTokenizer)


@pytest.mark.parametrize("kind", [*CLASSES, hf.MPNetTokenizer, hf.MarianTokenizer], ids=lambda kind: kind.__name__)
def test_every_key_of_transformers_is_known(kind: type) -> None:
    """What a class takes, and what the base writes down."""
    taken = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "vocab", "merges", "source_spm"}
    taken -= {"target_spm", "target_vocab_file"}
    assert taken - KEYS.names == set()


def test_keys_that_are_not_known_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, tokenizer_config={"lowercase_all": True, "image_token": "<image>", "padding_side": "left"})
    (warning,) = read_told(tmp_path).warnings
    assert warning.startswith("unknown-keys: tokenizer_config.json has lowercase_all; ")
    folder_of(tmp_path, tokenizer_config={"split_special_tokens": True})
    with pytest.raises(ConfigError, match="split_special_tokens=True is not supported"):
        read_told(tmp_path)
