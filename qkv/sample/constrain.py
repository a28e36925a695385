"""Constraints on the next token: a JSON schema, a regular expression, or the end of the prompt that was taken back.

Schemas and expressions are llguidance's (an extra, `structured`): at each step it says which tokens keep the text a
beginning of something valid. What it cannot honour is refused before anything is computed, and its work is bounded: by
the length of the text, the nodes of its automata, and its steps a token. Numbers and spaces are written as Python's
`json.dumps` does it, so that a small model can't lose itself in white space.

Token healing: a prompt such as `return ` ends within what the tokenizer would have made one token (` n`), and a model
has hardly ever seen it cut there. So the last tokens are taken back, and the new text has to begin with them.
"""

import bisect
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qkv.errors import InputError, MissingDependencyError, quoted, shorten
from qkv.sample.bounds import keep_bounds

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR = 1 << 15  # characters of a schema or an expression
_HEALED = 8  # tokens that are taken back at most
_LIMITS: dict[str, Any] = {  # llguidance's own are 5 to 25 times as large: seconds for one request
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
}
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Mask = npt.NDArray[np.bool_]


class TokenizerLike(Protocol):
    """The part of a tokenizer that constraints need."""

    vocab: int

    def is_control(self, id: int, /) -> bool: ...
    def token_bytes(self, id: int, /) -> bytes: ...
    def encode(self, text: str, /) -> list[int]: ...


class Lexicon:
    """A vocabulary as bytes; made once a model.

    `width` is the length of the logits, which may be padded; `ends` are the tokens that end a text.
    """

    def __init__(self, tokenizer: TokenizerLike, width: int, ends: Iterable[int]) -> None:
        self.width, self.ends = width, sorted(ends)
        self._tokenizer = tokenizer

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes that each token adds to the text; control tokens add none."""
        known = self._tokenizer
        return [b"" if known.is_control(i) else known.token_bytes(i) for i in range(known.vocab)]

    @cached_property
    def _sorted(self) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        order = sorted(range(len(self.tokens)), key=self.tokens.__getitem__)
        return [self.tokens[i] for i in order], np.array(order)

    def mask(self, ids: Iterable[int] | npt.NDArray[np.int64]) -> Mask:
        """(width,), true at `ids`."""
        found = np.zeros(self.width, dtype=bool)
        found[np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)] = True
        return found

    def begins(self, text: bytes) -> bool:
        """Whether a token begins with `text`, or is it."""
        spelled, _ = self._sorted
        place = bisect.bisect_left(spelled, text)
        return place < len(spelled) and spelled[place].startswith(text)

    def beginning(self, text: bytes) -> Mask:
        """(width,) of the tokens that begin with `text`."""
        spelled, ids = self._sorted
        first = last = bisect.bisect_left(spelled, text)
        while last < len(spelled) and spelled[last].startswith(text):
            last += 1
        return self.mask(ids[first:last])

    @cached_property
    def guide(self) -> "llguidance.LLTokenizer":
        """The vocabulary as llguidance wants it, built once. Raises MissingDependencyError, InputError."""
        if not self.ends:
            raise InputError("schema and regex need a token that ends a text; the model has none: name its eos_token")
        try:
            import llguidance
        except ImportError as error:
            raise MissingDependencyError.needs("llguidance", "structured") from error
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Spelled(self)), eos_token=self.ends)

    def encode(self, text: bytes) -> list[int]:
        """Tokens whose bytes are exactly `text`, as llguidance asks for where only one continuation is left."""
        ids = self._tokenizer.encode(text.decode("utf-8", errors="ignore"))
        if b"".join(self.tokens[i] for i in ids) == text:
            return ids
        return [self._byte[byte] for byte in text]  # some tokenizers put a space before every text

    @cached_property
    def _byte(self) -> dict[int, int]:
        return {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}


class _Spelled:
    """A Lexicon in the words of llguidance."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.eos_token_id, self.bos_token_id = lexicon.ends[0], None
        self.tokens = [token or b"\xff<%d>" % i for i, token in enumerate(lexicon.tokens)]  # \xff: a control token
        self.special_token_ids = [i for i, token in enumerate(lexicon.tokens) if not token]
        self._lexicon = lexicon

    def __call__(self, text: bytes) -> list[int]:
        return self._lexicon.encode(text)


