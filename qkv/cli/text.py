"""`qkv chat`, `qkv complete`: text as it comes on stdout, everything else on stderr."""

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.shared import INTERRUPTED, Plain, Shared, piped, verb
from qkv.errors import InputError, shorten
from qkv.textfiles import read_text

if TYPE_CHECKING:
    from qkv.writing.loop import Completion, Piece
    from qkv.writing.options import Options

Model = Annotated[str | None, typer.Option(help="A name from `qkv models`, a folder, a .gguf file, or OWNER/NAME.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="How many tokens to write at most.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token; more is more varied.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Only the likeliest tokens with this much probability.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Only the K likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="The same seed, the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
Schema = Annotated[Path | None, typer.Option(help="A file with a JSON schema; the text is JSON that fits it.")]
Regex = Annotated[str | None, typer.Option(help="The text matches this from end to end.")]


MAX_SCHEMA = 1 << 20  # bytes of a file
CODE = (".py", ".js", ".rs", ".go", ".c", ".h")  # of writing/source.py


@verb
def chat(
    shared: Shared,
    prompt: Annotated[str | None, typer.Argument(help="A question; without one, and at a terminal, we talk.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before.")] = None,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    schema: Schema = None,
    regex: Regex = None,
) -> None:
    """Answer a question, or talk: with a prompt or piped input once, else until /exit."""
    options = _options(
        shared, model, max_tokens, temperature, top_p, top_k, seed, stop, schema=_schema(schema), regex=regex
    )
    if prompt is None and sys.stdin.isatty():
        from qkv.cli.talk import talk

        talk(shared, options, system)
        return
    from qkv.tasks.chat import ChatRequest, as_messages, chatting

    messages = as_messages(_piped() if prompt is None else prompt, system)
    _show(shared, chatting(ChatRequest(messages=messages, options=options)))


@verb
def complete(
    shared: Shared,
    text: Annotated[str | None, typer.Argument(help="What to go on from, or a file with it.")] = None,
    at: Annotated[int | None, typer.Option(help="Complete the file's code at the end of this line.")] = None,
    suffix: Annotated[str | None, typer.Option(help="What comes after; the model writes what is between.")] = None,
    shots: Annotated[Path | None, typer.Option(help='Lines of {"input": ..., "output": ...} to show before.')] = None,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    schema: Schema = None,
    regex: Regex = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many texts.")] = 1,
    best_of: Annotated[int | None, typer.Option("--best-of", help="Write so many, keep the n likeliest.")] = None,
    beams: Annotated[int | None, typer.Option(help="Above 1: search so many texts at once for the likeliest.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before it.")] = False,
    heal: Annotated[bool, typer.Option("--heal", help="The prompt may end within a word.")] = False,
    code: Annotated[
        bool | None, typer.Option("--code/--no-code", help="The text is code; without either, if it reads as code.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: the K likeliest tokens at each place; with --echo the prompt's too."),
    ] = None,
) -> None:
    """Go on from a text, or complete code in a file."""
    more = {"schema": _schema(schema), "regex": regex, "n": n, "best_of": best_of, "beams": beams, "logprobs": logprobs}
    options = _options(shared, model, max_tokens, temperature, top_p, top_k, seed, stop, **more)
    if logprobs is not None and not shared.json:
        raise InputError("logprobs are printed as JSON only; add --json")
    asked = {"--suffix": suffix, "--shots": shots, "--echo": echo, "--heal": heal, "--code": code}
    other = [name for name, value in asked.items() if value not in (None, False)]
    if at is not None and (other or text is None):
        raise InputError(f"--at is a line of a file; it does not go with {' and '.join(other) or 'piped text'}")
    file = Path(text) if text is not None and at is not None else _file(text)
    if file is not None and (at is not None or (file.suffix in CODE and not other)):
        from qkv.tasks.code import completing_code, in_file

        _show(shared, completing_code(in_file(file, at, options)))
        return
    from qkv.tasks.complete import CompleteRequest, completing
    from qkv.writing.shots import read_shots

    request = CompleteRequest(
        prompt=read_text(file) if file else _piped() if text is None else text,
        options=options,
        suffix=suffix,
        shots=read_shots(shots) if shots else (),
        echo=echo,
        heal=heal,
        code=code,
    )
    _show(shared, completing(request))


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


def _options(
    shared: Shared,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: list[str] | None,
    **more: Any,
) -> "Options":
    from qkv.writing.options import Options

    return Options(
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop or ()),
        device=shared.device or "auto",
        dtype=shared.dtype or "auto",
        threads=shared.threads,
        offline=shared.offline,
        **more,
    )


def _piped() -> str:
    """What comes in on stdin, without the line end behind it."""
    if sys.stdin.isatty():
        raise InputError("there is no text; say what to go on from: qkv complete 'def factorial(n):'")
    return piped().removesuffix("\n").removesuffix("\r")


def _schema(path: Path | None) -> str | None:
    return None if path is None else read_text(path, limit=MAX_SCHEMA)


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


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"qkv: warning: {warning}", file=sys.stderr)


def values(completion: "Completion", text: Plain) -> Plain:
    """A text and how it was written, for programs."""
    read, written = completion.usage
    return text | {
        "model": completion.model,
        "sampling": dataclasses.asdict(completion.sampling),
        "max_tokens": completion.max_tokens,
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        "warnings": list(completion.warnings),
        "seconds": round(completion.seconds, 3),
    }
