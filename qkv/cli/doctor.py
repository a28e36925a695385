"""`qkv doctor`: one screen about this machine and what qkv makes of it, which a bug report begins with."""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qkv.cli.shared import Shared, verb
from qkv.errors import shorten

if TYPE_CHECKING:
    from qkv.tasks.doctor import Report

WIDTH, LINES = 100, 50  # a screen
NAMES = 23  # characters of a line before its facts
MODELS, SETTINGS = 12, 8  # lines at most; the others are counted


@verb
def doctor(shared: Shared) -> None:
    """Say what this machine has, which path each verb takes here and why: what a bug report begins with."""
    from qkv.tasks.doctor import examine

    report = examine(shared.where)
    shared.say("\n".join(screen(report)), asdict(report))


def screen(report: "Report") -> Iterator[str]:
    """The lines of the report."""
    for name, text in (*_machine(report), ("", "")):
        yield from _lines(name, text)
    for path in report.paths:
        why = f" ({path['why']})" if path["why"] else ""
        yield from _lines(", ".join(path["verbs"]), path["path"] + why)
    yield ""
    if isinstance(report.models, str):
        yield from _lines("models", report.models)
    else:
        rows = [f"{each['name']}, {each['kind']}, {_size(each['bytes'])}" for each in report.models]
        yield from _rows("models", rows, MODELS)
    yield from _rows("settings", [f"{name}={value}" for name, value in report.settings.items()], SETTINGS)


def _machine(report: "Report") -> Iterator[tuple[str, str]]:
    has, kernels = report.machine, report.kernels
    yield "system", has["system"]
    yield "processor", f"{has['processor']}; {_sets(has['instruction_sets'])}"
    cores = has["cores"]
    yield "cores", cores if isinstance(cores, str) else f"{_or(cores['all'])}, usable {_or(cores['usable'])}"
    total, free = has["memory"]["total"], has["memory"]["free"]
    yield "memory", f"{_size(total)}, free {_size(free)}, read at {_size(has['memory_speed'])} a second"
    yield "GPU", has["gpu"]
    yield "compiler", kernels["compiler"]
    used = kernels["instruction_sets"]
    sets = used if isinstance(used, str) else ", ".join(name.strip("_") for name in used) or "no wide instructions"
    built = "built before" if kernels["found"] else "built just now"
    yield "kernels", f"{built}, for {sets}" if kernels["built"] else f"not built: {kernels['reason']}"
    yield "versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())
    yield "PyTorch", ", ".join(f"{name} {_or(value)}" for name, value in report.torch.items())


def _sets(sets: dict[str, bool] | str) -> str:
    if isinstance(sets, str):
        return f"instruction sets {sets}"
    here, missing = ([name for name, has in sets.items() if has is wanted] for wanted in (True, False))
    return "; ".join([*([", ".join(here)] if here else []), *([f"no {', '.join(missing)}"] if missing else [])])


def _or(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)


def _size(value: int | str) -> str:
    from qkv.loaded.memory import readable

    return value if isinstance(value, str) else readable(value)


def _rows(name: str, rows: list[str], most: int) -> Iterator[str]:
    shown = rows if len(rows) <= most else [*rows[: most - 1], f"and {len(rows) - most + 1} more (--json)"]
    for number, row in enumerate(shown or ["none"]):
        yield f"{name if number == 0 else '':{NAMES}} {shorten(row, WIDTH - NAMES - 1)}"


def _lines(name: str, text: str) -> list[str]:
    """A fact on two lines at most."""
    start, indent = (f"{name:{NAMES}} ", " " * (NAMES + 1)) if text else ("", "")
    return textwrap.wrap(
        shorten(text, 2000), WIDTH, initial_indent=start, subsequent_indent=indent, max_lines=2, placeholder=" …"
    ) or [""]
