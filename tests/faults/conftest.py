"""What it costs to refuse something, in steps and in bytes: no processor's speed changes those."""

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qkv.errors import CheckpointError, ConfigError


class Steps:
    """Counts the lines of Python that run in a block."""

    count = 0

    def __enter__(self) -> "Steps":
        self.before = sys.gettrace()
        sys.settrace(self.see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def see(self, frame: object, event: str, argument: object) -> Callable[..., object]:
        self.count += 1
        return self.see


@pytest.fixture(scope="session")
def steps() -> type[Steps]:
    return Steps


@dataclass(frozen=True)
class Refusals:
    """`reasons`, and the steps that they took (`counts`), one for each that was given; `growth`: of the peak memory, in
    bytes, by all."""

    growth: int
    modules: set[str]
    counts: list[int]
    reasons: list[str]


CHILD = """
import contextlib, json, sys
from collections.abc import Callable
from qkv.errors import CheckpointError
{setup}
{steps}
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

good, *hostile = json.load(sys.stdin)
run(good)
start, counts, reasons = peak(), [], []
for given in hostile:
    steps = Steps()
    with steps if {counted} else contextlib.nullcontext():
        try:
            reasons.append("it was accepted: " + repr(run(given))[:100])
        except CheckpointError as error:
            reasons.append(str(error))
    counts.append(steps.count)
print(json.dumps([peak() - start, list(sys.modules), counts, reasons]))
"""


@pytest.fixture(scope="session")
def refusals() -> Callable[..., Refusals]:
    """Runs `good`, then each of `hostile`, in one process of its own, by the function `run` that `setup` defines.
    Counting takes ten times as long."""

    def measure(setup: str, good: object, hostile: Iterable[object], counted: bool = True) -> Refusals:
        program = CHILD.format(setup=setup, steps=inspect.getsource(Steps), counted=counted)
        given = json.dumps([good, *hostile])
        done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        growth, modules, counts, reasons = json.loads(done.stdout)
        return Refusals(growth, set(modules), counts, reasons)

    return measure


# A model's folder with one thing wrong.


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the module's good one."""
    return shutil.copytree(good, tmp_path / "folder")


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    def change(file: Path, values: dict[str, object]) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.fixture(scope="session")
def refuse() -> Callable[..., None]:
    """Runs what must be refused: in one line, and in as many steps as a configuration takes to read."""

    def check(message: str, load: Callable[..., object], *given: object) -> None:
        with pytest.raises((ConfigError, CheckpointError), match=message) as caught, Steps() as steps:
            load(*given)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert steps.count < 1_000_000

    return check
