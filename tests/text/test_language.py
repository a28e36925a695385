"""Control tokens, bytes and streams of a language tokenizer. Equal ids: tests/parity/test_language_tokenizer.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CheckpointError, InputError, OutputError
from qkv.text.language import LanguageTokenizer
from qkv.text.vocabulary import BYTE_OF, Added, Vocabulary, assemble
from qkv.text.words import Rules, byte_rules, gguf_rules, json_rules

BYTES = list(BYTE_OF)
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("ð", "Ł"), ("ðŁ", "Ĳ")]
END, START, THINK, SPACES = "<|im_end|>", "<|im_start|>", "<think>", "    "


def vocabulary(rules: Rules | None = None, **changes: Any) -> Vocabulary:
    ids = {token: id for id, token in enumerate([*BYTES, *(left + right for left, right in MERGES)])}
    contents = {END: True, START: False, THINK: False, SPACES: False}
    added = [Added(id=300 + i, content=name, special=special) for i, (name, special) in enumerate(contents.items())]
    parts = {"merges": MERGES, "rules": rules or byte_rules(), "added": added, "bos": START, "eos": END}
    return assemble(ids, **parts | changes)


@pytest.fixture(scope="module")
def tokenizer() -> LanguageTokenizer:
    return LanguageTokenizer(vocabulary())


def pieces() -> LanguageTokenizer:
    """Sentencepiece's kind, with nothing but bytes and two words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return LanguageTokenizer(
        assemble(
            {token: id for id, token in enumerate(tokens)},
            added=[Added(id=id, content=tokens[id], special=True) for id in range(3)],
            merges=[("▁", "h"), ("▁h", "i")],
            rules=json_rules({"pre_tokenizer": words}),
            bos="<s>",
            eos="</s>",
        )
    )


def test_every_byte_has_its_symbol() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert [BYTE_OF[symbol] for symbol in "!~¡ÿĀĠŃ"] == [33, 126, 161, 255, 0, 32, 173]


def test_what_counts_as_control(tokenizer: LanguageTokenizer) -> None:
    """What is flagged special, and what is spelled like it; <think> and spaces are ordinary tokens that were added."""
    assert set(tokenizer.control) == {END, START}
    assert tokenizer.encode(f"{THINK}a{SPACES}b") == [302, *tokenizer.encode("a"), 303, *tokenizer.encode("b")]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stops, tokenizer.vocab) == (301, 300, {300}, 304)


@given(parts=st.lists(st.sampled_from([END, START, "hello", " ", "<|im", "_end|>", "é"])))
def test_spelled_control_tokens_are_plain_text(tokenizer: LanguageTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not any(map(tokenizer.is_control, ids))
    assert tokenizer.decode(ids) == text
    asked = tokenizer.encode(text, control=True)
    assert sum(map(tokenizer.is_control, asked)) == text.count(END) + text.count(START)
    assert tokenizer.decode(asked, control=True) == text
    assert tokenizer.decode(asked) == text.replace(END, "").replace(START, "")


def test_the_longest_control_token_counts() -> None:
    added = [Added(id=300, content="<|a|>", special=True), Added(id=301, content="<|a|>b|>", special=True)]
    tokenizer = LanguageTokenizer(vocabulary(added=added, bos=None, eos=None))
    assert tokenizer.encode("<|a|>b|><|a|>", control=True) == [301, 300]


def test_control_tokens_that_swallow_space() -> None:
    added = [Added(id=300, content=END, special=True, rstrip=True), Added(id=301, content=START, lstrip=True)]
    tokenizer = LanguageTokenizer(vocabulary(added=added))
    text = f"hello \n {START} hello {END}\n\n hello"
    hello = tokenizer.encode("hello")
    assert tokenizer.encode(text, control=True) == [
        *hello, 301, *tokenizer.encode(" hello "), 300, *hello,
    ]  # fmt: skip


@given(text=st.text(st.characters()))
def test_every_text_comes_back(tokenizer: LanguageTokenizer, text: str) -> None:
    """Half surrogate pairs, which no UTF-8 holds, as U+FFFD; two halves that meet are a character."""
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == valid


@given(ids=st.lists(st.integers(0, 310), max_size=40), control=st.booleans())
def test_streams_give_whole_characters(tokenizer: LanguageTokenizer, ids: list[int], control: bool) -> None:
    """Row 20. Any ids, most of them no UTF-8 together."""
    stream = tokenizer.stream(control=control)
    texts = [stream.push(id) for id in ids] + [stream.finish()]
    shown = [id for id in ids if control or not tokenizer.is_control(id)]
    data = b"".join(map(tokenizer.token_bytes, shown))
    assert "".join(texts) == tokenizer.decode(ids, control=control) == data.decode("utf-8", "replace")
    "".join(texts).encode()


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_streams_never_split_a_character(tokenizer: LanguageTokenizer, text: str) -> None:
    stream = tokenizer.stream()
    position = 0
    for id in tokenizer.encode(text):
        piece = stream.push(id)
        assert text.startswith(piece, position)
        position += len(piece)
    assert position == len(text)
    assert stream.finish() == ""


def test_an_unfinished_character_is_said_at_the_end(tokenizer: LanguageTokenizer) -> None:
    stream = tokenizer.stream()
    dog = tokenizer.encode("🐶")
    assert [stream.push(id) for id in dog[:-1]] == [""] * (len(dog) - 1)
    assert stream.finish() == "\ufffd"


def test_token_bytes(tokenizer: LanguageTokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.encode(" hello")[0]) == b" hello"
    assert tokenizer.token_bytes(300) == END.encode()
    assert tokenizer.token_bytes(303) == b"    "
    assert tokenizer.token_bytes(299) == tokenizer.token_bytes(999) == b""  # holes and an embedding's padding
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("naïve 🐶"))) == "naïve 🐶".encode()
    for id in (-1, 2**62):
        with pytest.raises(InputError, match="out of range"):
            tokenizer.token_bytes(id)


