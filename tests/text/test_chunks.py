"""Prompts as chunks of 77: everything is kept, every token knows its weight and its word."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.text.tokenizer_files import EOS
from qkv.text.weighting import Segment, parse

TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


def inside(prompt):
    """Ids, weights and words of everything but BOS, EOS and padding."""
    return tuple(array[prompt.word_of >= 0].tolist() for array in (prompt.ids, prompt.weights, prompt.word_of))


def test_one_short_prompt(tokenizer):
    prompt = tokenizer.chunks(parse("a (dog:1.3)"))
    ids = tokenizer.encode("a dog")
    bos, eos = tokenizer.vocab - 2, tokenizer.vocab - 1
    assert prompt.ids.tolist() == [[bos, *ids, *[eos] * (76 - len(ids))]]
    assert prompt.words == ("a", "dog")
    assert inside(prompt) == (ids, pytest.approx([1.0] + [1.3] * (len(ids) - 1)), [0] + [1] * (len(ids) - 1))
    assert (prompt.weights[prompt.word_of < 0] == 1).all()


def test_no_prompt_is_one_empty_chunk(tokenizer):
    for empty in ("", "  \n", "()"):
        prompt = tokenizer.chunks(parse(empty))
        assert prompt.ids.tolist() == [[tokenizer.vocab - 2] + [tokenizer.vocab - 1] * 76]
        assert prompt.words == ()


@given(st.lists(st.tuples(TEXT, st.sampled_from([0.5, 1.0, 1.3]), st.booleans()), max_size=6), st.integers(3, 90))
def test_nothing_is_dropped(tokenizer, pieces, context):
    segments = [Segment(*piece) for piece in pieces]
    tokens = [(token, segment.weight) for segment in segments for token in tokenizer.encode(segment.text)]
    try:
        prompt = tokenizer.chunks(segments, context)
    except InputError as error:
        assert "at most 32 chunks" in str(error)  # noqa: PT017
        return
    ids, weights, words = inside(prompt)
    assert ids == [token for token, _ in tokens]
    assert weights == pytest.approx([weight for _, weight in tokens])
    assert words == sorted(words)
    assert set(words) == set(range(len(prompt.words)))
    assert prompt.ids.shape == prompt.weights.shape == prompt.word_of.shape == (len(prompt.ids), context)
    assert (prompt.ids[:, 0] == tokenizer.vocab - 2).all()
    assert (prompt.ids == tokenizer.vocab - 1).any(axis=1).all()


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Z", "Cc")), max_size=60))
def test_words_are_what_was_written(tokenizer, text):
    words = tokenizer.chunks([Segment(text)]).words
    missing = set(text) - set("".join(words))
    assert not missing
    assert all(word in text for word in words)


def test_words_of_many_scripts(tokenizer):
    prompt = tokenizer.chunks(parse("Ein Café's 穿西裝的狗, (🐶!:1.2) Forêt é 12"))
    assert prompt.words == ("Ein", "Café", "'s", "穿西裝的狗", ",", "🐶!", "Forêt", "é", "1", "2")


def test_break_fills_the_chunk(tokenizer):
    def contents(text):
        prompt = tokenizer.chunks(parse(text))
        return [[prompt.words[word] for word in dict.fromkeys(row[row >= 0].tolist())] for row in prompt.word_of]

    assert contents("a dog BREAK a cat") == [["a", "dog"], ["a", "cat"]]
    assert contents("(a BREAK cat)") == [["a"], ["cat"]]
    assert contents("a BREAK") == [["a"]]
    assert contents("BREAK a") == [[], ["a"]]
    assert contents("a BREAK BREAK b") == [["a"], [], ["b"]]


def lengths(prompt):
    return (prompt.word_of >= 0).sum(axis=1).tolist()


def test_long_prompts_are_cut_where_it_hurts_least(tokenizer):
    word, long = tokenizer.encode("a"), tokenizer.encode("zqxj")
    assert (len(word), len(long)) == (1, 4)
    assert lengths(tokenizer.chunks(parse("a " * 150))) == [75, 75]
    assert lengths(tokenizer.chunks(parse("a " * 151))) == [75, 75, 1]
    assert lengths(tokenizer.chunks(parse("zqxj " * 20))) == [72, 8], "between words"
    assert lengths(tokenizer.chunks(parse("a " * 56 + ", " + "a " * 30))) == [57, 30], "after a comma near the end"
    assert lengths(tokenizer.chunks(parse("a " * 54 + ", " + "a " * 30))) == [75, 10], "not after one far from it"
    assert lengths(tokenizer.chunks(parse("zqxj" * 40))) == [75, 75, 10], "inside a word if it must be"


def test_too_many_chunks_are_refused_with_both_numbers(tokenizer):
    assert len(tokenizer.chunks(parse("a " * 32 * 75)).ids) == 32
    with pytest.raises(InputError, match=r"2,401 tokens and needs 33 chunks of 75; at most 32 chunks"):
        tokenizer.chunks(parse("a " * (32 * 75 + 1)))
    with pytest.raises(InputError, match=r"100,000 tokens"):
        tokenizer.chunks([Segment("a " * 50_000)] * 2)
    with pytest.raises(InputError, match=r"200,000 characters; at most 100,000"):
        tokenizer.encode("a " * 10**5)
    with pytest.raises(InputError, match="context=2"):
        tokenizer.chunks([], context=2)


def test_control_tokens_in_a_prompt_are_text(tokenizer):
    special = {tokenizer.vocab - 2, tokenizer.vocab - 1}
    for text in (EOS, "<|startoftext|>", f"a{EOS}b", f"{EOS}" * 3, EOS.upper(), "<|endoftext|></w>", f"!{EOS} x"):
        ids = tokenizer.encode(text)
        assert ids
        assert not special & set(ids)
        assert inside(tokenizer.chunks([Segment(text)]))[0] == ids


@given(TEXT)
def test_any_text_can_be_encoded(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab - 2 for token in ids)


def test_broken_unicode_is_mended_not_dropped(tokenizer):
    assert tokenizer.encode("a \ud800 b") == tokenizer.encode("a \ufffd b")
    assert tokenizer.encode("\ud83d\udc36") == tokenizer.encode("🐶")
    assert tokenizer.encode("a\0b") != tokenizer.encode("ab")
    assert len(tokenizer.encode("\u202edog\u202c")) > len(tokenizer.encode("dog"))


@pytest.mark.parametrize("piece", ["a", "zq", "1", "!", "狗", "🐶", "'s", "a\u0301", " ", "\0", "<|endoftext|>"])
def test_hostile_texts_take_linear_time(tokenizer, piece):
    started = time.process_time()
    tokenizer.encode(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 2


def test_the_room_needs_no_torch():
    code = "import sys, qkv.text.tokenizer, qkv.text.weighting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_arrays_have_their_types(tokenizer):
    prompt = tokenizer.chunks(parse("a dog"))
    assert (prompt.ids.dtype, prompt.weights.dtype, prompt.word_of.dtype) == (np.int64, np.float32, np.int64)
