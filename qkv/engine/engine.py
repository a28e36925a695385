"""The engine: many requests, one model, a step at a time.

    submit ─ inbox ─ scheduler: which tokens ─ runner: logits ─ sequence: next tokens ─ events
                         └──────────────── pages of the cache ◄───────────┘

A thread steps while there is something to do and ends when there is not, so an idle engine is only memory: nothing is
left behind at exit and nothing is to be closed. Callers wait for events (handle.py), never for a step. What is drawn
for a request depends on the request alone (runner.py's promise); one that fails, fails alone.
"""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from typing import NamedTuple, Self

import numpy as np

from qkv.engine.cache import PageCache
from qkv.engine.handle import Channel, Handle
from qkv.engine.runner import Chunk, Runner
from qkv.engine.scheduler import Scheduler
from qkv.engine.sequence import EngineRequest, Sequence
from qkv.errors import BusyError, GenerationError, InputError, QkvError

SLOTS = 32  # answers that are computed at once
BUDGET = 256  # rows a step: some 0.1 s of reading on a small CPU, which is what a long prompt delays the others by
QUEUE = 256  # answers that may wait


Found = np.ndarray | Exception | None  # logits, or why there are none, or None where none were wanted


class Stats(NamedTuple):
    """Counts of an engine's work, now and so far."""

    running: int  # answers
    waiting: int
    memory: int  # bytes of keys and values
    memory_used: int
    steps: int
    tokens: int  # written
    read: int  # rows that went through the model
    reused: int  # prompt tokens that did not have to
    tokens_per_second: float  # lately


