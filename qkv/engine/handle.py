"""A request in a caller's hands: its events as they come, for plain and for async code.

Leaving the loop early, by `break`, an error or Ctrl-C, cancels what is left; so does dropping the handle.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from qkv.engine.sequence import Event, Sequence
from qkv.errors import QkvError

if TYPE_CHECKING:
    import asyncio  # 20 ms at start

Item = Event | QkvError | None  # None: one answer is at its end


class Channel:
    """From the engine's thread to the one caller that waits; neither waits for the other."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, item: Item) -> None:
        self._items.put(item)
        if (waiting := self._waiting) is not None:
            loop, ready = waiting
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ready.set)

    def get(self) -> Item:
        return self._items.get()

    async def wait(self) -> Item:
        """`get` for a coroutine."""
        import asyncio

        if self._waiting is None:
            self._waiting = asyncio.get_running_loop(), asyncio.Event()
        _, ready = self._waiting
        while True:
            ready.clear()  # before looking, so that nothing put in between is missed
            try:
                return self._items.get_nowait()
            except Empty:
                await ready.wait()


class Handle:
    """A submitted request. Iterate over it, once, with `for` or `async for`: one `Event` a token, the answers' events
    mixed as they come. Raises the request's own error, a QkvError, if it fails."""

    def __init__(self, channel: Channel, answers: list[Sequence]) -> None:
        self._channel, self._answers = channel, answers
        self._open = len(answers)

    def cancel(self, answer: int | None = None) -> None:
        """Ends one answer, or all, within a step; from any thread, as often as you like."""
        for sequence in self._answers if answer is None else [self._answers[answer]]:
            sequence.cancelled = True

    def __iter__(self) -> Iterator[Event]:
        try:
            while self._open:
                if (event := self._event(self._channel.get())) is not None:
                    yield event
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while self._open:
                if (event := self._event(await self._channel.wait())) is not None:
                    yield event
        finally:
            self.cancel()

    def _event(self, item: Item) -> Event | None:
        if isinstance(item, QkvError):
            raise item
        if item is None:
            self._open -= 1
        return item

    def __del__(self) -> None:
        self.cancel()
