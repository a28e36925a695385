"""`qkv translate`: a text, a file, or what is piped in, line by line on stdout."""

import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from qkv.cli.shared import INTERRUPTED, Shared, verb
from qkv.errors import InputError, OutputError


@verb
def translate(
    shared: Shared,
    text: Annotated[str, typer.Argument(help="A text; the name of a file; - for what is piped in.")],
    to: Annotated[str | None, typer.Option(help="A language, such as de.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `qkv models`, or a folder.")] = None,
    beams: Annotated[int | None, typer.Option(help="How many translations to search at once.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0: in favour of longer ones.")] = None,
    show_attention: Annotated[
        Path | None, typer.Option("--show-attention", help="Draw into this .png which word came from which.")
    ] = None,
) -> None:
    """Translate a text, a file or standard input, line by line."""
    from qkv.device import threads
    from qkv.tasks.translate import translating

    lines = read(text)
    if show_attention is not None:
        _check(show_attention, text)
    options = {"to": to, "model": model, "beams": beams, "length_penalty": length_penalty}
    places = {"device": shared.device or "auto", "dtype": shared.dtype or "auto"}
    try:
        with threads(shared.threads):
            for line in translating(lines, **options, **places):  # type: ignore[arg-type]
                for warning in line.warnings:
                    print(f"qkv: warning: {warning}", file=sys.stderr)
                score = None if math.isnan(line.score) else line.score
                values = {"source": line.source, "text": line.text, "score": score, "model": line.model}
                shared.say(line.text, values | {"warnings": list(line.warnings)})
                if show_attention is not None:
                    _draw(show_attention, line.sentences, to=to, model=model, **places)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def read(text: str) -> Iterator[str]:
    """The lines of a text, of the file of that name, or of stdin. Raises InputError."""
    if text == "-":
        return _decoded(sys.stdin.buffer, "the input")
    try:
        is_file = len(text) < 1000 and Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        is_file = False
    if not is_file:
        if not text.strip():
            raise InputError("there is no text; say what to translate: qkv translate 'Good morning.'")
        return iter(text.split("\n"))
    return _file(Path(text))


def _file(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            yield from _decoded(file, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _decoded(lines: Iterable[bytes], where: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is no UTF-8 text: line {number}, byte {error.start}") from error
        if "\0" in text:
            raise InputError(f"{where} is no text: line {number} holds a zero byte")
        yield text.rstrip("\r\n")


def _check(picture: Path, text: str) -> None:
    """Before any work. Raises InputError, OutputError."""
    if picture.suffix.lower() != ".png" or not picture.parent.is_dir():
        raise OutputError(f"cannot write {picture}: give a name that ends in .png, in a folder that is there")
    if text == "-" or "\n" in text or Path(text).is_file():
        raise InputError("--show-attention draws one line; give it as text")


def _draw(picture: Path, sentences: tuple[tuple[str, str], ...], **options: str | None) -> None:
    from PIL import Image

    from qkv.tasks.alignment import align, draw_alignment
    from qkv.tasks.translate import load_ready
    from qkv.weights.files import replacing

    model = options.pop("model")
    ready = load_ready(model, **options)  # type: ignore[arg-type]
    drawn = [draw_alignment(align(ready, *pair)) for pair in sentences]
    sheet = Image.new("RGB", (max(each.width for each in drawn), sum(each.height for each in drawn)), "white")
    for i, each in enumerate(drawn):
        sheet.paste(each, (0, sum(other.height for other in drawn[:i])))
    with replacing(picture) as file:
        sheet.save(file, format="PNG")


@verb
def data_help(
    shared: Shared,
    pair: Annotated[str, typer.Option(help="en-de, en-fr or en-zh-TW.")] = "en-de",
) -> None:
    """Build pairs of sentences out of LibreOffice's help in two languages, from Debian's packages."""
    from qkv.data.help_pages import build

    path = str(build(pair))
    shared.say(path, {"path": path})


@verb
def eval_translation(
    shared: Shared,
    model: Annotated[str, typer.Argument(help="A name from `qkv models`, or a folder.")],
    data: Annotated[Path, typer.Argument(help="A folder of pairs, such as `qkv data libreoffice-help` makes.")],
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
