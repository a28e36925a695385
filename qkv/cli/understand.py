"""`qkv fill`, `qkv embed`, `qkv search`, `qkv classify`: what texts and pictures mean.

Results on stdout, everything else on stderr.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.pictures import Target, slug
from qkv.cli.shared import Shared, named_file, piped, verb, warn
from qkv.cli.text import Model
from qkv.errors import InputError, shorten
from qkv.progress import Bar, track
from qkv.textfiles import lines as split
from qkv.textfiles import read_text

if TYPE_CHECKING:
    from qkv.index.passages import Skipped
    from qkv.tasks.classify import Classified
    from qkv.tasks.classify_text import Head
    from qkv.tasks.embed import Embedder, Vectors

CHUNK = 4096  # texts whose vectors are printed at once


@verb
def fill(
    shared: Shared,
    text: Annotated[str, typer.Argument(help="A text with [MASK], or -; for the default model a reaction in SMILES.")],
    top: Annotated[int, typer.Option("-k", "--top-k", help="How many guesses for each mask.")] = 5,
    model: Model = None,
) -> None:
    """Fill in what is masked."""
    from qkv.tasks.fill import fill as run

    text = piped().rstrip("\r\n") if text == "-" else text
    filled = run(text, top=top, model=model, threads=shared.threads, **_where(shared))
    warn(filled.warnings)
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
    from qkv.atomic import replacing
    from qkv.device import threads
    from qkv.tasks.embed import load_embedder

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
        lines = split(piped())
    elif len(texts) == 1 and (file := named_file(texts[0])):
        from qkv.index.passages import read_lines

        lines = read_lines(file)
    else:
        for text in texts:
            if os.path.splitext(text)[1] and not os.path.isdir(text) and named_file(text):
                raise InputError(f"{text} is a file among others; give it alone, or pipe them: cat FILES | qkv embed -")
        return texts
    found = [line for line in lines if line.strip()]
    if not found:
        name = "the input" if texts == ["-"] else shorten(texts[0])
        raise InputError(f"there is no text in {name}; give a file with a text on each line")
    if len(found) < len(lines):
        warn((f"{len(lines) - len(found)} of {len(lines)} lines are empty and have no vector",))
    return found


def _parts(embedder: "Embedder", texts: list[str]) -> "Iterator[tuple[list[str], Vectors]]":
    """Texts with their vectors, `CHUNK` at a time; warnings go to stderr."""
    for start in track(range(0, len(texts), CHUNK), "embedding", shown=len(texts) > CHUNK):
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
    query: Annotated[str, typer.Argument(help="What to look for, in your own words; or a picture's file.")],
    place: Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="Pictures; or text files, or JSON lines.")],
    top: Annotated[int, typer.Option("-k", "--top-k", help="How many.")] = 10,
    pictures: Annotated[
        bool | None, typer.Option("--pictures/--texts", help="What to look at; if not given, what there is more of.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .png for the pictures that were found.")
    ] = None,
    model: Model = None,
) -> None:
    """Find the passages of text files, or the pictures, that are nearest to what you ask."""
    if pictures is None:
        pictures = output is not None or _asks_for_pictures(query, place)
    if not pictures:
        if output is not None:
            raise InputError("-o is for pictures; leave it or --texts out")
        _search_texts(shared, query, place, top, model)
    else:
        _search_pictures(shared, query, place, top, model, output)


def _asks_for_pictures(query: str, place: Path) -> bool:
    from qkv.pictures.files import count_by_name, picture_named

    if picture_named(query):
        return True
    here, others = count_by_name(place)
    return here > others


def _search_texts(shared: Shared, query: str, place: Path, top: int, model: str | None) -> None:
    from qkv.tasks.search import Found, searching

    found = _last(searching(query, place, top=top, model=model, threads=shared.threads, **_where(shared)), "embedding")
    assert isinstance(found, Found)
    _tell(found.skipped, found.warnings)
    for hit in found.hits:
        text, at = hit.passage.text, hit.passage
        values = {"score": hit.score, "file": str(at.file), "line": at.line, "text": text}
        shared.say(f"{hit.score:6.3f}  {at.file}:{at.line}  {shorten(text, 200)}", values)


def _search_pictures(shared: Shared, query: str, place: Path, top: int, model: str | None, output: Path | None) -> None:
    from qkv.tasks.search_pictures import FoundPictures, save_sheet, searching_pictures

    target = Target(None if output is None else str(output))
    events = searching_pictures(query, place, top=top, model=model, threads=shared.threads, **_where(shared))
    found = _last(events, "looking")
    assert isinstance(found, FoundPictures)
    _tell(found.skipped, found.warnings)
    sheet = target.write(target.named(f"search-{slug(Path(query).stem)}.png"), partial(save_sheet, found.sheet()))
    counts = {"pictures": found.pictures, "computed": found.computed, "skipped": len(found.skipped)}
    shared.say(str(sheet), {"sheet": str(sheet), **counts})
    for hit in found.hits:
        shared.say(f"{hit.score:6.3f}  {hit.file}", {"score": hit.score, "file": str(hit.file)})


def _last(events: Iterable[Any], what: str) -> Any:
    """The last of the events; the others move a bar on stderr, if someone is looking."""
    event = None
    with Bar(what) as bar:
        for event in events:
            if hasattr(event, "done"):
                bar.update(event.done, total=event.total)
    return event


def _tell(skipped: "Iterable[Skipped]", warnings: Iterable[str]) -> None:
    for one in skipped:
        print(f"qkv: skipped {one.file}: {one.reason}", file=sys.stderr)
    warn(warnings)


class LabelsCommand(typer.core.TyperCommand):
    """A command whose `--labels` takes all words up to the next option, which click's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, taking = list[str](), False
        for number, word in enumerate(args):
            if word == "--":
                given += args[number:]
                break
            if word == "--labels":
                taking = True
            elif word.startswith("-") and word != "-":
                taking = False
                given.append(word)
            else:
                given += ["--labels", word] if taking else [word]
        return super().parse_args(ctx, given)


