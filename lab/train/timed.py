"""A training that ends in time: how many steps it has is measured, not guessed.

Place: around a recipe, where a machine is lent for minutes. The run's own first half minute tells its rate, at a
learning rate that does not fall yet; then it goes on, with as many steps as fit. The last part of the time is for
reading the data again, and for what is saved at the end.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qkv.errors import ConfigError
from qkv.train.loop import Result
from qkv.train.recipes import run

PROBE = 0.5  # minutes
FAR = 10_000_000  # steps that no probe comes near
SPARE = 0.05  # of the time


def run_within(
    minutes: float, recipe: Path, changes: Iterable[str] = (), *, folder: Path, device: str, progress: bool = True
) -> Result[Any]:
    """Trains `recipe` for about `minutes`, all in all; its schedule ends with them. Raises what `run` raises, and
    ConfigError where there is no time for more than the measuring."""
    began, changes = time.monotonic(), list(changes)
    probe = [*changes, f"fit.steps={FAR}", f"fit.minutes={PROBE}"]
    first = run(recipe, probe, folder=folder, device=device, progress=progress)
    used = (time.monotonic() - began) / 60  # of which PROBE was spent on steps, and all else will be spent again
    steps = steps_left(minutes, used, first.steps)
    return run(recipe, [*changes, f"fit.steps={steps}"], folder=folder, device=device, resume=True, progress=progress)


def steps_left(minutes: float, used: float, done: int) -> int:
    """How many steps a run has in all, of which `done` took PROBE of the `used` minutes."""
    left = (1 - SPARE) * minutes - used - (used - PROBE)
    if left <= 0 or done < 1:
        raise ConfigError(f"minutes={minutes:g} is too short: {used:.1f} went by for the first {done} steps; give more")
    return done + max(1, int(left * done / PROBE))
