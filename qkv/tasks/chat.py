"""From a question to an answer. Read this first: `prepare` is the whole way in a few lines.

    messages ─ template ─ tokens ─ engine ─ tokens ─ answer

What made GPT-3 a talker (InstructGPT, 2203.02155) is the training; here it is a template around the messages, which is
the checkpoint's own. What a message says is plain text: it can't end its turn or begin another's.
"""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.errors import InputError, quoted
from qkv.loaded.language import MAX_CHARACTERS, Asked, Language, adapted, check_text, load_language
from qkv.loaded.where import AUTO, Where
from qkv.text.chat import MAX_MESSAGES, Message
from qkv.writing.loop import Completion, Piece, alast, awrite, last, write
from qkv.writing.options import Options
from qkv.writing.settle import Task, settle

ROOM = 1024  # tokens of an answer, if nobody says how many
TALK_TEMPERATURE = 0.7  # of an interactive chat, if neither the user nor the checkpoint says otherwise

Spoken = str | Sequence[Message | Mapping[str, str]]  # a question, or a whole conversation


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A wish for an answer to the last of `messages`, the oldest first; with `continue_final` that is an assistant's,
    and its text is gone on with. Raises InputError."""

    messages: Sequence[Message]
    options: Options = field(default_factory=Options)
    temperature: float = 0.0  # if neither options nor the checkpoint say anything
    continue_final: bool = False

    def __post_init__(self) -> None:
        self.options.check_some()
        if not 1 <= len(self.messages) <= MAX_MESSAGES:
            raise InputError(f"messages: there are {len(self.messages):,}; give 1 to {MAX_MESSAGES:,}")
        for number, message in enumerate(self.messages):
            check_text(f"messages[{number}]: content", message.content)
        if sum(len(message.content) for message in self.messages) > MAX_CHARACTERS:
            raise InputError(f"messages have more than {MAX_CHARACTERS:,} characters together; shorten them")
        if self.continue_final and (self.messages[-1].role != "assistant" or not self.messages[-1].content.strip()):
            raise InputError("continue_final goes on with what an assistant said; let the last message be such")


def as_messages(spoken: Spoken, system: str | None = None) -> list[Message]:
    """A question, or messages as objects or mappings, as messages; `system` goes before them. Raises InputError."""
    if isinstance(spoken, str):
        if not spoken.strip():
            raise InputError("the prompt is empty; ask something")
        found = [Message("user", spoken)]
    elif isinstance(spoken, list | tuple) and len(spoken) <= MAX_MESSAGES:
        found = [_message(each, number) for number, each in enumerate(spoken)]
    else:
        raise InputError(f"messages={quoted(spoken)} is neither a question nor a list of at most {MAX_MESSAGES:,}")
    return found if system is None else [Message("system", system), *found]


def _message(given: object, number: int) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        raise InputError(f'messages[{number}]={quoted(given)} is not {{"role": ..., "content": ...}}')
    try:
        return Message(given["role"], given["content"])
    except InputError as error:
        raise InputError(f"messages[{number}]: {error}") from error


def chat(
    spoken: Spoken,
    *,
    system: str | None = None,
    continue_final: bool = False,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    offline: bool = False,
    **options: Any,
) -> Completion:
    """The answer to a question, or to the last of several messages (role and content, the oldest first); with
    `continue_final` what goes on from the last one, an assistant's.

    `model`, with the adapter in the folder `lora`, and where it computes are as in `load_language`. Greedy unless the
    model or `options` (the fields of `Options`) say otherwise. Raises InputError, NotFoundError, CheckpointError,
    ConfigError, MissingDependencyError.
    """
    request = ChatRequest(
        messages=as_messages(spoken, system), options=Options(**options), continue_final=continue_final
    )
    where = Where(device=device, dtype=dtype, threads=threads, memory=memory)
    return last(chatting(request, adapted(model, lora), where, offline=offline))


def chatting(
    request: ChatRequest, model: Asked = None, where: Where = AUTO, *, offline: bool = False
) -> Iterator[Piece | Completion]:
    """The same as one loop: a `Piece` whenever there is more text, a `Completion` at the end.

    Everything is checked, and the model loaded, before this returns. Raises what `chat` does.
    """
    return write(prepare(request, load_language(model, **vars(where), offline=offline)))


async def achat(
    spoken: Spoken,
    *,
    system: str | None = None,
    continue_final: bool = False,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    offline: bool = False,
    **options: Any,
) -> Completion:
    """`chat` for a coroutine; cancelling it ends the writing within a token."""
    request = ChatRequest(
        messages=as_messages(spoken, system), options=Options(**options), continue_final=continue_final
    )
    where = Where(device=device, dtype=dtype, threads=threads, memory=memory)
    return await alast(achatting(request, adapted(model, lora), where, offline=offline))


async def achatting(
    request: ChatRequest, model: Asked = None, where: Where = AUTO, *, offline: bool = False
) -> AsyncIterator[Piece | Completion]:
    """`chatting` for a coroutine; the model is read and the messages tokenised beside the event loop."""

    def begin() -> Task:
        return prepare(request, load_language(model, **vars(where), offline=offline))

    async for event in awrite(await asyncio.to_thread(begin)):
        yield event


def prepare(request: ChatRequest, language: Language, *, warnings: Sequence[str] = ()) -> Task:
    """What is to be done, settled for this model. Raises InputError."""
    begun = request.continue_final
    ids = language.template.encode(request.messages, language.tokenizer, continue_final=begun)
    return settle(
        language,
        ids,
        request.options,
        room=ROOM,
        temperature=request.temperature,
        warnings=warnings,
        continues=begun,
    )


class Conversation:
    """A chat that remembers; what no longer fits into the model's context is forgotten, the oldest turns first."""

    def __init__(self, language: Language, options: Options, *, system: str | None = None) -> None:
        self.language, self.options, self._system = language, options, system
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system's message."""
        self.messages = [] if self._system is None else [Message("system", self._system)]

    def ask(self, text: str) -> Generator[Piece | Completion]:
        """The answer, piece by piece. If the loop is left early, what had come by then is what was answered.

        Raises InputError, and the conversation stays as it was.
        """
        kept, forgotten = self._fitting([*self.messages, Message("user", text)])
        warnings = [f"forgotten: the oldest {forgotten} messages no longer fit into the context"] if forgotten else []
        request = ChatRequest(messages=kept, options=self.options, temperature=TALK_TEMPERATURE)
        events = write(prepare(request, self.language, warnings=warnings))
        return self._answered(kept, events)

    def _answered(self, messages: list[Message], events: Iterator[Piece | Completion]) -> Generator[Piece | Completion]:
        pieces: list[str] = []
        try:
            for event in events:
                if isinstance(event, Piece) and event.number == 0:
                    pieces.append(event.text)
                yield event
        finally:
            self.messages = [*messages, Message("assistant", "".join(pieces))]

    def _fitting(self, messages: list[Message]) -> tuple[list[Message], int]:
        """The messages that leave room for an answer, and how many were left out; never the system's or the last."""
        room = self.options.max_tokens or min(ROOM, self.language.context // 4)
        kept = as_messages(messages)
        first = 1 if self._system is not None else 0
        while len(kept) > first + 1 and self._length(kept) + room > self.language.context:
            del kept[first]
            while len(kept) > first + 1 and kept[first].role == "assistant":  # never an answer without its question
                del kept[first]
        return kept, len(messages) - len(kept)

    def _length(self, messages: Sequence[Message]) -> int:
        return len(self.language.template.encode(messages, self.language.tokenizer))
