"""Examples before a prompt: a task that is shown, not explained (GPT-3, 2005.14165, section 2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qkv.errors import InputError
from qkv.textfiles import json_lines

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
    found = json_lines(path, _shot)
    if len(found) > MAX_SHOTS:
        raise InputError(f"{path} has {len(found)} examples; show 1 to {MAX_SHOTS}")
    return found


def _shot(value: Mapping[str, Any]) -> Shot:
    match value:
        case {"input": str(given), "output": str(wanted)}:
            return Shot(given, wanted)
    raise InputError('it is not {"input": "...", "output": "..."} of two texts')
