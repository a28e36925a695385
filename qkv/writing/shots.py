"""Examples before a prompt: a task that is shown, not explained (GPT-3, 2005.14165, section 2)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkv.errors import InputError, shorten

MAX_SHOTS = 1000
STOPS = ("\nInput:", "\n\n")  # where the output of the last one ends


class Shot(NamedTuple):
    """One example."""

    input: str
    output: str


def after(shots: Sequence[Shot], text: str) -> str:
    """The prompt for `text` behind the examples; without any, the text itself."""
    if not shots:
        return text
    return "".join(f"Input: {shot.input}\nOutput: {shot.output}\n\n" for shot in shots) + f"Input: {text}\nOutput:"


def read_shots(path: Path) -> list[Shot]:
    """The examples of a file, one JSON object a line: {"input": "...", "output": "..."}. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    found = [_shot(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(found) <= MAX_SHOTS:
        raise InputError(f"{path} has {len(found)} examples; show 1 to {MAX_SHOTS}")
    return found


def _shot(line: str, where: str) -> Shot:
    try:
        values = json.loads(line)
        given, wanted = values["input"], values["output"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f'{where} is not {{"input": "...", "output": "..."}}: {shorten(repr(error))}') from error
    if not isinstance(given, str) or not isinstance(wanted, str):
        raise InputError(f"{where}: input and output are not both texts")
    return Shot(given, wanted)