class Grammar:
    """A schema or an expression, checked and compiled; `start()` gives each sequence its own Constraint."""

    def __init__(self, lexicon: Lexicon, kind: str, matcher: "llguidance.LLMatcher") -> None:
        self._lexicon, self._kind, self._matcher = lexicon, kind, matcher

    def start(self) -> "_Follower":
        return _Follower(self._lexicon, self._kind, self._matcher.deep_copy())


def from_schema(lexicon: Lexicon, schema: Mapping[str, Any] | str) -> Grammar:
    """The texts that are JSON and fit a JSON schema. Raises InputError, MissingDependencyError."""
    text = _schema_text(schema)
    _check_length("schema", text)
    guide = lexicon.guide
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_SPACING)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"schema: {shorten(str(error), 300)}") from error
    return _compile(lexicon, guide, "schema", grammar)


def _schema_text(schema: object) -> str:
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(keep_bounds(schema), allow_nan=False)
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"schema: it is not JSON: {shorten(str(error), 200)}") from error
    if not isinstance(schema, Mapping):
        raise InputError(f"schema={quoted(schema)} is not a JSON object")
    return text


def from_regex(lexicon: Lexicon, pattern: str) -> Grammar:
    """The texts that `pattern` matches from end to end. Raises InputError, MissingDependencyError."""
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"regex={quoted(pattern)} is not a regular expression")
    _check_length("regex", pattern)
    guide = lexicon.guide
    from llguidance import LLMatcher

    return _compile(lexicon, guide, "regex", LLMatcher.grammar_from_regex(pattern))


def _check_length(kind: str, text: str) -> None:
    if len(text) > MAX_GRAMMAR:
        raise InputError(f"{kind} has {len(text):,} characters; at most {MAX_GRAMMAR:,} are compiled")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{kind} is no Unicode text: half a surrogate pair at character {error.start}") from error


def _compile(lexicon: Lexicon, guide: "llguidance.LLTokenizer", kind: str, grammar: str) -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(guide, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False, **_LIMITS))
    matcher.compute_bitmask()  # whether there is a first token at all is known then only
    warnings = "; ".join(matcher.get_grammar_warnings())
    if reason := _reason(matcher) or warnings:
        raise InputError(f"{kind} cannot be honoured: {shorten(reason, 300)}")
    return Grammar(lexicon, kind, matcher)


def _reason(matcher: "llguidance.LLMatcher") -> str:
    """Why the matcher gave up; empty if it did not."""
    reason = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return "no text fits it" if reason == "NoExtensionBias" else reason


class _Follower:
    """Where one sequence is in a grammar."""

    def __init__(self, lexicon: Lexicon, kind: str, matcher: "llguidance.LLMatcher") -> None:
        self._lexicon, self._kind, self._matcher = lexicon, kind, matcher

    def allowed(self) -> Mask:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        found = np.unpackbits(bits, bitorder="little")[: self._lexicon.width].view(np.bool_)
        return np.pad(found, (0, self._lexicon.width - len(found)))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if reason := _reason(self._matcher):
            raise InputError(f"{self._kind} cannot be followed any further: {shorten(reason, 200)}")


class Healing:
    """The prompt's last tokens `taken` are written anew: as one token that begins with all of them, or as they were.

    Pieces of them are not offered: `)` before `::` is likely enough where `):` has been taken back, but no tokenizer
    cuts `):` so, and what a model writes after that is not what it has learnt.
    """

    def __init__(self, lexicon: Lexicon, taken: Sequence[int]) -> None:
        self._lexicon, self._left = lexicon, list(taken)

    def allowed(self) -> Mask | None:
        if not self._left:
            return None
        found = self._lexicon.beginning(b"".join(self._lexicon.tokens[token] for token in self._left))
        found[self._left[0]] = True
        return found

    def accept(self, token: int) -> None:
        self._left = self._left[1:] if self._left and token == self._left[0] else []


def take_back(lexicon: Lexicon, ids: Sequence[int]) -> tuple[list[int], bytes]:
    """A prompt without its last tokens, and their bytes: as many tokens as might have been a single one.

    `retu` may be the tokens ` ret` and `u`, which nobody has ever seen before `rn`. None are taken back if that would
    leave nothing, or cut a character.
    """
    for count in range(min(_HEALED, len(ids) - 1), 0, -1):
        taken = [lexicon.tokens[token] for token in ids[-count:]]
        text = b"".join(taken)
        if all(taken) and lexicon.begins(text) and _is_text(text):
            return list(ids[:-count]), text
    return list(ids), b""


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
