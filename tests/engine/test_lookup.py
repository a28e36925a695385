from hypothesis import given
from hypothesis import strategies as st

from qkv.engine.lookup import LONGEST, Lookup


def test_guesses_what_stood_there_before():
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 1, 2, 3], 3) == [4, 5, 6]
    assert Lookup().guess([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], 1) == [5], "the last time counts"
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 7, 2, 3], 3) == []
    assert Lookup().guess([1, 2], 3) == []
    assert Lookup().guess([1, 2, 3, 4, 1, 2, 3], 0) == []


def test_a_loop_is_guessed_on():
    assert Lookup().guess([7, 7, 7, 7], 3) == [7, 7, 7]
    assert Lookup().guess([1, 2, 1, 2, 1], 4) == [2, 1, 2, 1]


def test_right_guesses_grow_and_wrong_ones_pause():
    ids, lookup = [7] * 8, Lookup()
    lengths = []
    for _ in range(4):
        lengths.append(len(lookup.guess(ids, 99)))
        lookup.learn(lengths[-1], lengths[-1])
    assert lengths == [4, 8, LONGEST, LONGEST]
    tries = 0
    for _ in range(300):
        if guess := lookup.guess(ids, 99):
            tries += 1
            lookup.learn(len(guess), 0)
    assert tries < 12, "each pause is twice as long"
    assert len(guess or lookup.guess(ids, 99)) <= 1


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 60), st.integers(-1, 8))
def test_following_along_equals_starting_late(ids, cut, limit):
    """Whatever was asked before, the guess is that of the last place where the three tokens stood."""
    lookup = Lookup()
    for end in range(1, min(cut, len(ids))):
        lookup.guess(ids[:end], 3)
    guess = lookup.guess(ids, limit)
    assert guess == Lookup().guess(ids, limit)
    if guess:
        last = max(i for i in range(len(ids) - 3) if ids[i : i + 3] == ids[-3:]) + 3
        assert (ids[last:] + guess)[: len(guess)] == guess
        assert len(guess) <= limit
