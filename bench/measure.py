"""What the scripts in bench/ share: fair turns for the peers, medians with their range, peak memory, tables.

A claim is a ratio within one run on one machine. Peers sit in processes of their own with the same threads and take
turns (A B A B ...), so whatever else the machine does hits all of them; every turn gives one ratio. Whole processes
are timed and weighed by the kernel's own account of them.

Torch is not imported here: Linux counts a parent's memory into the peak of a child that it starts, so whoever weighs
processes has to be small.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


class Spread(NamedTuple):
    """Measurements in short."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:.3g} ({:.3g} to {:.3g})".format(*self)


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times less ours is, turn by turn."""
    return spread([their / our for their, our in zip(theirs, ours, strict=True)])


def take_turns(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every peer measured of itself in each round, all peers once a round; a round before is not counted."""
    found: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        for name, measure in peers.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def prepare(threads: int) -> None:
    """The environment that all processes started from here share."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile the package anew


@contextmanager
def worker() -> Iterator[ProcessPoolExecutor]:
    """One process that stays; `submit` runs a function of the calling script in it."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        yield pool


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Process(NamedTuple):
    """A whole process, from its start to its end."""

    seconds: float
    peak: float  # MiB


def run_process(command: Sequence[str | Path]) -> Process:
    """Runs `command`, its output thrown away. Raises CalledProcessError with the errors it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.stderr.write(errors.decode(errors="replace"))
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Process(seconds, usage.ru_maxrss / unit)


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """What the figures were taken on."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", about, re.MULTILINE)[:1]).split())
    name = re.search(r"^model name\s*:\s*(.*)$", about, re.MULTILINE)
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def report(results: Mapping[str, Any], tables: Sequence[str], *, as_json: bool) -> None:
    """Prints `results` for programs or, in markdown, the tables and the machine for docs/numbers.md."""
    if as_json:
        print(json.dumps(results))
        return
    on = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    command = " ".join([f"python bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print("\n\n".join(tables))
    print(f"\n`{command}`, {on['date']}: {on['threads']} threads of {on['cores']} cores (load before: {on['load']}), ")
    print(f"{on['processor']} with {' '.join(on['flags']) or 'no known extensions'}; {versions}.")
    print("Median (lowest to highest); ratios are those of the single turns.")


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
