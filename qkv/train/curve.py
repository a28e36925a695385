"""The numbers of a run: `metrics.jsonl`, one record a line, and the picture of its curves."""

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkv.atomic import write_file
from qkv.errors import MissingDependencyError, OutputError

BOOKKEEPING = {"step", "seconds", "skipped"}


def read(file: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The records up to step `last`; a line that a killed process left half-written is passed over."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if last is None or record["step"] <= last:
            records.append(record)
    return records


def rewind(file: Path, step: int) -> None:
    """Drop the records after `step`: a resumed run writes them again."""
    write_file(file, "".join(json.dumps(record) + "\n" for record in read(file, step)).encode())


def append(file: Path, record: Mapping[str, Any]) -> None:
    """Add one record. Raises OutputError."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


def plot(file: Path, picture: Path) -> None:
    """Draw a panel for each number in `metrics.jsonl`. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.needs("matplotlib", "train") from error
    curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for record in read(file):
        for name in record.keys() - BOOKKEEPING:
            curves[name][0].append(record["step"])
            curves[name][1].append(record[name])
    if not curves:
        return
    names = sorted(curves, key=lambda name: (name != "loss", name))
    rows = (len(names) + 2) // 3
    figure = Figure(figsize=(5 * min(len(names), 3), 3 * rows), layout="constrained")
    for place, name in enumerate(names, 1):
        panel = figure.add_subplot(rows, min(len(names), 3), place)
        panel.plot(*curves[name], linewidth=1)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
        if min(curves[name][1]) > 0:
            panel.set_yscale("log")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_file(picture, data.getvalue())
