"""Threads are a call's own: what else computes in this process, before, meanwhile and after, computes as it is set."""

import threading
from collections.abc import Iterator

import pytest
import torch

from qkv import device
from qkv.errors import InputError


def elsewhere() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join(10)
    return found[0]


def test_threads_are_the_calling_thread_s_own() -> None:
    here, new = torch.get_num_threads(), elsewhere()
    with device.threads(here + 2):
        assert torch.get_num_threads() == here + 2
        assert elsewhere() == new
        with device.threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == here + 2
    assert torch.get_num_threads() == here
    assert elsewhere() == new
    with device.threads(None):
        assert torch.get_num_threads() == here


def test_two_at_once() -> None:
    both, found = threading.Barrier(2), {}

    def run(count: int) -> None:
        with device.threads(count):
            both.wait(10)
            found[count] = torch.get_num_threads()
            both.wait(10)

    threads = [threading.Thread(target=run, args=(count,)) for count in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {1: 1, 3: 3}


def test_between_events_the_caller_has_his_own() -> None:
    here = torch.get_num_threads()

    def numbers() -> Iterator[int]:
        for _ in range(2):
            yield torch.get_num_threads()

    events = device.on_threads(here + 1, numbers())
    assert next(events) == here + 1
    assert torch.get_num_threads() == here
    assert list(events) == [here + 1]
    assert list(device.on_threads(None, numbers())) == [here, here]


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_counts_that_cannot_be(count: int) -> None:
    with pytest.raises(InputError, match="is not in 1..1024"), device.threads(count):
        pass