@verb
def classify(
    shared: Shared,
    what: Annotated[str, typer.Argument(metavar="PICTURE|TEXT|-", help="A picture's file; or a text, or its file.")],
    labels: Annotated[list[str] | None, typer.Option(metavar="TEXT...", help="Two or more, in your own words.")] = None,
    model: Model = None,
) -> None:
    """Say which of some labels fits a picture; or by a model that was trained for it, what a text or its words are."""
    if model and not labels:
        from qkv.fetch.pull import find
        from qkv.tasks.classify_text import trained_head

        if head := trained_head(find(model, offline=shared.offline)):
            _classify_text(shared, what, model, head)
            return
    from qkv.tasks.classify import classify as run

    _say_labels(shared, run(Path(what), labels or [], model=model, threads=shared.threads, **_where(shared)))


def _classify_text(shared: Shared, what: str, model: str, head: "Head") -> None:
    from qkv.tasks.classify_text import classify_text, tag_text

    file = None if what == "-" else named_file(what)
    text = piped() if what == "-" else read_text(file) if file else what
    where = {"model": model, "threads": shared.threads, **_where(shared)}
    if head == "classifier":
        _say_labels(shared, classify_text(text, **where))
        return
    found = tag_text(text, **where)
    warn(found.warnings)
    for one in found.words:
        values = {**dataclasses.asdict(one), "model": found.model}
        shared.say(f"{one.probability:6.3f}  {one.label:10}  {one.word}", values)


def _say_labels(shared: Shared, found: "Classified") -> None:
    warn(found.warnings)
    for one in found.labels:
        shared.say(f"{one.probability:6.3f}  {one.label}", {**dataclasses.asdict(one), "model": found.model})


def _where(shared: Shared) -> dict[str, Any]:
    return {"device": shared.device or "auto", "dtype": shared.dtype or "auto", "offline": shared.offline}
