"""`qkv models`, `qkv pull`, `qkv export`: the models that are here, and how they come and go."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import Shared, verb


@verb
def models(shared: Shared, context: typer.Context) -> None:
    """List the models that are here."""
    if context.invoked_subcommand:
        return
    from qkv.registry import KNOWN, listing

    here = listing()
    for model in here:
        text = f"{model.name:20} {model.kind:10} {model.bytes / 1e6:8.1f} MB  {model.licence:12} {model.path}"
        shared.say(text, {**vars(model), "path": str(model.path)})
    if not shared.json and (missing := sorted(KNOWN.keys() - {model.name for model in here})):
        print(f"not here yet: {', '.join(missing)}; fetch one with: qkv pull NAME", file=sys.stderr)


@verb
def models_rm(shared: Shared, name: Annotated[str, typer.Argument(help="A name from `qkv models`.")]) -> None:
    """Remove one of your models; those that came with the package stay."""
    from qkv.registry import remove

    path = str(remove(name))
    shared.say(path, {"removed": path})


@verb
def pull(
    shared: Shared,
    model: Annotated[str, typer.Argument(help="smollm2, minilm ...; a folder or .gguf file; OWNER/NAME on the hub.")],
    name: Annotated[str | None, typer.Option(help="What to call a folder or file here.")] = None,
) -> None:
    """Fetch a model once, to have it here without a network, and print where it is."""
    from qkv.fetch.pull import pull

    path = str(pull(model, name=name, offline=shared.offline, progress=False if shared.json else None))
    shared.say(path, {"path": path})


@verb
def export(
    shared: Shared,
    model: Annotated[str, typer.Argument(help="A name from `qkv models`, or a folder.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a model in Hugging Face's layout, which diffusers opens."""
    from qkv.tasks.export import export

    path = str(export(model, folder, dtype=None if shared.dtype == "auto" else shared.dtype))
    shared.say(path, {"path": path})
