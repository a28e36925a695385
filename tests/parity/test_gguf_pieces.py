"""Sentencepiece vocabularies in GGUF files against the sentencepiece library, on a model trained here."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import CheckpointError
from qkv.text.gguf_pieces import MAX_PIECE
from qkv.text.language import LanguageTokenizer
from qkv.weights.gguf import open_gguf

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "def factorial(n):\n    return 1 if n == 0 else n * factorial(n - 1)",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "人工智慧 生成 圖片，從 提示 到 圖片。",
    "the thing and the other thing, and 123 things more",
] * 20
TEXTS = [
    *(
        "",
        " ",
        "the thing",
        " the thing",
        "  two  spaces ",
        "a\nb\n\n    c",
        "über Größe",
        "人工智慧",
        "日本語 かな",
        "👩🏽‍🚀",
    ),
    *("<s>", "</s> the", "<unk>", "<0x41>", "▁the", "\t\r\n", "x" * 300, "aaaa aaaaa", "12345", "é e\u0301", "\ufffd"),
]
PIECES = 380


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    """Byte pairs as Llama 2's: bytes for what is unknown, no text changed, digits alone."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata(reference: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    """As converters write it."""
    ids = range(reference.vocab_size())
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [reference.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([reference.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": reference.bos_id(),
        "tokenizer.ggml.eos_token_id": reference.eos_id(),
    }


@pytest.fixture(scope="module")
def ours(reference) -> LanguageTokenizer:
    return LanguageTokenizer.from_gguf(metadata(reference))


def check(ours: LanguageTokenizer, reference: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = ours.encode(text)
    assert ids == reference.encode(text)
    assert ours.decode(ids) == reference.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_texts(ours, reference, text: str) -> None:
    if "▁" not in text:  # sentencepiece's own space
        check(ours, reference, text)
    assert ours.encode(text) == reference.encode(text)


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="▁\0"), max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_text(ours, reference, text: str) -> None:
    check(ours, reference, text)


@given(st.text("thean dog1\n ", max_size=40))
@settings(max_examples=200, deadline=None)
def test_texts_of_known_pieces(ours, reference, text: str) -> None:
    check(ours, reference, text)


def test_what_begins_and_ends(ours, reference) -> None:
    assert (ours.bos, ours.eos, ours.adds_bos) == (reference.bos_id(), reference.eos_id(), True)
    assert ours.stops == {reference.eos_id()}
    assert ours.encode("<s>the", control=True) == [reference.bos_id(), *reference.encode("the")]
    stream = ours.stream(continues=True)
    assert stream.push(*reference.encode("the thing")) + stream.finish() == " the thing"


def test_without_a_leading_space(reference) -> None:
    ours = LanguageTokenizer.from_gguf(metadata(reference) | {"tokenizer.ggml.add_space_prefix": False})
    assert ours.encode(" the thing") == reference.encode("the thing")
    assert ours.decode(ours.encode(" the")) == " the"


def test_saved_and_read_again(ours, tmp_path) -> None:
    ours.save(tmp_path)
    again = LanguageTokenizer.load(tmp_path)
    assert all(again.encode(text) == ours.encode(text) for text in TEXTS)


def test_out_of_a_file(reference, ours, tmp_path) -> None:
    """Written by the reference's own writer."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    given_ = metadata(reference)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(given_["tokenizer.ggml.tokens"])
    writer.add_token_scores(given_["tokenizer.ggml.scores"].tolist())
    writer.add_token_types(given_["tokenizer.ggml.token_type"].tolist())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = LanguageTokenizer.from_gguf(open_gguf(tmp_path / "a.gguf").metadata)
    assert all(again.encode(text) == ours.encode(text) for text in TEXTS)


def test_the_order_of_scores_matters(reference, ours) -> None:
    given_ = metadata(reference)
    turned = given_ | {"tokenizer.ggml.scores": -given_["tokenizer.ggml.scores"]}
    other = LanguageTokenizer.from_gguf(turned)
    assert any(other.encode(text) != ours.encode(text) for text in TEXTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": None}, "no tokens and scores"),
        ({"scores": [1.0]}, "no tokens and scores"),
        ({"scores": np.zeros(3, np.float32)}, "380 tokens, but 3 of their scores"),
        ({"scores": np.full(PIECES, np.nan, np.float32)}, "is nan; get the file again"),
        ({"model": "t5"}, "'gpt2' .* and 'llama' .* are read"),
        ({"token_type": np.full(PIECES, 3)}, "no token for"),
    ],
)
def test_broken_ones_are_refused(reference, changes, said: str) -> None:
    given_ = metadata(reference) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    if "token_type" in changes:
        given_["tokenizer.ggml.tokens"] = [f"x{i}" for i in range(PIECES)]
    with pytest.raises(CheckpointError, match=said):
        LanguageTokenizer.from_gguf(given_)


def test_a_piece_that_is_too_long_is_refused(reference) -> None:
    given_ = metadata(reference)
    given_["tokenizer.ggml.tokens"][-1] = "a" * (MAX_PIECE + 1)
    with pytest.raises(CheckpointError, match="a piece of 257 characters"):
        LanguageTokenizer.from_gguf(given_)
