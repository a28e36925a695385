"""Options that every verb has, and how results are printed."""

import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.errors import InputError, shorten
from qkv.textfiles import NotTextError, read_stream

if TYPE_CHECKING:
    from qkv.loaded.where import Where
    from qkv.writing.loop import Completion

Plain = dict[str, Any]  # values that JSON knows
INTERRUPTED = 130  # the exit code after Ctrl-C
MAX_PIPED = 64 << 20  # bytes


@dataclass(frozen=True)
class Shared:
    """The options of every verb."""

    device: Annotated[str | None, typer.Option(help="auto (if not given), cpu or cuda.")] = None
    dtype: Annotated[
        str | None, typer.Option(help="auto (if not given), float32, bfloat16, float16; text: int8, int4.")
    ] = None
    threads: Annotated[int | None, typer.Option(help="How many processor threads to compute on.")] = None
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print results as JSON, an object a line.")] = False

    @property
    def where(self) -> "Where":
        """Where to compute."""
        from qkv.loaded.where import Where

        return Where(device=self.device or "auto", dtype=self.dtype or "auto", threads=self.threads)

    def say(self, text: str, values: Plain, *, end: str = "\n") -> None:
        """Prints a result: `text` for people, followed by `end`, `values` for programs."""
        print(json.dumps(values) if self.json else text, end="\n" if self.json else end, flush=True)


def piped() -> str:
    """The text on stdin. InputError."""
    try:
        return read_stream(sys.stdin.buffer, limit=MAX_PIPED)
    except NotTextError as error:
        raise InputError(f"cannot read the input: {error}") from error


def named_file(text: str) -> Path | None:
    """The file, or the pipe, that an argument names; None if it is a text.

    InputError for a folder, and for what can only be meant as the name of a file and is none.
    """
    try:
        there = len(text) < 1000 and bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):  # no name that a file can have
        there = False
    if there and Path(text).is_dir():
        raise InputError(f"{text} is a folder; name a file in it, or give a text")
    if not there and re.fullmatch(r"(\.{0,2}/|~/)\S+|\S+\.(txt|md|csv|tsv|jsonl|ndjson)", text):
        raise InputError(f"there is no file {shorten(text)!r}; name one that is there, or give a text")
    return Path(text) if there else None


def _check(name: str, value: object) -> None:
    """InputError for bytes that are no UTF-8 where a text is asked for; a file's name may hold any."""
    if not isinstance(value, str) or name in ("model", "out") or os.path.exists(value):
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{name} is no UTF-8 text: {shorten(value)!r}, character {error.start}"
        raise InputError(f"{what}; set your terminal to UTF-8, or give a file") from error


def verb(run: Callable[..., None]) -> Callable[..., None]:
    """`run(shared, ...)` as a function with `Shared`'s options behind its own, which is what typer reads."""
    own = list(inspect.signature(run).parameters.values())[1:]
    shared = list(inspect.signature(Shared).parameters.values())

    def call(**values: Any) -> None:
        for name, value in values.items():
            for text in value if isinstance(value, list) else [value]:
                _check(name, text)
        options = Shared(**{option.name: values.pop(option.name) for option in shared})
        if options.offline:
            os.environ |= {"HF_HUB_OFFLINE": "1", "NPM_CONFIG_OFFLINE": "true"}
        run(options, **values)

    call.__name__, call.__doc__ = run.__name__, run.__doc__
    call.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    call.__annotations__ = {option.name: option.annotation for option in (*own, *shared)}
    return call


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"qkv: warning: {warning}", file=sys.stderr)


def values(completion: "Completion", text: Plain) -> Plain:
    """A text and how it was written, for programs."""
    read, written = completion.usage
    return text | {
        "model": completion.model,
        "sampling": dataclasses.asdict(completion.sampling),
        "max_tokens": completion.max_tokens,
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        "warnings": list(completion.warnings),
        "seconds": round(completion.seconds, 3),
    }
