import numpy as np
import pytest

from qkv.engine.sequence import EngineRequest, Sequence
from qkv.sample.tokens import Sampling

ROWS = np.eye(8, dtype=np.float32)  # row i: token i is the likeliest


def advance(guess, rows, **request):
    request = EngineRequest(prompt=[1, 2], **{"max_tokens": 9} | request)
    events = []
    sequence = Sequence(request, 0, request.sampler(0, 8), events.append)
    sequence.guess = guess
    new = sequence.advance(ROWS[rows], 2 + len(guess))
    assert sequence.ids[2:] == [event.id for event in events]
    assert len(events) == new
    return sequence.ids[2:], sequence.finish


@pytest.mark.parametrize(
    ("guess", "rows", "taken"),
    [
        ([], [4], [4]),
        ([4, 5], [4, 5, 6], [4, 5, 6]),
        ([4, 5], [4, 6, 7], [4, 6]),
        ([4, 5], [3, 5, 7], [3]),
    ],
)
def test_takes_tokens_up_to_the_first_that_was_not_guessed(guess, rows, taken):
    assert advance(guess, rows) == (taken, None)


def test_the_end_comes_before_the_rest_of_the_guess():
    assert advance([4, 7, 5], [4, 7, 5, 6], stops=frozenset({7})) == ([4, 7], "stop")
    assert advance([4, 7, 5], [4, 7, 5, 6], max_tokens=3) == ([4, 7, 5], "length")


def test_every_answer_has_its_own_seed():
    request = EngineRequest(prompt=[1], max_tokens=3, sampling=Sampling(temperature=1.0, seed=4), n=3)
    assert [request.sampler(i, 8).sampling.seed for i in range(3)] == [4, 5, 6]
