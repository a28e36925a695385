"""What several processes make comes in the order that was asked for, and ahead of its use."""

from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest

from lab.scenes.workers import _Ahead, ahead, making

LOAD = partial(getattr, SimpleNamespace(made=hex), "made")  # what a process can load without this file


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_is_that_of_the_numbers(workers):
    with making(LOAD, workers) as make:
        assert make([3, 1, 255]) == ["0x3", "0x1", "0xff"]
        assert make(range(40)) == list(map(hex, range(40)))
    with ahead(LOAD, workers) as step:
        assert [step(number) for number in (7, 8, 9, 30)] == ["0x7", "0x8", "0x9", "0x1e"]


def test_steps_are_begun_before_they_are_asked_for():
    begun = []

    def submit(step):
        begun.append(step)
        future = Future()
        future.set_result(step)
        return future

    source = _Ahead(submit, 3)
    assert source(5) == 5
    assert begun == [5, 6, 7]
    assert source(6) == 6
    assert begun == [5, 6, 7, 8]
