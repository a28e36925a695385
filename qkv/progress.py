"""How far something is: a bar on stderr while someone looks at it.

Place: on the ground, for whatever takes longer than a moment. Without a terminal, or where it is not wanted, nothing is
shown and rich is not imported.
"""

import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def watched() -> bool:
    """Whether someone looks at stderr."""
    return sys.stderr.isatty()


class Bar:
    """`what` is being done, `done` of `total` (None: nobody knows yet). The bar is gone when the block ends.

    `shown` says whether it is wanted. A `note` stands in place of the time left. `size`: the numbers are bytes.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        done: int = 0,
        note: str | None = None,
        size: bool = False,
        shown: bool = True,
    ) -> None:
        self._bar = _rich(noted=note is not None, size=size) if shown and watched() else None
        self._note = note
        if self._bar:
            self._task = self._bar.add_task(what, total=total, completed=done, note=note)

    def __enter__(self) -> "Bar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __bool__(self) -> bool:
        """Whether it is seen."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        if self._bar:
            self._bar.advance(self._task, count)

    def update(
        self, done: int | None = None, *, total: int | None = None, what: str | None = None, note: str | None = None
    ) -> None:
        """What is None stays as it is."""
        self._note = self._note if note is None else note
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, description=what, note=self._note)

    def say(self, line: str) -> None:
        """One line above the bar, which stays."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)


def track(items: Sequence[T], what: str, *, shown: bool = True) -> Iterator[T]:
    """The items, one after the other, with a bar."""
    with Bar(what, len(items), shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()


def _rich(*, noted: bool, size: bool) -> "Progress":
    from rich import progress
    from rich.console import Console

    counts = (progress.DownloadColumn(), progress.TransferSpeedColumn()) if size else (progress.MofNCompleteColumn(),)
    last = progress.TextColumn("{task.fields[note]}") if noted else progress.TimeRemainingColumn()
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), *counts, last)
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)
