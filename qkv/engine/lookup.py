"""Prompt lookup: guesses the next tokens from what stood behind the same few tokens before.

Speculative decoding (2211.17192) with the sequence itself as the draft model: code, quotations and summaries repeat
their prompt, and several guessed tokens are checked in one pass of the model for little more than the price of one. A
guess never changes a result (engine.py takes only what the sampler would have drawn), so all that can be lost is time:
guesses grow while they are right and pause, longer each time, while they are wrong.
"""

GRAM = 3  # tokens that must be the same; two agree by chance too often
LONGEST = 12  # tokens of one guess
LONGEST_PAUSE = 64


class Lookup:
    """Follows the tokens of one sequence."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # three tokens -> where the one behind their last occurrence is
        self._read = 0  # every occurrence that ends before this place is in the table
        self._length, self._pause, self._rest = 4, 1, 0

    def guess(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `ids`; often none."""
        for end in range(max(self._read, GRAM), len(ids)):
            self._after[tuple(ids[end - GRAM : end])] = end
        self._read = max(len(ids), GRAM)
        if self._rest:
            self._rest -= 1
            return []
        place = self._after.get(tuple(ids[-GRAM:]))
        if place is None:
            return []
        period = len(ids) - place  # what comes again may come more than once
        return [ids[place + i % period] for i in range(min(self._length, limit))]

    def learn(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` came true."""
        if right == guessed:
            self._length, self._pause = min(2 * self._length, LONGEST), 1
        elif right == 0:
            self._length, self._rest = max(self._length // 2, 1), self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._length, self._pause = right + 1, 1
