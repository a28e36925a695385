"""Completing code at a place in a file: what stands before it is read, and what stands behind it where a model can.

A model with tokens for the middle (2207.14255) sees both sides. Any other sees the left side within a fence, with its
last token taken back, and writes until its block is over (source.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qkv.errors import InputError
from qkv.loaded.language import Asked, Language, check_text, load_language
from qkv.loaded.where import AUTO, Where
from qkv.tasks.complete import in_the_middle
from qkv.textfiles import read_text
from qkv.writing.loop import Completion, Piece, write
from qkv.writing.options import Options
from qkv.writing.settle import Task, settle
from qkv.writing.source import NAMES, cutters, read_code, reads_as

ROOM = 128  # tokens, if nobody says how many


@dataclass(frozen=True, kw_only=True)
class CodeRequest:
    """A wish for what comes at the end of line `line`, from 1, of a text of code. Raises InputError.

    `kind` is the language as a fence names it; None: what it reads as.
    """

    source: str
    line: int
    kind: str | None = None
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self.options.check_some()
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


def in_file(path: Path, line: int | None, options: Options) -> CodeRequest:
    """The wish for what comes at the end of a file's line; None: of the file. Raises InputError."""
    source = read_text(path).replace("\r\n", "\n")
    line = source.count("\n") + 1 if line is None else line
    return CodeRequest(source=source, line=line, kind=NAMES.get(path.suffix), options=options)


def completing_code(
    request: CodeRequest, model: Asked = None, where: Where = AUTO, *, offline: bool = False
) -> Iterator[Piece | Completion]:
    """A `Piece` whenever there is more code, a `Completion` at the end. Raises what `complete` does."""
    return write(prepare(request, load_language(model, **vars(where), offline=offline)))


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
    kind = request.kind or reads_as(before)
    ids, left_out = read_code(language, before, kind, limit=limit if limit > 0 else language.context)
    if left_out:
        warnings.append(f"cut: of {left_out + limit:,} tokens before the place, only the last {limit:,} are read")
    return settle(
        language, ids, request.options, room=ROOM, warnings=warnings, heal=True, cutters=lambda: [*cutters(before)]
    )
