"""`qkv train`, `qkv data`, `qkv eval`: making models, and measuring them."""

from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import INTERRUPTED, Shared, verb
from qkv.errors import InputError, shorten


@verb
def train(
    shared: Shared,
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/NAME.toml.")],
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


@verb
def data_emblem(
    shared: Shared,
    notice: Annotated[bool, typer.Option("--notice", help="Only print licences and attributions.")] = False,
    latents: Annotated[
        Path | None, typer.Option(help="Pack what the data set trains emblem on into this file, to train elsewhere.")
    ] = None,
) -> None:
    """Build the emblem data set: emoji-like pictures with captions."""
    from qkv.data import emblem

    if notice:
        text = emblem.notice()
        shared.say(text.rstrip("\n"), {"notice": text})
        return
    if latents is not None:
        _pack(latents, progress=not shared.json)
        shared.say(str(latents), {"path": str(latents)})
        return
    path = str(emblem.build(progress=not shared.json))
    shared.say(path, {"path": path})


def _pack(path: Path, *, progress: bool) -> None:
    from qkv.registry import resolve
    from qkv.train.latents import pack
    from qkv.weights.diffusers import load_vae
    from qkv.weights.folder import Folder

    pack(load_vae(Folder(resolve("emblem"))).float(), path, progress=progress)


@verb
def eval_emblem(
    shared: Shared,
    model: Annotated[str, typer.Option(help="A name from `qkv models`, or a folder.")] = "emblem",
    folder: Annotated[Path | None, typer.Option(help="Where the drawings go.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first drawing.")] = 0,
    samples: Annotated[int, typer.Option(help="How many drawings of seen concepts.")] = 200,
) -> None:
    """Measure how well prompts are drawn, beside the real pictures' score and chance."""
    from qkv.device import threads
    from qkv.evaluate import emblem

    with threads(shared.threads):
        scores = emblem.run(model, folder=folder, seed=seed, samples=samples, progress=not shared.json)
    shared.say(emblem.table(scores), scores)
