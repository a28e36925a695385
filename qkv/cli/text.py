"""`qkv chat`, `qkv complete`: text as it comes on stdout, everything else on stderr."""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.shared import INTERRUPTED, Shared, piped, values, verb, warn
from qkv.errors import InputError, shorten
from qkv.textfiles import read_text
from qkv.writing.options import Options

if TYPE_CHECKING:
    from qkv.writing.loop import Completion, Piece

Lora = Annotated[Path | None, typer.Option(help="A folder with a LoRA adapter, to put into the model's weights.")]
Memory = Annotated[str | None, typer.Option(help="For keys and values, such as 2G; a share of what is free.")]
Model = Annotated[str | None, typer.Option(help="A name from `qkv models`, a folder, a .gguf file, or OWNER/NAME.")]

# The fields of `Options` that can be asked for at the command line, how it spells some, and what some are there.
HELP = {
    "max_tokens": "How many tokens to write at most.",
    "temperature": "0 takes the likeliest token; more is more varied.",
    "top_p": "Only the likeliest tokens with this much probability.",
    "top_k": "Only the K likeliest tokens.",
    "seed": "The same seed, the same text.",
    "stop": "End before this text; may be given several times.",
    "schema": "A file with a JSON schema; the text is JSON that fits it.",
    "regex": "The text matches this from end to end.",
    "n": "How many texts.",
    "best_of": "Write so many, keep the n likeliest.",
    "beams": "Above 1: search so many texts at once for the likeliest.",
    "logprobs": "With --json: the K likeliest tokens at each place; with --echo the prompt's too.",
}
_SPELLED = {"n": ("-n", "--n")}
_GIVEN: dict[str, Any] = {"stop": list[str] | None, "schema": Path | None}
MAX_SCHEMA = 1 << 20  # bytes of a file
CODE = (".py", ".js", ".rs", ".go", ".c", ".h")  # of writing/source.py


