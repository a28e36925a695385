"""Stop strings: the same cut however the text arrives, and nothing behind one is ever shown."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.sample.stops import Stops, check_stops

letters = st.text("ab", min_size=1, max_size=5)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the first character at which a stop string is complete, and the longest one there."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(st.lists(letters, max_size=4), st.lists(st.text("ab", max_size=6), max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    stream, shown, whole = Stops(stops), "", "".join(pieces)
    text, hit = cut(whole, stops)
    for number, piece in enumerate(pieces):
        shown += stream.push(piece)
        assert text.startswith(shown)  # nothing behind a stop string, not even for a moment
        come = "".join(pieces[: number + 1])
        if stream.hit is None:  # and no more is held back than could still become one
            held = come[len(shown) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    assert (shown + stream.finish(), stream.hit) == (text, hit)


def test_after_a_hit_nothing_comes() -> None:
    stream = Stops(["\n\n"])
    assert [stream.push(piece) for piece in ("one\n", "\ntwo", "three")] == ["one", "", ""]
    assert (stream.hit, stream.finish()) == ("\n\n", "")


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = Stops(["###END"])
    assert stream.push("a ###E") == "a "
    assert stream.push("MPTY ##") == "###EMPTY "
    assert stream.finish() == "##"


def test_a_long_text_takes_linear_time() -> None:
    stream, began = Stops(["a" * 999 + "b"] * 16), time.process_time()
    shown = stream.push("a" * 20_000)
    assert len(shown) == 20_000 - 999
    assert time.process_time() - began < 2


@pytest.mark.parametrize("stops", [5, ["a"] * 17, [""], ["a", 3], "a" * 1001, [None], {"a": 1}, ["x"] * 100_000])
def test_refused(stops: object) -> None:
    with pytest.raises(InputError, match=re.escape("stop")) as error:
        check_stops(stops)
    assert len(str(error.value)) < 200


def test_one_may_be_given_alone() -> None:
    assert check_stops("a") == ("a",)
    assert check_stops(["a", "b"]) == ("a", "b")
    assert check_stops(()) == ()