class Engine:
    """Answers requests on `runner`, from any number of threads and event loops.

    `slots`, `budget`, `queue`: see above. The memory is the runner's. Also a context manager that closes.
    """

    def __init__(self, runner: Runner, *, slots: int = SLOTS, budget: int = BUDGET, queue: int = QUEUE) -> None:
        self.runner = runner
        self._slots, self._budget, self._queue = slots, budget, queue
        self._lock = threading.Lock()  # holds the inbox and the thread's coming and going together
        self._inbox: deque[tuple[Sequence, Channel]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = self._cut = False
        self._process = os.getpid()
        self._threads: int | None = None  # that the runner uses now
        self._steps = self._tokens = self._rows = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=64)  # when, and how many tokens had been written
        self._start()
        _engines.add(self)

    def _start(self) -> None:
        """Nothing runs, nothing is cached."""
        self._channels: dict[Sequence, Channel] = {}
        self._scheduler = Scheduler(
            PageCache(self.runner.pages, self.runner.page), slots=self._slots, budget=self._budget
        )

    @property
    def context(self) -> int:
        """The longest sequence in tokens that the model can read and the pool can hold; the last is never read."""
        return min(self.runner.context, self.runner.pages * self.runner.page + 1)

    @property
    def bytes(self) -> int:
        """The memory that the weights take, and the keys and values up to now."""
        return self.runner.weight_bytes + self._scheduler.cache.touched * self.runner.page_bytes

    def submit(self, request: EngineRequest, *, threads: int | None = None) -> Handle:
        """Takes the request up and returns at once. Its steps run on so many threads (None: as the runner was made);
        where several answers share a step, on the most that any of them asks for.

        Raises InputError if this model or this pool can never serve it, BusyError if too many wait already.
        """
        if os.getpid() != self._process:
            raise InputError("this engine belongs to the process that made it; make one after forking")
        request.check(self.runner.vocab, self.runner.context)
        need = self._scheduler.pages(len(request.prompt) + request.max_tokens)
        if need > self.runner.pages:
            raise InputError(
                f"the request needs {need * self.runner.page_bytes:,} bytes of keys and values and there is room for "
                f"{self.runner.pages * self.runner.page_bytes:,}; lower max_tokens, or give more (memory)"
            )
        channel = Channel()
        answers = [Sequence(request, i, request.sampler(i, self.runner.vocab), channel.put) for i in range(request.n)]
        for answer in answers:
            answer.threads = threads
        with self._lock:
            waiting = len(self._inbox) + len(self._scheduler.waiting)
            if self._closed:
                raise BusyError("the engine is closed; nothing new is taken")
            if waiting + request.n > self._queue:
                raise BusyError(f"{waiting} answers wait already, {self._queue} may; try again later")
            self._inbox.extend((answer, channel) for answer in answers)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qkv-engine", daemon=True)
                self._thread.start()
        return Handle(channel, answers)

    @property
    def stats(self) -> Stats:
        scheduler, cache = self._scheduler, self._scheduler.cache
        recent = list(self._recent)
        seconds = recent[-1][0] - recent[0][0] if recent else 0.0
        return Stats(
            running=scheduler.running,
            waiting=len(scheduler.waiting) + len(self._inbox),
            memory=cache.pages * self.runner.page_bytes,
            memory_used=(cache.pages - cache.available) * self.runner.page_bytes,
            steps=self._steps,
            tokens=self._tokens,
            read=self._rows,
            reused=scheduler.reused,
            tokens_per_second=(recent[-1][1] - recent[0][1]) / seconds if seconds else 0.0,
        )

    def close(self, grace: float = 0.0) -> None:
        """Takes nothing new, lets what runs go on for `grace` seconds, cancels the rest and waits for its end."""
        if os.getpid() != self._process:
            return  # a fork has the lock as it was, but not the thread
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None:
            thread.join(grace)
            self._cut = True
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # The engine's thread: from here on nobody else runs.

    def _run(self) -> None:
        while True:
            try:
                busy = self._step()
            except Exception as error:  # a bug of ours: who was in it fails, the engine starts anew
                self._restart(error)
                continue
            if not busy:
                with self._lock:
                    if not self._inbox:
                        self._thread = None
                        self._recent.clear()
                        return

    def _step(self) -> bool:
        """Reads what is planned and draws what follows; False if there was nothing to do."""
        self._take_in()
        plan = self._scheduler.plan()
        if plan:
            self._employ(max(sequence.threads or 0 for sequence, _ in plan) or None)
        found = self._read([chunk for _, chunk in plan])
        for (sequence, chunk), logits in zip(plan, found):
            try:
                self._advance(sequence, chunk, logits)
            except Exception as error:
                self._fail(sequence, error)
            if sequence.finish is not None:
                self._end(sequence)
        self._steps += 1
        self._recent.append((time.monotonic(), self._tokens))
        return bool(plan)

    def _employ(self, threads: int | None) -> None:
        if threads != self._threads:
            self.runner.use(threads)
            self._threads = threads

    def _take_in(self) -> None:
        """New requests come in, cancelled ones go out."""
        while self._inbox:
            sequence, channel = self._inbox.popleft()
            self._channels[sequence] = channel
            self._scheduler.waiting.append(sequence)
        for sequence in [sequence for sequence in self._scheduler if sequence.cancelled or self._cut]:
            sequence.finish = "cancelled"
            self._end(sequence)

    def _read(self, chunks: list[Chunk]) -> list[Found]:
        """The runner's logits of each chunk. If the whole step breaks, each is tried alone, to find the one."""
        self._rows += sum(len(chunk.ids) for chunk in chunks)
        try:
            logits = iter(self.runner.step(chunks))
            return [next(logits) if chunk.wanted else None for chunk in chunks]
        except Exception:
            return [self._read_alone(chunk) for chunk in chunks]

    def _read_alone(self, chunk: Chunk) -> Found:
        try:
            logits = self.runner.step([chunk])
            return logits[0] if chunk.wanted else None
        except Exception as error:
            return error

    def _advance(self, sequence: Sequence, chunk: Chunk, found: Found) -> None:
        if isinstance(found, Exception):
            raise found
        stop = chunk.start + len(chunk.ids)
        if found is not None:
            self._tokens += sequence.advance(found, stop)
        self._scheduler.commit(sequence, min(stop, len(sequence.ids) - 1))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        sequence.finish = "failed"
        if not isinstance(error, QkvError):
            cause, error = (
                error,
                GenerationError(f"this request broke the step ({type(error).__name__}); see its cause"),
            )
            error.__cause__ = cause
        self._channels[sequence].put(error)

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.drop(sequence)
        self._channels.pop(sequence).put(None)

    def _restart(self, error: Exception) -> None:
        for sequence in self._channels:
            self._fail(sequence, error)
        self._start()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread inside a kernel must not outlive the interpreter."""
    for engine in list(_engines):
        engine.close()
