"""SIGINT and SIGTERM as a flag that the training loop looks at between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; a second one does what it did before. Only in the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(number: int, frame: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        restore()
