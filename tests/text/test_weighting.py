"""The attention grammar of prompts, by its documented examples and by properties."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.text.weighting import MAX_CHARACTERS, Segment, escape, parse, unsupported

GRAMMAR = st.lists(st.sampled_from([*"()[]\\:B 1.e", "BREAK", ":1.3)", ":nan)", "cat", "猫"]), max_size=40).map("".join)


def pairs(prompt: str) -> list[tuple[str, float]]:
    return [(segment.text, segment.weight) for segment in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("()", []),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((twice))", [("twice", 1.21)]),
        ("[less]", [("less", 0.909091)]),
        ("(word:1.3)", [("word", 1.3)]),
        ("( word : .5 )", [(" word ", 0.5)]),
        ("(word:-0.5)", [("word", -0.5)]),
        ("(word:1e-1)", [("word", 0.1)]),
        ("(8:30:1.2)", [("8:30", 1.2)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("un)bal]anced", [("un)bal]anced", 1)]),
        ("outside:1.3)", [("outside:1.3)", 1)]),
        ("[word:1.3)]", [("word:1.3)", 0.909091)]),
        ("(a[b)c]d", [("a", 1.1), ("b", 1), ("c", 0.909091), ("d", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (r"\(literal\] \\ \[x\)", [(r"(literal] \ [x)", 1)]),
        (r"C:\temp", [(r"C:\temp", 1)]),
        ("a (((house:1.3)) [on] the", [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" the", 1.1)]),
        ("(a (hill:0.5), (((sky))).", [("a ", 1.1), ("hill", 0.55), (", ", 1.1), ("sky", 1.4641), (".", 1.1)]),
    ],
)
def test_grammar(prompt, expected):
    assert pairs(prompt) == expected


def test_break_starts_a_chunk_wherever_it_stands():
    assert parse("a BREAK b") == [Segment("a "), Segment(" b", starts_chunk=True)]
    assert parse("(a BREAK b:1.5)") == [Segment("a ", 1.5), Segment(" b", 1.5, starts_chunk=True)]
    assert parse("BREAK(b)BREAK") == [
        Segment("", starts_chunk=True),
        Segment("b", 1.1),
        Segment("", starts_chunk=True),
    ]
    assert parse("BREAKFAST xBREAK break") == [Segment("BREAKFAST xBREAK break")]
    assert parse(r"a \BREAK") == [Segment("a BREAK")]


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "101", "-100.5", "1.2.3", "."])
def test_a_bad_weight_is_refused(weight):
    with pytest.raises(InputError, match="the weight") as caught:
        parse(f"a (dog:{weight})")
    assert "\n" not in str(caught.value)


def test_a_weight_that_grew_absurd_is_refused():
    with pytest.raises(InputError, match="beyond"):
        parse("(" * 60 + "dog")
    assert pairs("[" * 60 + "dog") == [("dog", 0.003284)]


@given(st.text(st.characters(exclude_characters="\\()[]", exclude_categories=())))
def test_plain_text_keeps_weight_one(text):
    assert "".join(segment.text for segment in parse(text)) == text.replace("BREAK", "")
    assert {segment.weight for segment in parse(text)} <= {1.0}


@given(st.text(st.characters(exclude_categories=())) | GRAMMAR)
def test_escaped_text_is_itself(text):
    assert parse(escape(text)) == ([Segment(text)] if text else [])


@given(st.text(st.characters(exclude_categories=())) | GRAMMAR)
def test_only_bad_numbers_are_errors(prompt):
    unsupported(prompt)
    try:
        segments = parse(prompt)
    except InputError as error:
        assert "the weight" in str(error)  # noqa: PT017
    else:
        assert all(abs(segment.weight) <= 100 for segment in segments)


@pytest.mark.parametrize("piece", [*"([):\\B<", ": ", ":1", ":1e", "BREAK ", "()", "[(])", "(a:1)", "<lora:"])
def test_hostile_prompts_take_linear_time(piece):
    prompt = piece * (MAX_CHARACTERS // len(piece))
    started = time.process_time()
    unsupported(prompt)
    parse(prompt)
    assert time.process_time() - started < 2


def test_adapters_are_left_out_and_named():
    """Not even a space more than the prompt without them."""
    for spelled in ("<lora:x:1>", "<LoRA:a b-c:0.8>", "<lyco:x>", "<hypernet:x:1:2>"):
        assert parse(f"a (dog{spelled}:1.3)") == parse("a (dog:1.3)")
        assert unsupported(f"a dog {spelled}") == [
            f"prompt-lora: {spelled!r} is left out; pictures cannot be drawn with LoRA and its like yet"
        ]
    assert "'<lora:a:1> <lora:b:1>'" in unsupported("<lora:a:1> <lora:b:1>")[0]
    for text in ("a < b", "<lora>", "<lora:x", "i <3 lora:1", r"\<lora:x:1>"):
        assert unsupported(text) == []
        assert "".join(segment.text for segment in parse(text)) == text.replace("\\", "")


def test_a_huge_prompt_is_refused_unread():
    with pytest.raises(InputError, match=r"10,000,000 characters; at most 100,000"):
        parse("(" * 10**7)


def test_what_the_web_ui_can_and_we_cannot_is_named():
    named = {
        "[dog:cat:0.5]": "prompt-schedule: '[dog:cat:0.5]' is plain text",
        "a [cat:12] b": "prompt-schedule: '[cat:12]'",
        "a [cow|horse]": "prompt-alternation: '[cow|horse]'",
        "a cat AND a dog": "prompt-and: 'AND'",
    }
    for prompt, warning in named.items():
        assert [line[: len(warning)] for line in unsupported(prompt)] == [warning]
    for prompt in ["a dog", "(dog:1.3)", "[dog]", r"\[dog:0.5\]", "ANDROID and and", "a|b", "[a] b:1 [c]"]:
        assert unsupported(prompt) == []
