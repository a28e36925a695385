"""`qkv write`: a text that names its task, a file, or what is piped in; what the model makes of it on stdout."""

import sys
from typing import Annotated

import typer

from qkv.cli.shared import INTERRUPTED, MAX_PIPED, Shared, named_file, piped, verb
from qkv.textfiles import read_text


@verb
def write(
    shared: Shared,
    text: Annotated[str, typer.Argument(help="A text with its task; the name of a file; - for what is piped in.")],
    model: Annotated[str | None, typer.Option(help="A name from `qkv models`, a folder, or OWNER/NAME.")] = None,
    beams: Annotated[int | None, typer.Option(help="How many texts to search at once for the likeliest.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0: in favour of longer ones.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest text, in tokens.")] = None,
) -> None:
    """Write what a text asks for: translate, summarize, answer, with a model such as T5."""
    from qkv.device import threads
    from qkv.tasks import write as task

    file = None if text == "-" else named_file(text)
    given = piped() if text == "-" else text if file is None else read_text(file, limit=MAX_PIPED)
    try:
        with threads(shared.threads):
            written = task.write(
                given,
                model=model,
                beams=beams,
                length_penalty=length_penalty,
                max_tokens=max_tokens,
                device=shared.device or "auto",
                dtype=shared.dtype or "auto",
                offline=shared.offline,
            )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    for warning in written.warnings:
        print(f"qkv: warning: {warning}", file=sys.stderr)
    values = {"source": written.source, "text": written.text, "score": written.score, "tokens": written.tokens}
    shared.say(written.text, values | {"model": written.model, "warnings": list(written.warnings)})
