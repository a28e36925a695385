"""`qkv serve`: the models behind the APIs that people have clients for."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import Shared, verb
from qkv.errors import InputError, MissingDependencyError
from qkv.textfiles import read_text


@verb
def serve(
    shared: Shared,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    text: Annotated[str | None, typer.Option(help="The model for text where a client names none.")] = None,
    pictures: Annotated[str | None, typer.Option(help="The same for pictures.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="NAME=MODEL: clients may call MODEL by NAME.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Keys that clients must show, one a line; or QKV_KEY, one.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name of this server; * is any.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A page that may ask: https://SITE; * is any.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines of JSON.")] = False,
) -> None:
    """Serve the models: OpenAI's API and others, for the clients that you have."""
    try:
        from qkv.serve.run import serve as run
    except ImportError as error:
        raise MissingDependencyError.needs(error.name or "fastapi", "serve") from error
    from qkv.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        keys=_keys(key_file),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        models={kind: name for kind, name in (("text", text), ("pictures", pictures)) if name is not None},
        aliases=dict(map(_alias, alias or ())),
        where=shared.where,
        log_json=log_json,
    )
    _fetch(settings.models.get("text"), offline=shared.offline)
    run(settings, lambda address: print(f"serving at {address}", file=sys.stderr, flush=True))


def _keys(path: Path | None) -> tuple[str, ...]:
    lines = read_text(path).splitlines() if path is not None else [os.environ.get("QKV_KEY", "")]
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if path is not None and not found:
        raise InputError(f"{path} holds no key; write one a line")
    return found


def _alias(given: str) -> tuple[str, str]:
    name, _, model = given.partition("=")
    if not name or not model:
        raise InputError(f"--alias {given!r} is not NAME=MODEL")
    return name, model


def _fetch(model: str | None, *, offline: bool) -> None:
    """The default model for text comes here before the first request, not with it."""
    from qkv import registry
    from qkv.fetch.pull import find

    if model is None and not offline:
        find(registry.DEFAULTS["text"])
