"""`qkv train`: making models."""

from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import INTERRUPTED, Shared, verb
from qkv.errors import InputError, shorten


@verb
def train(
    shared: Shared,
    recipe: Annotated[str, typer.Argument(help="Such as shakespeare-char, which comes along; or a .toml file.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="In place of its own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Begin with the last checkpoint of this run's folder, with other settings."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to; runs/NAME if not given.")] = None,
) -> None:
    """Train a model from a recipe."""
    from qkv.device import find_device, threads
    from qkv.train.recipes import run

    device = str(find_device(shared.device or "auto"))
    changes = [*(changes or []), *_precision(shared.dtype)]
    with threads(shared.threads):
        result = run(recipe, changes, folder=folder, device=device, resume=start or resume, progress=not shared.json)
    values = {"checkpoint": str(result.checkpoint), "steps": result.steps, "loss": result.loss, "ended": result.ended}
    shared.say(str(result.checkpoint), values)
    if result.ended == "signal":
        raise typer.Exit(INTERRUPTED)


def _precision(dtype: str | None) -> list[str]:
    """A recipe's own words for --dtype: its parameters stay float32, and "bf16" computes in bfloat16."""
    words = {"float32": "fp32", "bfloat16": "bf16"}
    if dtype in (None, "auto"):
        return []
    if dtype not in words:
        raise InputError(f"dtype={shorten(dtype)} cannot be trained in; use {' or '.join(words)}")
    return [f"fit.dtype={words[dtype]}"]
