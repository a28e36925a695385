"""Which tokens go through the model in the next step.

Continuous batching (Orca, OSDI 2022, section 3) with chunked prefill (Sarathi-Serve, 2403.02310, section 4): every
sequence that writes gets its next token in every step, and the rest of the step's `budget` of rows goes to those that
still read their prompt, each in turn. Nobody starves: a sequence enters only when the pool has all that it can come to
need, first come first served, so nothing is ever thrown out again, and a long prompt delays the others by chunks only.
"""

from collections import deque
from collections.abc import Iterator

from qkv.engine.cache import Key, PageCache
from qkv.engine.runner import Chunk
from qkv.engine.sequence import Sequence


class Scheduler:
    """The sequences `waiting` for memory, `reading` their prompts and `writing` their answers, at most `slots` of the
    latter two. `budget` is how many rows a step should have; the engine's thread alone uses it."""

    def __init__(self, cache: PageCache, *, slots: int, budget: int) -> None:
        self.cache, self.slots, self.budget = cache, slots, budget
        self.waiting: deque[Sequence] = deque()
        self.reading: deque[Sequence] = deque()
        self.writing: list[Sequence] = []
        self.reused = 0  # prompt tokens that were found in the cache

    @property
    def running(self) -> int:
        return len(self.reading) + len(self.writing)

    def __iter__(self) -> Iterator[Sequence]:
        yield from (*self.writing, *self.reading, *self.waiting)

    def pages(self, tokens: int) -> int:
        """How many pages a sequence of `tokens` comes to need; the last token is never read."""
        return -(-(tokens - 1) // self.cache.page)

    def plan(self) -> list[tuple[Sequence, Chunk]]:
        """The next step; empty when there is nothing to do."""
        self._admit()
        share = self.budget // (2 * max(len(self.writing), 1))  # guesses fill half a step at most
        plan = [self._write(sequence, share) for sequence in self.writing]
        rows = sum(len(chunk.ids) for _, chunk in plan)
        return plan + self._read(max(self.budget - rows, self.cache.page))

    def commit(self, sequence: Sequence, filled: int) -> None:
        """The first `filled` tokens' keys and values are there: full pages can be found from now on."""
        page = self.cache.page
        for number in range(sequence.filled // page, filled // page):
            self.cache.publish(sequence.table[number], sequence.key(number, page))
        sequence.filled = filled

    def drop(self, sequence: Sequence) -> None:
        """Takes a sequence out, done or not, and gives its pages back."""
        for group in (self.writing, self.reading, self.waiting):
            if sequence in group:
                group.remove(sequence)
        self.cache.release(sequence.table, broken=sequence.finish == "failed")
        sequence.table = []

    def _admit(self) -> None:
        """Lets those in, in their order, whose pages are sure."""
        while self.waiting and self.running < self.slots:
            sequence = self.waiting[0]
            self._reuse(sequence)
            promised = sum(self._missing(other) for other in (*self.reading, *self.writing))
            if self.cache.available < promised + self._missing(sequence):
                self.cache.release(sequence.table)
                sequence.table, sequence.filled = [], 0
                return
            self.reused += sequence.filled
            self.reading.append(self.waiting.popleft())

    def _missing(self, sequence: Sequence) -> int:
        return self.pages(sequence.limit) - len(sequence.table)

    def _write(self, sequence: Sequence, share: int) -> tuple[Sequence, Chunk]:
        """The last token, and guesses of the next ones."""
        if sequence.lookup is not None:
            limit = min(share, sequence.limit - len(sequence.ids) - 1)
            sequence.guess = sequence.lookup.guess(sequence.ids, limit)
        ids = sequence.ids[-1:] + sequence.guess
        return self._chunk(sequence, ids, wanted=len(ids))

    def _read(self, budget: int) -> list[tuple[Sequence, Chunk]]:
        """Chunks of prompts, `budget` rows in all: whole pages, or all that is left of a prompt.

        A sequence that got a chunk goes to the back of the queue. A sequence whose next page another one is computing
        waits for that page.
        """
        page, plan = self.cache.page, list[tuple[Sequence, Chunk]]()
        served, held = list[Sequence](), list[Sequence]()
        coming: set[Key] = set()
        while self.reading:
            sequence = self.reading.popleft()
            self.reused += self._reuse(sequence)
            start, left = sequence.filled, len(sequence.ids) - sequence.filled
            if start + page <= sequence.judged and sequence.key(start // page, page) in coming:
                held.append(sequence)
                continue
            count = left if left <= budget else budget - budget % page
            if count == 0:
                self.reading.appendleft(sequence)
                break
            done = count == left
            wanted = start + count - max(start, sequence.judged)
            plan.append(self._chunk(sequence, sequence.ids[start : start + count], wanted=max(wanted, 0)))
            coming |= {sequence.key(number, page) for number in range(start // page, (start + count) // page)}
            (self.writing if done else served).append(sequence)
            budget -= count
        self.reading.extendleft(reversed(held))
        self.reading.extend(served)
        return plan

    def _reuse(self, sequence: Sequence) -> int:
        """Goes on behind the pages that others have computed, but for those that logits are wanted of; returns their
        rows."""
        page, start = self.cache.page, sequence.filled
        while sequence.filled + page <= sequence.judged:
            found = self.cache.find(sequence.key(sequence.filled // page, page))
            if found is None:
                break
            sequence.table.append(found)
            sequence.filled += page
        return sequence.filled - start

    def _chunk(self, sequence: Sequence, ids: list[int], *, wanted: int) -> tuple[Sequence, Chunk]:
        rows = sequence.filled + len(ids)
        while len(sequence.table) * self.cache.page < rows:
            sequence.table.append(self.cache.take())
        return sequence, Chunk(ids, sequence.filled, sequence.table, wanted)
