"""Completing code at a place in a file: what stands before it is read, and what stands behind it where a model can.

A model with tokens for the middle (2207.14255) sees both sides. Any other sees the left side, with its last token taken
back, and writes until its block is over: behind a line that opens one (`if x:`) until a line is not indented deeper,
elsewhere until an empty line or one that is indented less.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qkv.errors import InputError
from qkv.tasks.complete import in_the_middle
from qkv.tasks.language import Language, check_text
from qkv.tasks.options import Options
from qkv.tasks.writing import Completion, Piece, Task, settle, write

ROOM = 128  # tokens, if nobody says how many
_OPENS = (":", "{", "(", "[", "->", "=>", "do", "then", "begin")


@dataclass(frozen=True, kw_only=True)
class CodeRequest:
    """A wish for what comes at the end of line `line`, from 1, of a text of code. Raises InputError."""

    source: str
    line: int
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        check_text("source", self.source)
        lines = self.source.count("\n") + 1
        if not isinstance(self.line, int) or not 1 <= self.line <= lines:
            raise InputError(f"line={self.line} is not in this code; it has {lines} lines")

    @property
    def sides(self) -> tuple[str, str]:
        """The code before the place, and behind it."""
        lines = self.source.split("\n")
        before = "\n".join(lines[: self.line])
        return before, self.source[len(before) :]


def read_code(path: Path) -> str:
    """The text of a file. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def completing_code(request: CodeRequest) -> Iterator[Piece | Completion]:
    """A `Piece` whenever there is more code, a `Completion` at the end. Raises what `complete` does."""
    return write(prepare(request, request.options.load()))


def prepare(request: CodeRequest, language: Language) -> Task:
    """What is to be done, settled for this model. Raises InputError."""
    before, behind = request.sides
    limit = language.context - (request.options.max_tokens or min(ROOM, language.context // 2))
    if language.fim is not None:
        return settle(
            language, in_the_middle(language, before, behind), request.options, room=ROOM, ends=language.fim_ends
        )
    warnings = []
    if behind.strip():
        warnings.append(f"left side only: {language.name} cannot read what is behind line {request.line}")
    ids = language.read(before)
    if len(ids) > limit > 0:
        warnings.append(f"cut: of {len(ids):,} tokens before the place, only the last {limit:,} are read")
        ids = ids[-limit:]
    return settle(
        language, ids, request.options, room=ROOM, warnings=warnings, heal=True, cutters=lambda: [Block(before)]
    )


class Block:
    """Cuts a stream of code where the block at the end of `before` is over (as `Stops` does at a stop string)."""

    def __init__(self, before: str) -> None:
        self.hit: str | None = None
        self._line = before.rsplit("\n", 1)[-1]  # the first line, as far as it is known
        self._indent = len(self._line) - len(self._line.lstrip())
        self._first = True
        self._held = ""  # line ends and indentation that may turn out to be behind the block

    def push(self, text: str) -> str:
        """What may be shown now that `text` has come."""
        if self.hit is not None:
            return ""
        shown = ""
        for character in text:
            if character == "\n" or (self._held and character in " \t\r"):
                self._first = False
                self._held += character
                continue
            if self._held and self._over(character):
                self.hit = self._held
                return shown
            if self._first:
                self._line += character
            shown += self._held + character
            self._held = ""
        return shown

    def _over(self, character: str) -> bool:
        """Whether a line that begins with `character`, behind the indentation just read, is outside of the block."""
        indent = len(self._held.rsplit("\n", 1)[-1])
        if self._line.rstrip().endswith(_OPENS):
            return indent < self._indent or (indent == self._indent and character not in ")]}")
        return indent < self._indent or self._held.count("\n") > 1

    def finish(self) -> str:
        """Line ends and spaces behind the last line of code are no part of it."""
        self._held = ""
        return ""
