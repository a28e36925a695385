"""Everything a user can cause, as one small tree.

    QkvError
    ├── InputError         a prompt, size, step count ... that cannot be
    ├── ConfigError        a configuration with a wrong or unknown key or value
    ├── CheckpointError    a model folder or file that is broken or hostile
    ├── NotFoundError      a model, sampler, recipe ... of that name is not here
    ├── OutputError        a result that cannot be written
    ├── BusyError          an engine that takes nothing more for now
    ├── GenerationError    a model or a sampler that broke on a request
    └── MissingDependencyError  an optional package is not installed

Every message is one line: what was given, what was expected, what to do. The command line prints it
and exits with code 2; a program catches `QkvError`.
"""

import difflib
import reprlib
from collections.abc import Iterable


class QkvError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(QkvError, ValueError):
    """A value in a request that cannot be honoured."""


class ConfigError(QkvError, ValueError):
    """A configuration that is wrong before anything is allocated."""


class CheckpointError(QkvError):
    """A model folder or file that is broken, hostile or not what its configuration says."""


class NotFoundError(QkvError, LookupError):
    """Nothing of that name is here."""


class OutputError(QkvError, OSError):
    """A result that cannot be written."""


class BusyError(QkvError):
    """The queue is full or the engine is closing; try again later."""


class GenerationError(QkvError):
    """The model or a sampler broke on this request; its cause is attached."""


class MissingDependencyError(QkvError, ImportError):
    """An optional package is needed: `needs(package, extra)` words it."""

    @classmethod
    def needs(cls, package: str, extra: str) -> "MissingDependencyError":
        return cls(f"{package} is not installed; run: pip install 'qkv[{extra}]'")


def unknown(kind: str, given: object, known: Iterable[str]) -> str:
    """The message for a name that is not one of `known`: names the nearest, or lists them all."""
    names, given = sorted(known), given if isinstance(given, str) else quoted(given)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} {shorten(given)!r}; {hint}"


def shorten(text: str, limit: int = 80) -> str:
    """`text` on one line and at most `limit` characters, for quoting in a message."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def quoted(value: object) -> str:
    """A value as a message quotes it: short, and found at once, however large it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict | set | bytes) and len(value) > 100:
        return f"a {type(value).__name__} of {len(value):,}"
    return shorten(reprlib.repr(value))
