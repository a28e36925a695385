"""Hostile tokenizers, chat templates and texts: refused in one line, or done in bounded time and memory."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qkv.errors import CheckpointError, InputError
from qkv.text.chat import ChatTemplate, Message
from qkv.text.language import LanguageTokenizer
from qkv.text.vocabulary import BYTE_OF, Added, assemble
from qkv.text.words import PATTERNS, byte_rules

# Row 12.

BYTES = {symbol: id for id, symbol in enumerate(BYTE_OF)}
MODEL: dict[str, Any] = {"type": "BPE", "vocab": BYTES | {"he": 256}, "merges": [["h", "e"]]}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: object, **changes: object) -> dict[str, Any]:
    node = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} | changes
    return {"type": "Sequence", "pretokenizers": [node, BYTE_LEVEL | {"use_regex": False}]}


def tokenizer_json(model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"model": MODEL | (model or {}), "added_tokens": [], "pre_tokenizer": BYTE_LEVEL} | changes


def with_token(token: Any) -> dict[str, Any]:
    return tokenizer_json(added_tokens=[token])


MISSING = {symbol: id for symbol, id in BYTES.items() if symbol != "a"}
BROKEN: dict[str, tuple[Any, str]] = {
    "no model": ({}, "no vocab and merges"),
    "not an object": ([], "holds list, not a JSON object"),
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    "nested 10^5 deep": (b"[" * 100_000, "not JSON"),
    "Unigram": (tokenizer_json({"type": "Unigram"}), "Unigram"),
    "CLIP's": (tokenizer_json({"end_of_word_suffix": "</w>"}), "end_of_word_suffix"),
    "random merges": (tokenizer_json({"dropout": 0.5}), "dropout"),
    "a missing byte": (tokenizer_json({"vocab": MISSING, "merges": []}), "no token for 1 bytes: 'a'"),
    "no vocabulary": (tokenizer_json({"vocab": {}, "merges": []}), "no token for"),
    "an id twice": (tokenizer_json({"vocab": BYTES | {"x1": 5}, "merges": []}), "same id"),
    "an id of an added token twice": (with_token({"id": 5, "content": "<|x|>"}), "same id"),
    "a negative id": (tokenizer_json({"vocab": BYTES | {"x1": -1}}), "ids count from 0"),
    "an id of 2^63": (tokenizer_json({"vocab": BYTES | {"x1": 1 << 63}}), "ids count from 0"),
    "an id that is true": (tokenizer_json({"vocab": BYTES | {"x1": True}}), "ids count from 0"),
    "an id that is a text": (tokenizer_json({"vocab": BYTES | {"x1": "7"}}), "ids count from 0"),
    "a token that is no Unicode": (tokenizer_json({"vocab": MODEL["vocab"] | {"\ud800": 300}}), "do not fit"),
    "a merge of nothing": (tokenizer_json({"merges": [["h", "i"]]}), "do not fit together"),
    "a merge of one": (tokenizer_json({"merges": ["h"]}), "not two symbols"),
    "a merge of three": (tokenizer_json({"merges": [["h", "e", "y"]]}), "not two symbols"),
    "a merge of numbers": (tokenizer_json({"merges": [[1, 2]]}), "do not fit together"),
    "merges are a text": (tokenizer_json({"merges": "h e"}), "no vocab and merges"),
    "an added token of nothing": (with_token({"id": 300, "content": ""}), "added token"),
    "an added token without an id": (with_token({"content": "<|x|>"}), "added token"),
    "an added token that is a number": (with_token(7), "added token"),
    "a pattern that backtracks": (tokenizer_json(pre_tokenizer=split({"Regex": "(a+)+$"})), "cuts words in a way"),
    "a pattern that is a number": (tokenizer_json(pre_tokenizer=split({"Regex": 7})), "cuts words in a way"),
    "a text as pattern": (tokenizer_json(pre_tokenizer=split({"String": " "})), "cuts words in a way"),
    "a known pattern's gaps": (
        tokenizer_json(pre_tokenizer=split({"Regex": PATTERNS["GPT-2"]}, behavior="Removed")),
        "cuts words in a way",
    ),
    "no way to cut words": (tokenizer_json(pre_tokenizer=None), "pre_tokenizer is None"),
    "an unknown way": (tokenizer_json(pre_tokenizer={"type": "UnicodeScripts"}), "UnicodeScripts"),
    "a sequence of 10^5": (
        tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 100_000}),
        "no part of a published tokenizer",
    ),
    "a sequence in a sequence": (
        tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [split({"Regex": "a"})]}),
        "its pre_tokenizer is",
    ),
    "a normalizer that grows texts": (
        tokenizer_json(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}),
        "changes texts",
    ),
    "a normalizer with a pattern": (
        tokenizer_json(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        "changes texts",
    ),
    "a normalizer that is a text": (tokenizer_json(normalizer="NFC"), "no part of a published tokenizer"),
    "pieces without bytes": (
        tokenizer_json(
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        ),
        "no token for 256 bytes",
    ),
    "a control token that merges make": (
        with_token({"id": 256, "content": "he", "special": True}),
        "do not fit together",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_refused(name: str, tmp_path: Path, steps) -> None:
    data, reason = BROKEN[name]
    (tmp_path / "tokenizer.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    with pytest.raises(CheckpointError) as error, steps() as taken:
        LanguageTokenizer.load(tmp_path)
    assert taken.count < 10_000
    assert reason in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_the_good_counterpart(tmp_path: Path) -> None:
    values = [tokenizer_json(), tokenizer_json(pre_tokenizer=split({"Regex": PATTERNS["GPT-2"]}))]
    values.append(with_token({"id": 300, "content": "<|x|>", "special": True}))
    for value in values:
        (tmp_path / "tokenizer.json").write_text(json.dumps(value))
        assert LanguageTokenizer.load(tmp_path).encode("he") == [256]


def test_long_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(CheckpointError, match="is larger than 25,165,824 bytes"):
        LanguageTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.json is not there"):
        LanguageTokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(BYTES))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "h" * 20_000_000)
    with pytest.raises(CheckpointError, match="not two symbols") as error:
        LanguageTokenizer.load(tmp_path)
    assert len(str(error.value)) < 500


MILLION = 1_000_000
TEXTS = {
    "letters": "a" * MILLION,
    "digits": "1" * MILLION,
    "spaces": " " * MILLION,
    "newlines": "\n" * MILLION,
    "spaces before words": (" " * 999 + "x") * 1000,
    "spaces and newlines": " \n" * (MILLION // 2),
    "quotes": "'" * MILLION,
    "upper and lower": "aA" * (MILLION // 2),
    "slashes": "/\n" * (MILLION // 2),
    "ideographs": "狗" * (MILLION // 3),
    "emoji": "🐶" * (MILLION // 4),
    "one grapheme": "a" + "\u0301" * (MILLION // 2),
    "control tokens": "<|im_end|>" * (MILLION // 10),
    "almost control tokens": "<|im_end" * (MILLION // 8),
    "nul": "\0" * MILLION,
    "half surrogates": "\ud800" * (MILLION // 3),
}


def seconds_for(text: str, pattern: str | None) -> float:
    merges = [("a", "a"), ("aa", "aa"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ċ", "Ċ")]
    ids = BYTES | {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    added = [Added(id=300, content="<|im_end|>", special=True), Added(id=301, content="     ")]
    rules = byte_rules(pattern, nfc=True, digits=pattern is None)
    tokenizer = LanguageTokenizer(assemble(ids, added, merges=merges, rules=rules))
    begin = time.process_time()
    tokenizer.encode(text, control=True)
    return time.process_time() - begin


@pytest.mark.parametrize("pattern", [None, *PATTERNS])
@pytest.mark.parametrize("text", TEXTS)
def test_time_in_proportion_to_the_text(text: str, pattern: str | None) -> None:
    """What grows with the square of the length takes 576 times as long for 24 times the text."""
    short = min(seconds_for(TEXTS[text][:2000], pattern) for _ in range(3))
    assert seconds_for(TEXTS[text][:48_000], pattern) < 150 * short


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, *PATTERNS])
@pytest.mark.parametrize("text", TEXTS)
def test_a_megabyte_does_not_hang(text: str, pattern: str | None) -> None:
    assert seconds_for(TEXTS[text], pattern) < 60  # seconds, on any processor; it takes one


def test_texts_have_a_limit() -> None:
    tokenizer = LanguageTokenizer(assemble(dict(BYTES), [], merges=[], rules=byte_rules()))
    for control in (False, True):
        with pytest.raises(InputError, match=r"10,000,000 characters; at most 4,000,000"):
            tokenizer.encode("a" * 10_000_000, control=control)


# Row 13.

_LAUGHS = "{% set a = ['lol'] %}" + "{% set a = [a, a, a, a, a, a, a, a, a, a] %}" * 12
_GROW = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(99) %}{% set ns.x = "
TEMPLATES = {
    "class walk": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "class walk by subscript": ("{{ ''['__class__']['__mro__'] }}", "unsafe"),
    "class walk of a function": ("{{ raise_exception.__globals__['__builtins__'] }}", "unsafe"),
    "class walk of a method": ("{{ messages.__init__.__globals__ }}", "unsafe"),
    "class walk by a filter": ("{{ ''|attr('__class__') }}", "No filter named 'attr'"),
    "class walk by format": ("{{ '{0.__class__}'.format(1) }}", "unsafe"),
    "class walk by sorting": ("{{ ['']|sort(attribute='__class__.__mro__.0.x')|list + 1 }}", "unsafe"),
    "class walk of the loop": ("{% for i in [1] %}{{ loop.__init__.__globals__.x }}{% endfor %}", "unsafe"),
    "class walk of a macro": ("{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}", "unsafe"),
    "changing what it is given": ("{{ messages.append(1) }}", "unsafe"),
    "changing a message": ("{{ messages[0].update(role='system') }}", "unsafe"),
    "a range of 10^9": ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
    "10**9": ("{% for i in range(10**9) %}{% endfor %}", "uses **"),
    "loops in loops": ("{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5, "more work"),
    "empty loops in loops": (
        "{% set r = range(99999) %}" + "{% for a in r %}" * 5 + "{% endfor %}" * 5,
        "more work",
    ),
    "a loop that begins again": ("{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "recursion"),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "a macro of 2^60 calls": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "more work",
    ),
    "10^9 letters": ("{{ 'a' * 1000000000 }}", "more work"),
    "10^9 letters, the other way": ("{{ 1000000000 * 'a' }}", "more work"),
    "10^9 items": ("{{ [1] * 1000000000 }}", "more work"),
    "a power": ("{{ 9 ** 999999999 }}", "uses **"),
    "a growing product": (_GROW.replace("'aaaaaaaaaa'", "9") + "ns.x * ns.x %}{% endfor %}", "more work"),
    "a width": ("{{ '%1000000000d' % 1 }}", "uses %"),
    "a width in format": ("{{ '{:1000000000}'.format(1) }}", "unsafe"),
    "a width in a filter": ("{{ '%1000000000d'|format(1) }}", "No filter"),
    "ljust": ("{{ 'a'.ljust(1000000000) }}", "unsafe"),
    "center": ("{{ 'a'.center(1000000000) }}", "unsafe"),
    "center, the filter": ("{{ 'a'|center(1000000000) }}", "No filter"),
    "zfill": ("{{ 'a'.zfill(1000000000) }}", "unsafe"),
    "expandtabs": ("{{ '\t'.expandtabs(1000000000) }}", "unsafe"),
    "to_bytes": ("{{ (1).to_bytes(1000000000) }}", "unsafe"),
    "indent": ("{{ 'a'|indent(1000000000, true) }}", "more work"),
    "tojson's indent": ("{{ messages|tojson(indent=1000000000) }}", "indents by"),
    "tojson's separators": ("{{ messages|tojson(separators=('a' * 9999, '')) }}", "separators"),
    "a date's width": ("{{ strftime_now('%999999999d') }}", "strftime_now"),
    "lipsum": ("{{ lipsum(n=1000000000) }}", "undefined"),
    "doubling": (_GROW + "ns.x + ns.x %}{% endfor %}", "more work"),
    "doubling by ~": (_GROW + "ns.x ~ ns.x %}{% endfor %}", "more work"),
    "doubling lists": (_GROW.replace("'aaaaaaaaaa'", "[1]") + "ns.x + ns.x %}{% endfor %}", "too large"),
    "replacing": (_GROW + "ns.x.replace('a', 'aaaaaaaaaa') %}{% endfor %}", "more work"),
    "replacing, the filter": (_GROW + "ns.x|replace('', 'aaaaaaaaaa') %}{% endfor %}", "more work"),
    "joining": (_GROW + "ns.x.join([ns.x, ns.x, ns.x]) %}{% endfor %}", "its "),
    "joining, the filter": (_GROW + "[1, 2, 3]|join(ns.x) %}{% endfor %}", "more work"),
    "a billion laughs": (_LAUGHS + "{{ a }}", "too large"),
    "a billion laughs, compared": (_LAUGHS + "{{ a == [a] }}", "too large"),
    "namespaces within namespaces": (_GROW + "namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}", "used as text"),
    "10^9 letters of its own": (
        "{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endfor %}",
        "more work",
    ),
    "the same, set aside": (
        "{% set x %}{% for a in range(99999) %}{% for b in range(99999) %}xxxx{% endfor %}{% endfor %}{% endset %}",
        "more work",
    ),
    "looking through a list": (
        "{% set r = range(99999)|list %}{% for i in r %}{% if -1 in r %}{% endif %}{% endfor %}",
        "too large",
    ),
    "counting": ("{% set s = 'a' * 9999 %}{% for i in range(99999) %}{{ s.count('b') }}{% endfor %}", "more work"),
    "splitting": ("{% set s = 'a ' * 9999 %}{% for i in range(99999) %}{% set t = s.split() %}{% endfor %}", "more"),
    "slicing": ("{% set s = 'a' * 99999 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}", "more work"),
    "selecting": ("{% set r = range(9999)|list %}{{ r" + "|select" * 900 + " }}", "cannot be compiled"),
    "mapping": ("{% set r = range(9999)|list %}{{ r" + "|map('string')" * 90 + " }}", "more work"),
    "a syntax error": ("{% for %}", "broken in line 1"),
    "a syntax error further on": ("\n\n{{ 1 +", "broken in line 3"),
    "no end": ("{% if true %}", "broken in line"),
    "an unknown filter": ("{{ 1|pprint }}", "No filter named 'pprint'"),
    "an unknown test": ("{{ 1 is sameas 1 }}", "No test named 'sameas'"),
    "an unknown function": ("{{ open('/etc/passwd').read() }}", "undefined"),
    "an include": ("{% include '/etc/passwd' %}", "Include has no use"),
    "an import": ("{% import 'os' as os %}", "Import has no use"),
    "inheritance": ("{% extends 'x' %}", "Extends has no use"),
    "brackets nested 5,000 deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
    "lists nested 40 deep": ("{{ " + "[" * 40 + "]" * 40 + " }}", "more than 32 deep"),
    "loops nested 500 deep": ("{% for a in [1] %}" * 500 + "{% endfor %}" * 500, "cannot be compiled"),
    "sums of 10,000": ("{{ 1" + "+1" * 10_000 + " }}", "cannot be compiled"),
    "too long": ("a" * 40_000, "40,000 characters"),
    "no such key": ("{{ messages[0].name.first }}", "has no attribute"),
    "division by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
}
SETUP = """
from qkv.text.sandbox import Template
def run(source):
    return Template(source).render({"messages": [{"role": "user", "content": "hello"}]})
