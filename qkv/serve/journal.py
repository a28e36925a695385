"""What happened: a line in the log for each request, and counts for Prometheus. Never what anybody wrote.

A request's `Record` goes with it through the context, so that whoever computes for it can `note` what it cost.
"""

import json
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Histogram

log = logging.getLogger("qkv.serve")
QUIET = ("/health", "/ready", "/ping", "/metrics")  # what machines ask all the time
_current: ContextVar["Record | None"] = ContextVar("record", default=None)


@dataclass
class Record:
    """A request under way."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    model: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # tokens read and written, steps, pictures
    first: float | None = None  # seconds to the first byte of the answer

    def begin(self) -> None:
        """From here on `note` is about this request."""
        _current.set(self)


def note(model: str = "", **counts: int) -> None:
    """Adds to the record of the request that is computed for."""
    if (record := _current.get()) is not None:
        record.model = model or record.model
        for name, count in counts.items():
            record.counts[name] = record.counts.get(name, 0) + count


Watcher = Callable[[int, int, Image.Image | None], None]  # steps done, of how many, how it looks
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def watch(watcher: Watcher) -> None:
    """From here on `watcher` hears of the steps of what is computed for the caller."""
    _watcher.set(watcher)


def watched() -> bool:
    return _watcher.get() is not None


def step(done: int, total: int, preview: Image.Image | None = None) -> None:
    """Tells who watches."""
    if (watcher := _watcher.get()) is not None:
        watcher(done, total, preview)


def request_id() -> str:
    """The id of the request that is computed for."""
    record = _current.get()
    return record.id if record else ""


class Journal:
    """The log and the counts of one server."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self.registry = CollectorRegistry()
        count, spread = self._counter, self._histogram
        self._requests = count("qkv_requests", "Requests that have ended.", "dialect", "outcome")
        self._costs = count("qkv_work", "Tokens read and written, steps and pictures computed.", "what", "model")
        self._seconds = spread("qkv_request_seconds", "From a request to the end of its answer.", "dialect")
        self._first = spread("qkv_first_byte_seconds", "From a request to the first byte of its answer.", "dialect")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        buckets = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
        return Histogram(name, about, labels, registry=self.registry, buckets=buckets)

    def end(self, record: Record, dialect: str, outcome: str) -> None:
        """`outcome` is a status, or "cancelled"."""
        seconds = time.perf_counter() - record.began
        self._requests.labels(dialect, outcome).inc()
        self._seconds.labels(dialect).observe(seconds)
        if record.first is not None:
            self._first.labels(dialect).observe(record.first)
        for what, many in record.counts.items():
            self._costs.labels(what, record.model).inc(many)
        said: dict[str, Any] = {"id": record.id, "dialect": dialect, "method": record.method, "path": record.path}
        said |= {"outcome": outcome, "model": record.model} | record.counts | {"seconds": round(seconds, 4)}
        if record.first is not None:
            said["first"] = round(record.first, 4)
        level = logging.DEBUG if record.path in QUIET else logging.INFO
        plain = " ".join(f"{name}={value}" for name, value in said.items() if value != "")
        log.log(level, json.dumps(said) if self._json else plain)
