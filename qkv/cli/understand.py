"""`qkv fill`, `qkv embed`, `qkv search`: what a text means. Results on stdout, everything else on stderr."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.shared import Shared, verb
from qkv.cli.text import Model, warn
from qkv.errors import InputError, shorten

if TYPE_CHECKING:
    from qkv.tasks.embed import Embedder, Vectors

CHUNK = 4096  # texts whose vectors are printed at once


@verb
def fill(
    shared: Shared,
    text: Annotated[str, typer.Argument(help="A text with [MASK] in it; for the default model a reaction in SMILES.")],
    top: Annotated[int, typer.Option("-k", "--top-k", help="How many guesses for each mask.")] = 5,
    model: Model = None,
) -> None:
    """Fill in what is masked."""
    from qkv.tasks.fill import fill as run

    filled = run(text, top=top, model=model, threads=shared.threads, **_where(shared))
    for number, guesses in enumerate(filled.masks, 1):
        if len(filled.masks) > 1 and not shared.json:
            print(f"mask {number}:")
        for guess in guesses:
            values = {"mask": number, **dataclasses.asdict(guess), "model": filled.model}
            shared.say(f"{guess.probability:6.3f}  {guess.token:10}  {guess.text}", values)
    if len(filled.masks) > 1 and not shared.json:
        print(filled.text)


@verb
def embed(
    shared: Shared,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...|FILE|-", help="Texts, or a file with one a line.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .npy or .jsonl file.")] = None,
    model: Model = None,
) -> None:
    """Turn texts into vectors: JSON lines, or an array."""
    if output is not None and output.suffix not in (".npy", ".jsonl"):
        raise InputError(f"cannot write {shorten(str(output))!r}; end the name in .npy or .jsonl")
    given = _given(texts)
    from qkv.device import threads
    from qkv.tasks.embed import load_embedder
    from qkv.weights.files import replacing

    embedder = load_embedder(model, **_where(shared))
    with threads(shared.threads):
        parts = _parts(embedder, given)
        if output is None:
            for some, vectors in parts:
                for line in _lines(some, vectors):
                    print(line)
            return
        with replacing(output) as file:
            if output.suffix == ".npy":
                import numpy as np

                np.save(file, np.concatenate([vectors for _, vectors in parts]))
            else:
                for some, vectors in parts:
                    file.writelines(f"{line}\n".encode() for line in _lines(some, vectors))
    shared.say(str(output), {"output": str(output), "texts": len(given), "dim": embedder.dim})


def _given(texts: list[str]) -> list[str]:
    """The arguments, or the lines of the file that is the only one. InputError."""
    if texts == ["-"]:
        found = [line for line in _piped().split("\n") if line.strip()]
    elif len(texts) == 1 and Path(texts[0]).is_file():
        from qkv.tasks.passages import read_lines

        found = read_lines(Path(texts[0]))
    else:
        return texts
    if not found:
        raise InputError("there is no text in it; give a file with a text on each line")
    return found


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the input is no UTF-8 text: byte {error.start}") from error


def _parts(embedder: "Embedder", texts: list[str]) -> "Iterator[tuple[list[str], Vectors]]":
    """Texts with their vectors, `CHUNK` at a time; warnings go to stderr."""
    for start in _bar(range(0, len(texts), CHUNK), "embedding"):
        some = texts[start : start + CHUNK]
        made = embedder.embed(some)
        warn(made.warnings)
        yield some, made.vectors


def _lines(texts: list[str], vectors: "Vectors") -> Iterator[str]:
    for text, vector in zip(texts, vectors):
        yield json.dumps({"text": text, "embedding": [float(f"{number:.8g}") for number in vector]})


@verb
def search(
    shared: Shared,
    query: Annotated[str, typer.Argument(help="What to look for, in your own words.")],
    place: Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="Text files, or JSON lines with a text.")],
    top: Annotated[int, typer.Option("-k", "--top-k", help="How many passages.")] = 10,
    model: Model = None,
) -> None:
    """Find the passages of text files that mean what you ask."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from qkv.tasks.search import Found, searching

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("embedding", total=None)
        for event in searching(query, place, top=top, model=model, threads=shared.threads, **_where(shared)):
            if isinstance(event, Found):
                found = event
            else:
                bar.update(task, completed=event.done, total=event.total)
    for skipped in found.skipped:
        print(f"qkv: skipped {skipped.file}: {skipped.reason}", file=sys.stderr)
    warn(found.warnings)
    for hit in found.hits:
        text, at = hit.passage.text, hit.passage
        values = {"score": hit.score, "file": str(at.file), "line": at.line, "text": text}
        shared.say(f"{hit.score:6.3f}  {at.file}:{at.line}  {shorten(text, 200)}", values)


def _where(shared: Shared) -> dict[str, Any]:
    return {"device": shared.device or "auto", "dtype": shared.dtype or "auto", "offline": shared.offline}


def _bar(steps: Sequence[int], what: str) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    hidden = len(steps) < 2 or not sys.stderr.isatty()
    return track(steps, what, console=Console(stderr=True), disable=hidden)
