"""The doors of a process: standard input, output and errors, which whoever started it may have shut or filled.

A door that was shut (`2>&-`, a service without a terminal) is /dev/null from then on, also as a number: else the next
file that is opened would take its place, and what a library writes there would land in that file. Errors and warnings
that find no room (a full disk, a reader that has gone) are lost, and nothing else is: the work goes on, as it would
with nobody who looks. Results that find none are an error (cli/__init__.py).
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any

NAMES = ("stdin", "stdout", "stderr")


def open_doors() -> None:
    """Gives `sys.stdin`, `sys.stdout` and `sys.stderr` what can be read from and written to."""
    for number, name in enumerate(NAMES):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    if sys.stderr is sys.__stderr__ and (errors := sys.__stderr__) is not None:
        patient = io.BufferedWriter(_Patient(errors.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(patient, errors.encoding, errors="backslashreplace", line_buffering=True)
    if getattr(sys.stdout, "errors", "") == "strict":  # a file's name or a model's answer need not be in its alphabet
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class _Patient(io.FileIO):
    """A file that loses what cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _nowhere(number: int) -> Any:
    """/dev/null under that number, unless something else has it by now."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(descriptor, number)
        os.close(descriptor)
        descriptor = number
    return open(descriptor, "w" if number else "r", encoding="utf-8", errors="backslashreplace")


def flush_or_shut() -> None:
    """After an error: what still waits for stdout is written, or, if it cannot be, not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
