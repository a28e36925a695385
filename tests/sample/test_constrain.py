"""Constrained output: always valid, refused where it can't be honoured, bounded whatever is asked."""

import json
import re
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import InputError, MissingDependencyError
from qkv.sample.constrain import MAX_GRAMMAR, Grammar, Healing, Lexicon, from_regex, from_schema, take_back
from qkv.sample.tokens import Sampling, TokenSampler

WORDS = ["name", "age", ' "', '":', '", "', "tr", "true", "12", "ab", "abc", " the", "é", "\n\n", "}}", "aa", "aaaa"]


class Spelled:
    """A vocabulary of two control tokens, the bytes, and some words; logits are padded to a multiple of 64."""

    tokens = (b"<end>", b"<start>", *(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS))
    vocab = len(tokens)
    width = -(-vocab // 64) * 64

    def is_control(self, id: int) -> bool:
        return id < 2

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def encode(self, text: str) -> list[int]:
        return [byte + 2 for byte in text.encode()]


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(Spelled(), Spelled.width, [0])


def write(lexicon: Lexicon, grammar: Grammar, seed: int, tokens: int = 400) -> tuple[str, bool]:
    """What a model with random logits writes, and whether it came to an end."""
    random, written = np.random.default_rng(seed), b""
    sampler = TokenSampler(Sampling(), [], lexicon.width, constraint=grammar.start())
    for _ in range(tokens):
        values = random.standard_normal(lexicon.width).astype(np.float32)
        values[0] += 3  # or a list would hardly ever end
        token = sampler.next(values).id
        if token == 0:
            return written.decode(), True
        written += lexicon.tokens[token]
    return written.decode(errors="ignore"), False


PATTERNS = [
    r"\d{3}-[a-z]+",
    r"(yes|no|maybe)",
    r"[A-Z][a-zé]{2,5}( [a-z]+)*\.",
    r"(a+)+b",
    r"(a|b)*a(a|b){20}",
    r".{3}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regex_holds(lexicon: Lexicon, pattern: str) -> None:
    grammar, ended = from_regex(lexicon, pattern), 0
    for seed in range(15):
        text, whole = write(lexicon, grammar, seed)
        ended += whole
        assert not whole or re.fullmatch(pattern, text)
    assert ended


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "c d"]}, "maxItems": 2},
        "more": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "more"],
    "additionalProperties": False,
}


def test_a_schema_holds(lexicon: Lexicon) -> None:
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        grammar = from_schema(lexicon, schema)
        for seed in range(15):
            text, whole = write(lexicon, grammar, seed)
            assert whole
            value = json.loads(text)
            assert list(value) == ["name", "age", "tags", "more"]
            assert isinstance(value["name"], str)
            assert 0 <= value["age"] <= 120
            assert set(value["tags"]) <= {"a", "é", "c d"}
            assert value["more"] in (True, False, None)
            spaced = json.dumps(value, ensure_ascii=False)
            assert "\\" in text or text == spaced  # the spaces of json.dumps; strings may be escaped in several ways


def test_each_sequence_follows_on_its_own(lexicon: Lexicon) -> None:
    grammar = from_regex(lexicon, "ab")
    one, other = grammar.start(), grammar.start()
    one.accept(2 + ord("a"))
    assert list(np.flatnonzero(one.allowed())) == [2 + ord("b")]
    assert 2 + ord("b") not in np.flatnonzero(other.allowed())


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE_SCHEMAS: dict[str, Any] = {
    "a type that is none": {"type": "strin"},
    "not implemented": {"not": {"type": "string"}},
    "not implemented either": {"type": "array", "uniqueItems": True},
    "a list": [1],
    "a number": 3,
    "none": None,
    "cut": "{",
    "no text at all": "",
    "itself": {"$ref": "#"},
    "from elsewhere": {"$ref": "http://localhost:1/a"},
    "a file": {"$ref": "file:///etc/passwd"},
    "nothing fits": {"type": "integer", "minimum": 5, "maximum": 4},
    "NaN": {"const": float("nan")},
    "no JSON": {"type": object()},
    "deep": nested(3000),
    "deeper, as a text": "[" * 100_000,
    "large": {"enum": ["x" * 40] * 1000},
    "exponential": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}": {"type": "string"}}}, {"properties": {f"b{i}": {"type": "string"}}}]}
            for i in range(30)
        ]
    },
}
HOSTILE_PATTERNS: dict[str, Any] = {
    "open": "(a",
    "looks ahead": "(?=a)b",
    "refers back": r"(a)\1",
    "word boundary": r"\bfoo\b",
    "nested": "(" * 10_000 + "a" + ")" * 10_000,
    "nothing fits": r"[^\s\S]",
    "large": "a" * (MAX_GRAMMAR + 1),
    "empty": "",
    "no text": 5,
}


