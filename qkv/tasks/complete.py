"""From the beginning of a text to its continuation. Read this first: `prepare` is the whole way in a few lines.

    text ─ tokens ─ engine ─ tokens ─ text

What models are trained on: a text goes on. With examples before it (`shots`) it is a task shown and not explained; with
a `suffix`, the middle of a text (2207.14255); as `code`, it is read as code and ends with its block (source.py). For a
place in a file of code there is code.py.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.config import make_plain
from qkv.errors import InputError, quoted
from qkv.loaded.language import MAX_CHARACTERS, Asked, Language, adapted, check_text, load_language
from qkv.loaded.where import AUTO, Where
from qkv.sample.stops import Stops
from qkv.sample.tokens import whole
from qkv.writing.loop import Completion, Piece, alast, awrite, last, write
from qkv.writing.options import Options
from qkv.writing.settle import Cutter, Task, settle
from qkv.writing.shots import STOPS, Shot, after
from qkv.writing.source import cutters, read_code, reads_as

ROOM = 256  # tokens, if nobody says how many


@dataclass(frozen=True, kw_only=True)
class CompleteRequest:
    """A wish for what comes after `prompt`: a text, or token ids. Raises InputError.

    `suffix`: what comes after that again, for models that fill in the middle. `shots`: examples to show before.
    `echo`: the result begins with the prompt, and so do its tokens if log-probabilities are asked for; `max_tokens` may
    be 0 then. `heal`: the prompt's last token may be written anew, in one piece with what follows. `code`: the prompt
    is code, and so is what follows, until its block is over; None: if the prompt reads as code and nothing else asked
    speaks against it, with a warning.
    """

    prompt: str | Sequence[int]
    options: Options = field(default_factory=Options)
    suffix: str | None = None
    shots: Sequence[Shot] = ()
    echo: bool = False
    heal: bool = False
    code: bool | None = False

    def __post_init__(self) -> None:
        make_plain(self)
        is_text = isinstance(self.prompt, str)
        if is_text:
            check_text("prompt", self.prompt)
        elif not isinstance(self.prompt, list | tuple) or not 0 < len(self.prompt) <= MAX_CHARACTERS:
            raise InputError(f"prompt={quoted(self.prompt)} is neither a text nor a list of token ids")
        if self.suffix is not None:
            check_text("suffix", self.suffix)
        if self.heal or not self.echo:
            self.options.check_some()
        constrained = self.options.schema is not None or self.options.regex is not None
        odd = {
            "suffix": self.suffix is not None and (bool(self.shots) or self.echo or self.heal or not is_text),
            "shots": bool(self.shots) and (self.echo or not is_text),
            "heal": self.heal and constrained,
            "code": bool(self.code) and not self._may_be_code,
            "beams": (self.options.beams or 1) > 1 and (self.echo or self.heal),
        }
        if found := [name for name, given in odd.items() if given]:
            raise InputError(
                f"{found[0]} does not go with what else is asked (echo, heal, token ids, ...): ask for less"
            )

    @property
    def _may_be_code(self) -> bool:
        o = self.options
        plain = isinstance(self.prompt, str) and self.suffix is None and not self.shots
        judged = self.echo and o.logprobs is not None  # the prompt's tokens, and no others
        return plain and o.schema is None and o.regex is None and (o.beams or 1) == 1 and not judged

    @property
    def kind(self) -> str | None:
        """The language of a prompt that is to be read as code, "" for one that is not known; None: it is a text."""
        if self.code is False or not self._may_be_code:
            return None
        assert isinstance(self.prompt, str)
        found = reads_as(self.prompt)
        return found or "" if self.code else found


def complete(
    prompt: str | Sequence[int],
    *,
    suffix: str | None = None,
    shots: Sequence[Shot] = (),
    echo: bool = False,
    heal: bool = False,
    code: bool | None = None,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    offline: bool = False,
    **options: Any,
) -> Completion:
    """What comes after `prompt`, greedily unless the model or `options` (the fields of `Options`) say otherwise.

    `model`, with the adapter in the folder `lora`, and where it computes are as in `load_language`; `CompleteRequest`
    explains the rest. Raises InputError, NotFoundError, CheckpointError, ConfigError, MissingDependencyError.
    """
    asked = CompleteRequest(
        prompt=prompt, suffix=suffix, shots=shots, echo=echo, heal=heal, code=code, options=Options(**options)
    )
    where = Where(device=device, dtype=dtype, threads=threads, memory=memory)
    return last(completing(asked, adapted(model, lora), where, offline=offline))


def completing(
    request: CompleteRequest, model: Asked = None, where: Where = AUTO, *, offline: bool = False
) -> Iterator[Piece | Completion]:
    """The same as one loop: a `Piece` whenever there is more text, a `Completion` at the end.

    Everything is checked, and the model loaded, before this returns. Raises what `complete` does.
    """
    return write(prepare(request, load_language(model, **vars(where), offline=offline)))


async def acomplete(
    prompt: str | Sequence[int],
    *,
    suffix: str | None = None,
    shots: Sequence[Shot] = (),
    echo: bool = False,
    heal: bool = False,
    code: bool | None = None,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    offline: bool = False,
    **options: Any,
) -> Completion:
    """`complete` for a coroutine; cancelling it ends the writing within a token."""
    asked = CompleteRequest(
        prompt=prompt, suffix=suffix, shots=shots, echo=echo, heal=heal, code=code, options=Options(**options)
    )
    where = Where(device=device, dtype=dtype, threads=threads, memory=memory)
    return await alast(acompleting(asked, adapted(model, lora), where, offline=offline))


async def acompleting(
    request: CompleteRequest, model: Asked = None, where: Where = AUTO, *, offline: bool = False
) -> AsyncIterator[Piece | Completion]:
    """`completing` for a coroutine; the model is read and the prompt tokenised beside the event loop."""

    def begin() -> Task:
        return prepare(request, load_language(model, **vars(where), offline=offline))

    async for event in awrite(await asyncio.to_thread(begin)):
        yield event


def prepare(request: CompleteRequest, language: Language) -> Task:
    """What is to be done, settled for this model. Raises InputError."""
    prompt, options = request.prompt, request.options
    if request.suffix is not None:
        assert isinstance(prompt, str)
        return settle(
            language, in_the_middle(language, prompt, request.suffix), options, room=ROOM, ends=language.fim_ends
        )
    if request.kind is not None:
        assert isinstance(prompt, str)
        return _as_code(prompt, request, language)
    if isinstance(prompt, str):
        ids = language.read(after(request.shots, prompt))
    else:
        for token in (ids := list(prompt)):
            whole("prompt: token id", token, 0, language.vocab - 1)
        prompt = language.tokenizer.decode(ids, control=True) if request.echo else ""

    def stops() -> list[Cutter]:
        return [Stops(STOPS)] if request.shots else []

    return settle(
        language,
        ids,
        options,
        room=ROOM,
        heal=request.heal,
        prefix=prompt if request.echo else "",
        scored=request.echo and options.logprobs is not None,
        cutters=stops,
    )


def _as_code(prompt: str, request: CompleteRequest, language: Language) -> Task:
    ids, _ = read_code(language, prompt, request.kind)
    warning = f"code: read as {request.kind} and ended with its block; --no-code (code=False) reads it as a text"
    return settle(
        language,
        ids,
        request.options,
        room=ROOM,
        heal=True,
        prefix=prompt if request.echo else "",
        cutters=lambda: [*cutters(prompt)],
        warnings=[warning] if request.code is None else [],
    )


def in_the_middle(language: Language, before: str, behind: str) -> list[int]:
    """The tokens that ask for what stands between two texts (2207.14255, section 3: PSM). Raises InputError."""
    if language.fim is None:
        raise InputError(f"suffix: {language.name} has no tokens for filling in the middle; leave it away")
    first, second, middle = language.fim
    encode = language.tokenizer.encode
    start = [language.tokenizer.bos] if language.tokenizer.adds_bos and language.tokenizer.bos is not None else []
    return [*start, first, *encode(before), second, *encode(behind), middle]
