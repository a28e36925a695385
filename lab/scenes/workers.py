"""Scenes, batches: whatever is made number by number, made by several processes.

Place: beside what trains and encodes, for machines whose GPU would else wait for one core. Every process loads what it
needs itself, since memory maps do not travel between processes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")
Maker = Callable[[int], Made]
_maker: Maker[Any]  # of a worker process


@contextmanager
def making(load: Callable[[], Maker[Made]], workers: int) -> Iterator[Callable[[Sequence[int]], list[Made]]]:
    """What makes all of a list of numbers, in their order, by the function that `load` returns (it must pickle): here
    where there is one worker, else in so many processes."""
    if workers == 1:
        maker = load()
        yield lambda numbers: [maker(number) for number in numbers]
        return
    with _pool(load, workers) as pool:
        yield lambda numbers: list(pool.map(_make, numbers, chunksize=max(1, len(numbers) // (4 * workers))))


@contextmanager
def ahead(load: Callable[[], Maker[Made]], workers: int) -> Iterator[Maker[Made]]:
    """The function that `load` returns, for steps that follow one another: several are made while one is used."""
    if workers == 1:
        yield load()
        return
    with _pool(load, workers) as pool:
        yield _Ahead(lambda step: pool.submit(_make, step), 2 * workers)


class _Ahead(Generic[Made]):
    def __init__(self, submit: Callable[[int], "Future[Made]"], depth: int) -> None:
        self.submit, self.depth = submit, depth
        self.begun: dict[int, Future[Made]] = {}

    def __call__(self, step: int) -> Made:
        for coming in range(step, step + self.depth):
            if coming not in self.begun:
                self.begun[coming] = self.submit(coming)
        return self.begun.pop(step).result()


@contextmanager
def _pool(load: Callable[[], Maker[Any]], workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(load,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(load: Callable[[], Maker[Any]]) -> None:
    import torch

    global _maker
    torch.set_num_threads(1)
    _maker = load()


def _make(number: int) -> Any:
    return _maker(number)