@pytest.mark.parametrize(("make", "given_", "name"), [
    *((from_schema, value, name) for name, value in HOSTILE_SCHEMAS.items()),
    *((from_regex, value, name) for name, value in HOSTILE_PATTERNS.items()),
], ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "")  # fmt: skip
def test_refused_in_time(lexicon: Lexicon, make: Any, given_: Any, name: str) -> None:
    lexicon.guide  # noqa: B018  built once a model
    began = time.process_time()
    with pytest.raises(InputError, match="^(schema|regex)") as error:
        make(lexicon, given_)
    assert time.process_time() - began < 0.25
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


BOUNDED = {
    "repeated": lambda lexicon: from_regex(lexicon, "((a{1000}){1000}){1000}"),
    "repeated differently": lambda lexicon: from_regex(lexicon, "(x{1,30000}y?){1,30000}"),
    "ambiguous": lambda lexicon: from_regex(lexicon, "(.*.*.*.*.*.*.*.*)*x{500}[a-z]{300}"),
    "many states": lambda lexicon: from_regex(
        lexicon, "(" + "|".join(f".*{letter}.{{{n + 5}}}" for n, letter in enumerate("abcdefghijklmnop")) + ")*"
    ),
    "long": lambda lexicon: from_regex(lexicon, "a" * (MAX_GRAMMAR - 1)),
    "wide": lambda lexicon: from_regex(lexicon, "|".join(f"w{i}.*" for i in range(4000))),
    "no end": lambda lexicon: from_schema(
        lexicon,
        {
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"c": {"$ref": "#/$defs/n"}},
                    "required": ["c"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/n",
        },
    ),
    "many properties": lambda lexicon: from_schema(
        lexicon, {"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}
    ),
    "a long string": lambda lexicon: from_schema(lexicon, {"type": "string", "minLength": 10**6}),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded(lexicon: Lexicon, name: str) -> None:
    """Compiling and 20 tokens take a second or two at most, or are given up with an error."""
    lexicon.guide  # noqa: B018
    began = time.process_time()
    with suppress(InputError):
        write(lexicon, BOUNDED[name](lexicon), 0, tokens=20)
    assert time.process_time() - began < 2.5


def test_without_the_package(lexicon: Lexicon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make, given_ in ((from_schema, {}), (from_regex, "a")):
        with pytest.raises(MissingDependencyError, match=re.escape("pip install 'qkv[structured]'")):
            make(Lexicon(Spelled(), Spelled.width, [0]), given_)


@given(
    st.lists(st.sampled_from([b"a", b"b", b" ", b"c", b"ab", b"aa", b" the"]), min_size=1, max_size=4),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_healed_text_begins_with_what_was_taken_back(lexicon: Lexicon, parts: list[bytes], seed: int) -> None:
    """One token that begins with all that is left, or the next token as it was; nothing between."""
    left = [lexicon.tokens.index(part) for part in parts]
    healing, random, written = Healing(lexicon, left), np.random.default_rng(seed), b""
    sampler = TokenSampler(Sampling(), [], lexicon.width, constraint=healing)
    while (mask := healing.allowed()) is not None:
        rest = b"".join(parts)[len(written) :]
        assert set(np.flatnonzero(mask)) == {left[0]} | {i for i, t in enumerate(lexicon.tokens) if t.startswith(rest)}
        written += lexicon.tokens[sampler.next(random.standard_normal(lexicon.width).astype(np.float32)).id]
        left = left[1:]
    assert written.startswith(b"".join(parts))


def test_what_is_taken_back(lexicon: Lexicon) -> None:
    the = Spelled.tokens.index(b" the")
    assert take_back(lexicon, [5, the]) == ([5], b" the")
    letters = [2 + ord(letter) for letter in "xaaaa"]
    assert take_back(lexicon, letters[:4]) == (letters[:1], b"aaa")  # `aaaa` is a token
    assert take_back(lexicon, [*letters, letters[1]]) == (letters[:2], b"aaaa")
    assert take_back(lexicon, letters[:2]) == (letters[:1], b"a")
    assert take_back(lexicon, [the]) == ([the], b"")  # something has to be read
    assert take_back(lexicon, [5, 2 + 0xC3]) == ([5, 2 + 0xC3], b"")  # half a character
    assert take_back(lexicon, [5, 1]) == ([5, 1], b"")  # a control token