"""


@pytest.fixture(scope="module")
def rendered(refusals):
    """What a rendering may cost is counted by the package itself: here it must not hang."""
    found = refusals(SETUP, "{{ messages }}", [source for source, _ in TEMPLATES.values()], counted=False)
    assert "torch" not in found.modules
    return found.growth, dict(zip(TEMPLATES, found.reasons))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_stopped(name: str, rendered) -> None:
    reason = rendered[1][name]
    assert TEMPLATES[name][1] in reason
    assert "\n" not in reason
    assert len(reason) < 400


def test_hostile_templates_take_no_memory(rendered) -> None:
    assert rendered[0] < 50 << 20


def test_a_template_may_refuse_a_conversation() -> None:
    tokenizer = LanguageTokenizer(assemble(dict(BYTES), [], merges=[], rules=byte_rules()))
    template = ChatTemplate("{{ raise_exception('roles\n' + 'must alternate') }}")
    with pytest.raises(InputError, match="refuses this: roles must alternate"):
        template.encode([Message("user", "a")], tokenizer)


def test_a_template_that_failed_can_be_used_again() -> None:
    """Each rendering has a budget of its own."""
    tokenizer = LanguageTokenizer(assemble(dict(BYTES), [], merges=[], rules=byte_rules()))
    template = ChatTemplate("{% for i in range(messages[0].content|length * 100) %}{{ 'a' * 1000 }}{% endfor %}")
    for _ in range(3):
        assert len(template.encode([Message("user", "a")], tokenizer)) == 100_000
        with pytest.raises(CheckpointError, match="more work"):
            template.encode([Message("user", "a" * 99)], tokenizer)
