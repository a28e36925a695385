"""Long works take turns on one thread, a step each, so that a short one never waits for a long one to end.

Each work is a generator and is computed by itself: what it yields is bit for bit what it yields alone.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Work(Generic[T]):
    """A generator whose events go to one coroutine."""

    def __init__(self, begin: Callable[[], Iterator[T]], loop: asyncio.AbstractEventLoop) -> None:
        self.begin, self.loop = begin, loop
        self.events: asyncio.Queue[T | BaseException | None] = asyncio.Queue()  # None: the end
        self.iterator: Iterator[T] | None = None
        self.left = False  # nobody waits any more

    def put(self, item: T | BaseException | None) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, item)
        except RuntimeError:  # the loop is closed
            self.left = True

    def step(self) -> bool:
        """One event; False at the end, whichever."""
        try:
            if self.left:
                self._close()
                return False
            if self.iterator is None:
                self.iterator = self.begin()
            self.put(next(self.iterator))
            return True
        except StopIteration:
            self.put(None)
        except Exception as error:
            self.put(error)
        return False

    def _close(self) -> None:
        close = getattr(self.iterator, "close", None)
        if close is not None:
            close()


class Turns:
    """One thread that runs while there is work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._works: deque[_Work[Any]] = deque()
        self._thread: threading.Thread | None = None

    async def run(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The events of the generator that `begin` makes, on the thread. Leaving the loop ends it within a step."""
        work: _Work[T] = _Work(begin, asyncio.get_running_loop())
        with self._lock:
            self._works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        try:
            while (event := await work.events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            work.left = True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._works:
                    self._thread = None
                    return
                work = self._works[0]
            more = work.step()
            with self._lock:
                self._works.popleft()
                if more:
                    self._works.append(work)
