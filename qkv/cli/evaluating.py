"""`qkv eval few-shot`: what a prompt's examples teach."""

import re
from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import Shared, verb, warn
from qkv.cli.text import Model
from qkv.errors import InputError, shorten


@verb
def eval_few_shot(
    shared: Shared,
    data: Annotated[str, typer.Option(help='spam, or a file of JSON lines with "text" and "label".')] = "spam",
    shots: Annotated[str, typer.Option(help="How many examples to show, such as 0,1,4,16.")] = "0,1,4,16",
    draws: Annotated[int, typer.Option(help="How many choices of examples.")] = 5,
    items: Annotated[int, typer.Option(help="How many texts to measure on.")] = 200,
    seed: Annotated[int, typer.Option(help="Of items and examples.")] = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .png for the curve; its numbers go beside it as .json.")
    ] = Path("few-shot.png"),
    model: Model = None,
) -> None:
    """Measure what a model learns from examples in its prompt, beside chance and a word count."""
    from qkv.evaluate import few_shot
    from qkv.loaded.language import load_language

    language = load_language(model, **vars(shared.where), offline=shared.offline)
    warn(language.warnings)
    result = few_shot.run(
        language,
        output,
        data=data,
        shots=_numbers(shots),
        draws=draws,
        items=items,
        seed=seed,
        progress=not shared.json,
    )
    shared.say(few_shot.table(result), result)


def _numbers(given: str) -> list[int]:
    """ "0,1,4,16", or with blanks. InputError."""
    found = re.split(r"[,\s]+", given.strip(", "))
    if not all(re.fullmatch(r"\d{1,9}", number) for number in found):
        raise InputError(f"shots={shorten(given)!r} is no list of whole numbers, such as 0,1,4,16")
    return [int(number) for number in found]
