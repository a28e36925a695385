"""Stop strings over streamed text: nothing behind one is ever shown, whatever tokens it was cut into.

Text that may still become a stop string is held back until it is clear. Each stop string is followed by the automaton
of Knuth, Morris and Pratt (1977), a step a character, so that the result depends on the text alone and never on how it
arrived. The first stop string to be complete wins; of two complete at once, the longer. They are no part of the text.
"""

from collections.abc import Sequence

from qkv.errors import InputError, quoted

MAX_STOPS = 16  # of one request
MAX_LENGTH = 1000  # characters of one stop string


def check_stops(stops: object) -> tuple[str, ...]:
    """The stop strings as a tuple; one may be given alone. Raises InputError."""
    given = (stops,) if isinstance(stops, str) else stops
    if not isinstance(given, list | tuple) or len(given) > MAX_STOPS:
        raise InputError(f"stop={quoted(stops)} is not a text or at most {MAX_STOPS} of them")
    for stop in given:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_LENGTH:
            raise InputError(f"stop: {quoted(stop)} is not a text of 1 to {MAX_LENGTH} characters")
    return tuple(given)


class Stops:
    """Cuts one stream of text at the first of `stops`, which `hit` then names."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit: str | None = None
        self._walks = [_Walk(stop) for stop in stops]
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may be shown now that `text` has come; after a hit, none."""
        if self.hit is not None:
            return ""
        for place, character in enumerate(text):
            complete = [walk.stop for walk in self._walks if walk.step(character)]
            if complete:
                self.hit = max(complete, key=len)
                read = self._held + text[: place + 1]
                self._held = ""
                return read[: -len(self.hit)]
        read = self._held + text
        shown = len(read) - max((walk.matched for walk in self._walks), default=0)
        self._held = read[shown:]
        return read[:shown]

    def finish(self) -> str:
        """The text that was held back, now that no more comes."""
        rest, self._held = self._held, ""
        return rest


class _Walk:
    """How many characters of `stop` the text read so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop, self.matched = stop, 0
        self._shorter = [0, 0]  # by length of a beginning of `stop`: the longest shorter one that it ends with
        for character in stop[1:-1]:
            self.matched = self._longest(character)
            self._shorter.append(self.matched)
        self.matched = 0

    def _longest(self, character: str) -> int:
        matched = self.matched
        while matched and self.stop[matched] != character:
            matched = self._shorter[matched]
        return matched + (self.stop[matched] == character)

    def step(self, character: str) -> bool:
        """Reads a character; true once `stop` is complete."""
        self.matched = self._longest(character)
        return self.matched == len(self.stop)
