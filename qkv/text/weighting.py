r"""Prompt weights: from `a (red:1.3) dog` to texts with a weight each, the first step to tokens.

The attention grammar that Stable Diffusion users know from AUTOMATIC1111's web UI, written anew from
its documented behaviour:

    (word)         times 1.1            ((word))   times 1.21
    (word:1.3)     times 1.3            [word]     divided by 1.1
    \( \) \[ \] \\   the character itself     BREAK      what follows starts a new chunk

Round and square brackets are counted apart. One that is never closed lasts to the end; one that was
never opened is text, and so is a `:1.3)` outside round brackets.

Ours differs where the web UI loses something: a backslash before any other character stays, BREAK
also works inside brackets, `\BREAK` is the word itself, and `1e-1` and `nan` are read as numbers.
Left out: scheduling `[from:to:when]`, alternation `[a|b]` and `AND`, which are text, and `<lora:x:1>`
and its like, which are nothing; `unsupported` names them all. `\<lora:` is text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from qkv.errors import InputError, shorten

STEP = 1.1  # what one bracket multiplies or divides by
MAX_WEIGHT = 100.0
MAX_CHARACTERS = 100_000  # of a prompt

_ADAPTERS = "(?i:lora|lyco|hypernet)"

# No alternative can give characters back to be tried again (`++`), so hostile text costs linear time.
_SYMBOL = re.compile(
    rf"\\(?P<escaped>[\\()\[\]]|BREAK\b|<(?={_ADAPTERS}:))"
    rf"|(?P<adapter><{_ADAPTERS}:[^<>]*+>)"
    r"|(?P<pause>\bBREAK\b)"
    r"|:\s*+(?P<number>[+-]?(?i:[\d.]++(?:e[+-]?\d++)?+|nan|inf))\s*+\)"
    r"|(?P<opening>[(\[])"
    r"|(?P<closing>[)\]])"
    r"|[^\\()\[\]:B<]++|.",
    re.DOTALL,
)
_UNSUPPORTED = (
    ("prompt-schedule", r"\[[^\[\]]*:\s*+[\d.]++\s*+\]", "prompts cannot change while drawing"),
    ("prompt-alternation", r"\[[^\[\]|]*+\|[^\[\]]*+\]", "prompts cannot alternate"),
    ("prompt-and", r"\bAND\b", "prompts cannot be composed"),
)
_SPECIAL = re.compile(rf"[\\()\[\]]|\bBREAK\b|<(?={_ADAPTERS}:)")


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt with one weight; `starts_chunk` where a BREAK stands before it."""

    text: str
    weight: float = 1.0
    starts_chunk: bool = False


def parse(prompt: str) -> list[Segment]:
    """The segments of a prompt, in order; neighbours of equal weight are one.

    A prompt without brackets, backslashes, BREAK and `<lora:` is one segment: itself, with weight 1. Weights
    are rounded to 6 places. Raises InputError for a weight that is no number or beyond +-100, and for
    more than 100,000 characters.
    """
    check_length(prompt)
    segments: list[Segment] = []
    last_chunk = 0
    for (chunk, weight), pieces in groupby(_weigh(prompt), key=lambda piece: piece[:2]):
        text = "".join(piece for _, _, piece in pieces)
        segments.append(Segment(text, _checked(weight, text), starts_chunk=chunk > last_chunk))
        last_chunk = chunk
    return segments


def escape(text: str) -> str:
    """The prompt that `parse` reads as this very text, with weight 1."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def unsupported(prompt: str) -> list[str]:
    """Named warnings for the web UI's grammar that is plain text here, or left out: one a kind, with an example."""
    bare = re.sub(r"\\[\\()\[\]<]", "", prompt)
    found = ((name, re.search(pattern, bare), why) for name, pattern, why in _UNSUPPORTED)
    warnings = [f"{name}: {shorten(match[0])!r} is plain text; {why}" for name, match, why in found if match]
    if adapters := re.findall(rf"<{_ADAPTERS}:[^<>]*+>", bare):
        named = shorten(" ".join(dict.fromkeys(adapters)))
        warnings.append(f"prompt-lora: {named!r} is left out; pictures cannot be drawn with LoRA and its like yet")
    return warnings


def check_length(text: str) -> None:
    """Refuses a text that is too long to look at, before any work is done on it."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,}: shorten it")


def _weigh(prompt: str) -> Iterator[tuple[int, float, str]]:
    """Pieces of text in order, each with the number of BREAKs before it and its weight.

    What a bracket is worth is known only where it closes, so the text is first put into scopes, which
    a later number may still change; then each scope's factors are multiplied up, the outer one first.
    No recursion: "(" * 100_000 is a legal prompt.
    """
    outer, factor = [0], [1.0]  # scope 0 is the whole prompt
    inside = {"(": 0, "[": 0}  # the innermost open scope of each kind
    pieces: list[tuple[int, int, int, str]] = []  # chunk, round scope, square scope, text
    chunk = 0
    for symbol in _SYMBOL.finditer(prompt):
        kind, text = symbol.lastgroup, symbol[0]
        bracket = text if kind == "opening" else "[" if text == "]" else "("
        if kind == "opening":
            outer.append(inside[bracket])
            factor.append(STEP if bracket == "(" else 1 / STEP)
            inside[bracket] = len(factor) - 1
        elif kind in ("closing", "number") and inside[bracket]:
            if kind == "number":
                factor[inside[bracket]] = _number(symbol["number"])
            inside[bracket] = outer[inside[bracket]]
        else:
            chunk += kind == "pause"
            text = "" if kind in ("pause", "adapter") else symbol["escaped"] or text
            pieces.append((chunk, inside["("], inside["["], text))
    total = [1.0]
    for scope in range(1, len(factor)):
        total.append(total[outer[scope]] * factor[scope])
    for chunk, round_scope, square_scope, text in pieces:
        yield chunk, round(total[round_scope] * total[square_scope], 6), text


def _number(spelled: str) -> float:
    try:
        weight = float(spelled)
    except ValueError as error:
        raise InputError(f"the weight {shorten(spelled)!r} is not a number; write (word:1.3)") from error
    return _checked(weight, spelled)


def _checked(weight: float, text: str) -> float:
    if not abs(weight) <= MAX_WEIGHT:  # NaN compares false
        raise InputError(f"the weight {weight:g} at {shorten(text)!r} is beyond +-{MAX_WEIGHT:g}; use 0.5 to 1.5")
    return weight