def writes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`run(shared, options, ...)` as a verb that takes these fields of `Options` behind its own options."""

    def wrap(run: Callable[..., None]) -> Callable[..., None]:
        shared, _, *own = inspect.signature(run).parameters.values()

        def call(shared: Shared, **values: Any) -> None:
            asked = {name: values.pop(name) for name in names}
            run(shared, _options(asked), **values)

        call.__name__, call.__doc__ = run.__name__, run.__doc__
        call.__signature__ = inspect.Signature([shared, *own, *map(_parameter, names)])  # type: ignore[attr-defined]
        return verb(call)

    return wrap


def _parameter(name: str) -> inspect.Parameter:
    """A field of `Options` as typer reads it."""
    field = _FIELDS[name]
    kind, default = _GIVEN.get(name, field.type), None if name in _GIVEN else field.default
    option = typer.Option(*_SPELLED.get(name, ()), help=HELP[name])
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, option]
    )


def _options(asked: dict[str, Any]) -> Options:
    stop, schema = asked.pop("stop"), asked.pop("schema")
    text = None if schema is None else read_text(schema, limit=MAX_SCHEMA)
    return Options(**asked, stop=tuple(stop or ()), schema=text)


_FIELDS = {field.name: field for field in dataclasses.fields(Options)}
_BOTH = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "schema", "regex")


@writes(*_BOTH)
def chat(
    shared: Shared,
    options: Options,
    prompt: Annotated[str | None, typer.Argument(help="A question; without one, and at a terminal, we talk.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before.")] = None,
    begin: Annotated[str | None, typer.Option(help="How the answer begins; the model goes on.")] = None,
    model: Model = None,
    lora: Lora = None,
    memory: Memory = None,
) -> None:
    """Answer a question, or talk: with a prompt or piped input once, else until /exit."""
    from qkv.loaded.language import adapted

    where = dataclasses.replace(shared.where, memory=memory)
    if prompt is None and begin is None and sys.stdin.isatty():
        from qkv.cli.talk import talk

        talk(shared, options, adapted(model, lora), where, system)
        return
    from qkv.tasks.chat import ChatRequest, as_messages, chatting
    from qkv.text.chat import Message

    messages = as_messages(_piped() if prompt is None else prompt, system)
    begun = [] if begin is None else [Message("assistant", begin)]
    request = ChatRequest(messages=[*messages, *begun], options=options, continue_final=bool(begun))
    _show(shared, chatting(request, adapted(model, lora), where, offline=shared.offline))


@writes(*_BOTH, "n", "best_of", "beams", "logprobs")
def complete(
    shared: Shared,
    options: Options,
    text: Annotated[str | None, typer.Argument(help="What to go on from, or a file with it.")] = None,
    at: Annotated[int | None, typer.Option(help="Complete the file's code at the end of this line.")] = None,
    suffix: Annotated[str | None, typer.Option(help="What comes after; the model writes what is between.")] = None,
    shots: Annotated[Path | None, typer.Option(help='Lines of {"input": ..., "output": ...} to show before.')] = None,
    model: Model = None,
    lora: Lora = None,
    memory: Memory = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before it.")] = False,
    heal: Annotated[bool, typer.Option("--heal", help="The prompt may end within a word.")] = False,
    code: Annotated[
        bool | None, typer.Option("--code/--no-code", help="The text is code; without either, if it reads as code.")
    ] = None,
) -> None:
    """Go on from a text, or complete code in a file."""
    from qkv.loaded.language import adapted

    where = dataclasses.replace(shared.where, memory=memory)
    if options.logprobs is not None and not shared.json:
        raise InputError("logprobs are printed as JSON only; add --json")
    asked = {"--suffix": suffix, "--shots": shots, "--echo": echo, "--heal": heal, "--code": code}
    other = [name for name, value in asked.items() if value not in (None, False)]
    if at is not None and (other or text is None):
        raise InputError(f"--at is a line of a file; it does not go with {' and '.join(other) or 'piped text'}")
    file = Path(text) if text is not None and at is not None else _file(text)
    if file is not None and (at is not None or (file.suffix in CODE and not other)):
        from qkv.tasks.code import completing_code, in_file

        request = in_file(file, at, options)
        _show(shared, completing_code(request, adapted(model, lora), where, offline=shared.offline))
        return
    from qkv.tasks.complete import CompleteRequest, completing
    from qkv.writing.shots import read_shots

    examples = read_shots(shots) if shots else ()
    given = read_text(file) if file else _piped() if text is None else text
    wish = CompleteRequest(
        prompt=given, options=options, suffix=suffix, shots=examples, echo=echo, heal=heal, code=code
    )
    _show(shared, completing(wish, adapted(model, lora), where, offline=shared.offline))


def _file(text: str | None) -> Path | None:
    """The file that an argument names, which is then read; None if it is a text. InputError if it can only be meant as
    a file and is none."""
    if text is None or len(text) > 1000 or not (suffix := Path(text).suffix):
        return None
    if os.path.isfile(text):
        print(f"qkv: going on from what is in the file {text}", file=sys.stderr)
        return Path(text)
    if suffix in CODE and not any(map(str.isspace, text)):
        raise InputError(f"there is no file {shorten(text)!r}; name one that is there, or pipe the text in")
    return None


def _piped() -> str:
    """The text on stdin, without the line end behind it."""
    if sys.stdin.isatty():
        raise InputError("there is no text; say what to go on from: qkv complete 'def factorial(n):'")
    return piped().removesuffix("\n").removesuffix("\r")


def _show(shared: Shared, events: "Iterator[Piece | Completion]") -> None:
    """One text as it comes, several one after the other at the end; Ctrl-C ends it, and what has come stays."""
    from qkv.writing.loop import Completion

    begun = False
    try:
        for event in events:
            if isinstance(event, Completion):
                warn(event.warnings)
                _finish(shared, event, begun)
            elif not shared.json and event.number == 0:
                begun = True
                print(event.text, end="", flush=True)
    except KeyboardInterrupt:
        if begun:
            print(flush=True)
        raise typer.Exit(INTERRUPTED) from None


def _finish(shared: Shared, completion: "Completion", begun: bool) -> None:
    if shared.json:
        for text in completion.texts:
            shared.say("", values(completion, dataclasses.asdict(text)))
        return
    if begun:
        print(flush=True)
    for text in completion.texts[1:] if begun else completion.texts:
        print(text.text, flush=True)
