r"""Code as a model is shown it and as it ends: the language, the fence around it, the end of its block.

Models that were taught to talk have seen code inside Markdown's fences, and hardly ever code as the first thing of all.
Of 24 beginnings such as `def factorial(n):` SmolLM2-135M-Instruct finished 7 so that they passed a test, 11 behind the
token that separates documents, and 14 behind a line ```python (bench/code_prompts.py). A line end behind the colon only
makes it begin anew: it has not seen lines cut there.

A text *reads as code* only if nothing that is not indented stands before its first function or class but comments and
imports, so a text that speaks about code is a text. Left out: languages whose beginnings read like prose.
"""

import re

from qkv.loaded.language import Language
from qkv.sample.stops import Stops

MOST = 1 << 16  # characters that are looked at; code begins like code

# By the name that fences give the language: what may stand before the first definition, and a definition.
_READS: dict[str, tuple[str, str]] = {
    "python": (r"#|@\w|(from|import) \w", r"(async )?def \w+\(|class [A-Z]\w*[(:]"),
    "javascript": (r"//|import \W|const \w+ =", r"(export )?(async )?function\*? \w+ ?\("),
    "rust": (r"//|use \w+::|#\[", r"(pub )?(async )?fn \w+[(<]"),
    "go": (r"//|package \w+$|import [(\"]", r"func (\([^)]*\) )?\w+\("),
    "c": (r"//|/\*|#", r"(static )?(unsigned )?(void|char|int|long|float|double)[ *]+\w+ ?\("),
}
_PATTERNS = {name: tuple(map(re.compile, patterns)) for name, patterns in _READS.items()}
NAMES = {".py": "python", ".js": "javascript", ".rs": "rust", ".go": "go", ".c": "c", ".h": "c"}
_OPENS = (":", "{", "(", "[", "->", "=>", "do", "then", "begin")
CLOSING = "\n```"


def reads_as(text: str) -> str | None:
    """The language of a text that reads as code, or None."""
    lines = [line for line in text[:MOST].splitlines() if line.strip() and not line[0].isspace()]
    for name, (before, definition) in _PATTERNS.items():
        for line in lines:
            if definition.match(line):
                return name
            if not before.match(line):
                break
    return None


def read_code(language: Language, text: str, kind: str | None, *, limit: int | None = None) -> tuple[list[int], int]:
    """The tokens of code in the language `kind`, within a fence unless the model is one for code, with tokens for the
    middle, which reads it as it is.

    At most `limit` tokens, the last of the code; also returns how many of it were left out. Raises InputError.
    """
    opening = f"```{kind}\n" if kind and language.fim is None else ""
    ids = language.read(opening + text)
    if limit is None or len(ids) <= limit:
        return ids, 0
    kept = language.read(opening) if opening else []
    kept = kept if len(kept) < limit else []
    return [*kept, *ids[len(kept) - limit :]], len(ids) - limit


def cutters(text: str) -> list["BlockEnd | Stops"]:
    """What ends code that goes on from `text`: the end of its block, or of the fence."""
    return [BlockEnd(text), Stops([CLOSING])]


class BlockEnd:
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