def test_pieces_begin_with_a_space() -> None:
    tokenizer = pieces()
    hi = tokenizer.encode("hi")
    assert hi == [tokenizer.vocabulary.ids["▁hi"]]
    assert tokenizer.decode(hi) == "hi"
    assert tokenizer.decode(hi * 2) == "hi hi"
    assert tokenizer.stream(continues=True).push(*hi) == " hi"
    assert tokenizer.encode("</s>hi", control=True) == [2, *(tokenizer.vocabulary.ids[token] for token in "hi")]
    assert tokenizer.decode(tokenizer.encode("hi 狗\n")) == "hi 狗\n"


@pytest.mark.parametrize("rules", [gguf_rules("llama-bpe"), gguf_rules("qwen2"), gguf_rules("smollm"), byte_rules()])
def test_saving_and_loading(rules: Rules, tmp_path: Path) -> None:
    ours = LanguageTokenizer(vocabulary(rules, adds_bos=True, stops=[5]))
    ours.save(tmp_path)
    again = LanguageTokenizer.load(tmp_path)
    assert (again.bos, again.eos, again.stops, again.adds_bos) == (ours.bos, ours.eos, ours.stops, True)
    assert again.vocabulary.ids == ours.vocabulary.ids
    assert again.vocabulary.added == ours.vocabulary.added
    text = f"hello 12345 é\n\n  {THINK}{SPACES} it's {END}"
    assert again.encode(text, control=True) == ours.encode(text, control=True)
    again.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_nowhere_to_save(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        tokenizer.save(tmp_path / "file" / "folder")


def test_where_ends_of_answers_come_from(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert LanguageTokenizer.load(tmp_path).stops == {7, 8, 9, 300}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "no", "x": None}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [12345, None, True]}))
    assert LanguageTokenizer.load(tmp_path).stops == {300}


def test_the_configuration_says_whether_texts_begin_with_bos(tmp_path: Path) -> None:
    LanguageTokenizer(vocabulary(adds_bos=True)).save(tmp_path)
    for told, expected in ({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": None}, True):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": START}} | told))
        assert LanguageTokenizer.load(tmp_path).adds_bos == expected
    (tmp_path / "tokenizer_config.json").write_text("{}")  # and with no bos nothing can be added
    assert not LanguageTokenizer.load(tmp_path).adds_bos


GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*BYTES, "he", END, "[PAD]"],
    "tokenizer.ggml.merges": ["h e"],
    "tokenizer.ggml.token_type": [1] * 257 + [3, 5],
    "tokenizer.ggml.eos_token_id": 257,
}


def test_gguf_metadata() -> None:
    tokenizer = LanguageTokenizer.from_gguf(GGUF)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stops, tokenizer.adds_bos) == (None, 257, {257}, False)
    assert tokenizer.encode("he[PAD]")[0] == 256
    assert 258 not in tokenizer.encode("[PAD]", control=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"model": None}, "tokenizer.ggml.model is None"),
        ({"pre": "nobody's"}, 'unknown tokenizer.ggml.pre "nobody\'s"'),
        ({"pre": "default"}, "unknown tokenizer.ggml.pre"),
        ({"tokens": None}, "no tokens and merges"),
        ({"merges": 7}, "no tokens and merges"),
        ({"merges": ["h"]}, "not two symbols"),
        ({"merges": ["h e e"]}, "not two symbols"),
        ({"merges": ["h l"]}, "do not fit together"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"tokens": ["a", "b"], "token_type": [1, 1], "eos_token_id": 0}, "no token for"),
        ({"token_type": [1]}, "types"),
        ({"token_type": 7}, "types"),
        ({"eos_token_id": 10**9}, "no token's id"),
        ({"bos_token_id": "a"}, "no token's id"),
    ],
)
def test_gguf_metadata_that_does_not_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        LanguageTokenizer.from_gguf(GGUF | {f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    assert reason in str(error.value)
