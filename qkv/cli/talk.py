"""`qkv chat` at a terminal: a conversation, line by line. Ctrl-C stops an answer, Ctrl-D or /exit ends the talk."""

import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qkv.cli.shared import Shared, values, warn
from qkv.errors import InputError, OutputError, QkvError

if TYPE_CHECKING:
    from qkv.loaded.language import Asked
    from qkv.loaded.where import Where
    from qkv.tasks.chat import Conversation
    from qkv.writing.options import Options

HELP = """/reset       forget what was said
/save FILE   write the conversation as a line of JSON
/model NAME  go on with another model
/help        these lines
/exit        end; so does Ctrl-D, and Ctrl-C stops an answer"""


def talk(shared: Shared, options: "Options", model: "Asked", where: "Where", system: str | None) -> None:
    """Until the user has enough."""
    from qkv.loaded.language import load_language
    from qkv.tasks.chat import Conversation

    with suppress(ImportError):  # some systems have none
        import readline  # noqa: F401  arrow keys and history for input()
    language = load_language(model, **vars(where), offline=shared.offline)
    conversation = Conversation(language, options, system=system)
    _note(f"{conversation.language.name}; /help says what else there is")
    while True:
        try:
            line = _asked(shared)
        except EOFError:
            _note("")
            return
        except KeyboardInterrupt:
            _note("")
            continue
        try:
            if line.strip() == "/exit":
                return
            if line.startswith("/"):
                conversation = _obey(shared, conversation, line.strip(), where, system)
            elif line.strip():
                _answer(shared, conversation, line)
        except QkvError as error:
            _note(f"qkv: error: {error}")


def _asked(shared: Shared) -> str:
    """A line of the user's. The sign before it goes to stdout only where a person reads that too."""
    if sys.stdout.isatty() and not shared.json:
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input("")


def _answer(shared: Shared, conversation: "Conversation", line: str) -> None:
    from qkv.writing.loop import Completion

    events = conversation.ask(line)
    try:
        for event in events:
            if isinstance(event, Completion):
                warn(event.warnings)
                if shared.json:
                    shared.say("", values(event, dataclasses.asdict(event.texts[0])))
            elif not shared.json:
                print(event.text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        events.close()  # what has come is remembered
    if not shared.json:
        print(flush=True)


def _obey(
    shared: Shared, conversation: "Conversation", line: str, where: "Where", system: str | None
) -> "Conversation":
    """Does what a line that begins with / says. Raises InputError, OutputError."""
    from qkv.loaded.language import load_language
    from qkv.tasks.chat import Conversation

    command, _, what = line.partition(" ")
    if command == "/help":
        _note(HELP)
    elif command == "/reset":
        conversation.reset()
        _note("forgotten")
    elif command == "/save" and what:
        _save(conversation, Path(what.strip()))
    elif command == "/model" and what:
        language = load_language(what.strip(), **vars(where), offline=shared.offline)
        other = Conversation(language, conversation.options, system=system)
        other.messages = conversation.messages
        _note(f"{other.language.name} goes on")
        return other
    else:
        raise InputError(f"there is no {line!r}; /help says what there is")
    return conversation


def _save(conversation: "Conversation", path: Path) -> None:
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    try:
        path.write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    _note(f"saved {len(messages)} messages in {path}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
