"""How far a run is, on stderr: a bar on a terminal, a plain line every half minute elsewhere."""

import sys
import time
from types import TracebackType

from qkv.progress import Bar

QUIET = 30.0  # seconds between plain lines
SMOOTH = 0.98  # the share of the past in the shown loss and speed


class Meter:
    """Shows steps, smoothed loss, items/s and time left while a run goes on.

    `budget` is the wall-clock time of this invocation in seconds (inf: none); the time left never exceeds it.
    """

    def __init__(self, start: int, steps: int, budget: float, shown: bool) -> None:
        self.steps, self.budget, self.shown = steps, budget, shown
        self.began = self.ticked = time.monotonic()
        self.printed = self.began
        self.loss = self.seconds = self.items = self.weight = 0.0
        self.bar = Bar("training", steps, done=start, note="", shown=shown)

    def __enter__(self) -> "Meter":
        self.bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.bar.__exit__(kind, error, tb)

    def say(self, line: str) -> None:
        """One line that stays."""
        if self.bar:
            self.bar.say(line)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)

    def tick(self, done: int, loss: float, items: int) -> None:
        """Step `done` is over; it took `items` examples."""
        now = time.monotonic()
        self.weight = SMOOTH * self.weight + 1 - SMOOTH
        self.loss = SMOOTH * self.loss + (1 - SMOOTH) * loss
        self.seconds = SMOOTH * self.seconds + (1 - SMOOTH) * (now - self.ticked)
        self.items = SMOOTH * self.items + (1 - SMOOTH) * items
        self.ticked = now
        if self.bar:
            self.bar.update(done, note=self._text(done))
        elif self.shown and now - self.printed >= QUIET:
            self.printed = now
            self.say(f"step {done}/{self.steps}  {self._text(done)}")

    def _text(self, done: int) -> str:
        left = min((self.steps - done) * self.seconds / self.weight, self.began + self.budget - self.ticked)
        hours, minutes = divmod(round(max(left, 0.0) / 60), 60)
        rate = self.items / max(self.seconds, 1e-9)
        return f"loss {self.loss / self.weight:.4g}  {rate:.3g} items/s  {hours}:{minutes:02d} h left"
