"""`qkv translate`: a text, a file, or what is piped in, line by line on stdout."""

import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import typer

from qkv.cli.pictures import SHEET, Target, slug
from qkv.cli.shared import INTERRUPTED, Plain, Shared, named_file, verb
from qkv.errors import InputError
from qkv.textfiles import NotTextError, as_utf8

CHUNK = 1 << 20  # bytes that are read at once at most


if TYPE_CHECKING:
    from PIL.Image import Image


class Line(NamedTuple):
    """A line of a text, and what closes it: nothing, perhaps, at the end of a file."""

    text: str
    ending: str


@verb
def translate(
    shared: Shared,
    text: Annotated[str, typer.Argument(help="A text; the name of a file; - for what is piped in.")],
    to: Annotated[str | None, typer.Option(help="A language, such as de.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `qkv models`, or a folder.")] = None,
    beams: Annotated[int | None, typer.Option(help="How many translations to search at once.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0: in favour of longer ones.")] = None,
    show_attention: Annotated[
        bool, typer.Option("--show-attention", help="Also draw which word came from which.")
    ] = False,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Where that goes: a .png file, or a folder.")] = None,
) -> None:
    """Translate a text, a file or standard input, line by line."""
    from qkv.device import threads
    from qkv.tasks.translate import translating

    bursts = read(text)
    place = _place(out, text) if show_attention or out is not None else None
    if place is not None and not show_attention:
        raise InputError("-o is where --show-attention draws; add that")
    options: dict[str, Any] = {"to": to, "model": model, "beams": beams, "length_penalty": length_penalty}
    places: dict[str, Any] = {"device": shared.device or "auto", "dtype": shared.dtype or "auto"}
    options["offline"] = shared.offline
    try:
        with threads(shared.threads):
            for burst in bursts:
                lines = translating([line.text for line in burst], **options, **places)
                for line, (_, ending) in zip(lines, burst):
                    for warning in line.warnings:
                        print(f"qkv: warning: {warning}", file=sys.stderr)
                    score = None if math.isnan(line.score) else line.score
                    values: Plain = {"source": line.source, "text": line.text, "score": score, "model": line.model}
                    end = "\n" if sys.stdout.isatty() else ending
                    values["warnings"] = list(line.warnings)
                    if place is not None:
                        sheet = _draw(line.sentences, to=to, model=model, offline=shared.offline, **places)
                        file = place.named(f"{slug(text)}{SHEET}")
                        values["attention"] = str(place.write(file, partial(_save, sheet)))
                    shared.say(line.text, values, end=end)
                    if place is not None and not shared.json:
                        print(f"qkv: attention in {values['attention']}", file=sys.stderr)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def read(text: str) -> Iterator[list[Line]]:
    """The lines of a text, of the file of that name, or of stdin: those that are there by now, again and again, so that
    who writes slowly into a pipe is not waited for. Raises InputError."""
    if text == "-":
        return _bursts(sys.stdin.buffer, "the input")
    if path := named_file(text):
        return _file(path)
    if not text.strip():
        raise InputError("there is no text; say what to translate: qkv translate 'Good morning.'")
    return iter([[Line(line, "\n") for line in text.split("\n")]])


def _file(path: Path) -> Iterator[list[Line]]:
    try:
        with path.open("rb") as file:
            yield from _bursts(file, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _bursts(stream: BinaryIO, where: str) -> Iterator[list[Line]]:
    from qkv.tasks.translate import MAX_LINE

    rest, number = b"", 1  # of the line that `rest` begins
    for data in _utf8(stream, where):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > 4 * MAX_LINE:  # bytes: no text ends as late as that
            raise InputError(f"line {number + len(whole)} of {where} has more than {MAX_LINE} characters; break it up")
        if whole:
            yield [_decoded(line, "\n", i, where) for i, line in enumerate(whole, number)]
            number += len(whole)
    if rest:
        yield [_decoded(rest, "", number, where)]
    elif number == 1:
        raise InputError(f"there is no text in {where}; give one with something to translate")


def _utf8(stream: BinaryIO, where: str) -> Iterator[bytes]:
    try:
        yield from as_utf8(stream, CHUNK)
    except NotTextError as error:
        raise InputError(f"cannot read {where}: {error}") from error


def _decoded(line: bytes, ending: str, number: int, where: str) -> Line:
    from qkv.tasks.translate import MAX_LINE

    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no UTF-8 text: line {number}, byte {error.start}") from error
    if "\0" in text:
        raise InputError(f"{where} is no text: line {number} holds a zero byte")
    if len(text) > MAX_LINE:
        raise InputError(f"line {number} of {where} has more than {MAX_LINE} characters; break it up")
    return Line(text.removesuffix("\r"), "\r" + ending if text.endswith("\r") else ending)


def _place(out: str | None, text: str) -> Target:
    """Before any work. Raises InputError, OutputError."""
    if text == "-" or "\n" in text or named_file(text):
        raise InputError("--show-attention draws one line; give it as text")
    return Target(out)


def _draw(sentences: tuple[tuple[str, str], ...], **options: Any) -> "Image":
    from PIL.Image import new

    from qkv.loaded.translator import load_ready
    from qkv.pictures.alignment import align, draw_alignment

    ready = load_ready(**options)
    drawn = [draw_alignment(align(ready, *pair)) for pair in sentences]
    sheet = new("RGB", (max(each.width for each in drawn), sum(each.height for each in drawn)), "white")
    for i, each in enumerate(drawn):
        sheet.paste(each, (0, sum(other.height for other in drawn[:i])))
    return sheet


def _save(sheet: "Image", path: Path) -> None:
    from qkv.atomic import replacing

    with replacing(path) as file:
        sheet.save(file, format="PNG")


@verb
def eval_translation(
    shared: Shared,
    model: Annotated[str, typer.Argument(help="A name from `qkv models`, or a folder.")],
    data: Annotated[Path, typer.Argument(help="A folder of pairs: test.en beside test.de.")],
    part: Annotated[str, typer.Option(help="Of which files: test.en and test.de, for test.")] = "test",
    beams: Annotated[int | None, typer.Option(help="How many translations to search at once.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0: in favour of longer ones.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pairs.")] = None,
) -> None:
    """Measure a translator on held-out pairs: BLEU and chrF."""
    from qkv.device import threads
    from qkv.evaluate import translation

    with threads(shared.threads):
        scores = translation.run(model, data, part=part, beams=beams, length_penalty=length_penalty, limit=limit)
    shared.say(translation.table(scores), scores)
