"""`qkv draw` and `qkv upscale`: the verbs that make pictures, and where they are written."""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkv.cli.shared import Shared, verb, warn
from qkv.errors import InputError, NotFoundError, OutputError, shorten
from qkv.progress import Bar

if TYPE_CHECKING:
    from qkv.loaded.where import Where
    from qkv.pictures.picture import Picture, Settings
    from qkv.tasks.draw import Progress

SHEET = ".attention.png"  # the end of a heat map's name, which is its picture's otherwise


@verb
def draw(
    shared: Shared,
    prompt: Annotated[str | None, typer.Argument(help="What to draw; (word:1.3) weighs a word.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `qkv models`, or a folder.")] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the first picture; or one for each.", metavar="N")] = None,
    steps: Annotated[int | None, typer.Option(help="More are slower and finer.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 is off.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Such as ddim, euler, dpmpp_2m.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the final picture in pixels.", metavar="WxH")] = None,
    upscale: Annotated[
        str | None, typer.Option(help="Of what was drawn, where the model can.", metavar="on|off")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise in every step of ddim, 0 to 1.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to begin from.")] = None,
    mask: Annotated[Path | None, typer.Option(help="White where that picture is drawn anew.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of that picture may change, up to 1.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="A .png file, or a folder.")] = None,
    show_attention: Annotated[
        bool, typer.Option("--show-attention", help="Also save where each word was looked at.")
    ] = False,
    replay: Annotated[Path | None, typer.Option(help="Draw this picture again; other options change it.")] = None,
) -> None:
    """Draw pictures from a text, and print their files' names."""
    if prompt is None and replay is None:
        raise InputError("there is no prompt; say what to draw: qkv draw 'a dog in a suit'")
    target, switch = Target(out), None if upscale is None else _switch("upscale", upscale)
    from qkv.atomic import replacing
    from qkv.config import as_dict
    from qkv.pictures.initial import as_image
    from qkv.pictures.request import Request, written_in
    from qkv.tasks.draw import drawing

    there = {"image": image is not None, "mask": mask is not None}
    asked, before, lost = written_in(replay, **there) if replay else ({}, None, ())
    given = {
        "prompts": None if prompt is None else (prompt,),
        "negatives": None if negative is None else (negative,),
        "count": count,
        "seeds": tuple(seed) if seed else None,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "size": None if size is None else _size(size),
        "eta": eta,
        "upscale": switch,
        "image": as_image(image),
        "mask": as_image(mask),
        "strength": strength,
        "attention": show_attention,
    }
    if before and model is None:
        _find(before.model, replay)
    if before and size is None:
        asked |= _drawn_size(before, switch)
    request = Request(**asked | {name: value for name, value in given.items() if value is not None})
    events = drawing(request, model or (before.model if before else "emblem"), _where(shared, before))
    said: set[str] = set()
    for number, picture in enumerate(_shown(events)):
        warnings = [*lost, *picture.warnings]
        if before:
            warnings += changed(before, picture.settings, replay)
        for warning in dict.fromkeys(warnings):
            if warning not in said:
                print(f"qkv: warning: {warning}", file=sys.stderr)
        said.update(warnings)
        path = target.write(target.of(picture, number, request.pictures), picture.save)
        result = {"path": str(path)} | as_dict(picture.settings) | {"warnings": warnings}
        text = str(path)
        if picture.attention:
            sheet = path.with_suffix(SHEET)
            with replacing(sheet) as file:
                picture.attention.save(file, format="PNG")
            result["attention"] = str(sheet)
            text += f"\n{sheet}"
        shared.say(text, result | {"seconds": round(picture.seconds, 3)})


@verb
def upscale(
    shared: Shared,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="PNG, JPEG or WebP.")],
    model: Annotated[
        str | None, typer.Option(help="A file or folder of Real-ESRGAN's kind, or a model that has an upscaler.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="A .png file, or a folder.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a .pth file, by a reader that runs nothing in it.")
    ] = False,
) -> None:
    """Enlarge pictures, and print their files' names."""
    from qkv.config import as_dict
    from qkv.pictures.enlarge import Enlarged
    from qkv.tasks.upscale import upscaling

    target = Target(out)
    for number, picture in enumerate(pictures):
        with Bar("enlarging") as bar:
            for event in upscaling(
                picture, model=model, where=shared.where, offline=shared.offline, allow_pickle=allow_pickle
            ):
                if isinstance(event, Enlarged):
                    bar.update(event.done, total=event.total)
        assert not isinstance(event, Enlarged)
        warn(f"{picture}: {warning}" for warning in event.warnings)
        name = target.named(f"{picture.stem}-{event.upscale.scale}x.png", number, len(pictures))
        path = target.write(name, event.save)
        said = as_dict(event.upscale) | {"seconds": round(event.seconds, 3), "warnings": list(event.warnings)}
        shared.say(str(path), {"path": str(path), "picture": str(picture), "final": event.image.size} | said)


def _where(shared: Shared, before: "Settings | None") -> "Where":
    """What the options say, else what a picture that is drawn again says."""
    from qkv.loaded.where import Where

    if before is None:
        return shared.where
    threads = before.threads if shared.threads is None else shared.threads
    return Where(device=shared.device or before.device, dtype=shared.dtype or before.dtype, threads=threads)


def _drawn_size(before: "Settings", upscale: bool | None) -> dict[str, tuple[int, int]]:
    """The size for which a picture that is drawn again is drawn as large as it was, where `upscale` is changed."""
    if upscale is False:
        return {"size": before.drawn}
    if upscale and not before.upscale:
        raise InputError("the picture was drawn without an upscaler; with --upscale on, say its final --size, too")
    return {}


def _find(model: str, replay: Path | None) -> None:
    """NotFoundError if a model that only a picture names is not here: a stranger's picture makes nobody fetch one."""
    from qkv.fetch.pull import find

    try:
        find(model, offline=True)
    except NotFoundError as error:
        what = f"{replay} was drawn by the model {shorten(model)!r}, which is not here"
        raise NotFoundError(f"{what}; say where it is with --model") from error


def changed(before: "Settings", now: "Settings", replay: Path | None) -> list[str]:
    """Why the picture drawn again may differ, its options aside."""
    found = []
    for name in ("image", "mask"):
        if (was := getattr(before, name)) and was != getattr(now, name):
            found.append(f"{name}-changed: this is not the {name} that {replay} began from")
    if len(before.fingerprint) != len(now.fingerprint):  # older ones were not of all that a model's files hold
        found.append(f"model-unknown: {replay} does not say enough to tell whether {now.model} drew it")
    elif before.fingerprint != now.fingerprint:
        found.append(f"model-changed: {now.model} is not the model that drew {replay}")
    if before.versions != now.versions:
        was = " and ".join(map(" ".join, before.versions.items()))
        found.append(f"versions-changed: {replay} was drawn by {shorten(was)}; its last bits may differ")
    return found


class Target:
    """Where pictures are written: what `-o` says, else the current folder. Raises OutputError before any work."""

    def __init__(self, out: str | None) -> None:
        target = Path(out or ".")
        self.file = None if target.is_dir() or (out or "").endswith(os.sep) else target
        self.folder = target if self.file is None else target.parent
        if self.file and self.file.suffix.lower() != ".png":
            raise OutputError(f"cannot write {target}: give a name that ends in .png, or a folder that is there")
        if self.file is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {target}: {error.strerror or error}") from error
        if not self.folder.is_dir() or not os.access(self.folder, os.W_OK):
            reason = "it is not writable" if self.folder.is_dir() else "there is no such folder"
            raise OutputError(f"cannot write into the folder {self.folder}: {reason}; give another with -o")

    def write(self, path: Path, save: Callable[[Path], object]) -> Path:
        """Writes a file that `of` or `named` gave."""
        try:
            save(path)
        finally:
            if self.file is None:
                _mark(path).unlink(missing_ok=True)
        return path

    def of(self, picture: "Picture", number: int, pictures: int) -> Path:
        """The file for picture `number`. A name that we choose is nobody else's until `write` has written it."""
        return self.named(f"{slug(picture.prompt)}-{picture.seed}.png", number, pictures)

    def named(self, name: str, number: int = 0, results: int = 1) -> Path:
        """The file for result `number`, which we would call `name`."""
        if self.file is None:
            return _claim(self.folder / name)
        return self.file if results == 1 else self.file.with_stem(f"{self.file.stem}-{number + 1}")


def slug(text: str) -> str:
    """The words of `text` as a file's name, in any script, at most 50 characters."""
    return re.sub(r"[\W_]+", "-", text.lower())[:50].strip("-") or "picture"


def _claim(path: Path) -> Path:
    """A name that no file has, or the same with a number, marked as ours: others may look for one at this moment.

    A mark is made before its file and goes after it, so a name that has neither, and then has our mark and still no
    file, is ours. Raises OutputError.
    """
    for candidate in itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1))):
        mark = _mark(candidate)
        if _taken(candidate):
            continue
        try:
            mark.open("xb").close()
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"cannot write {candidate}: {error.strerror or error}") from error
        if not _taken(candidate):
            return candidate
        mark.unlink(missing_ok=True)  # whoever had marked it is done with it
    raise AssertionError("numbers do not end")


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _taken(path: Path) -> bool:
    return any(map(os.path.lexists, (path, path.with_suffix(SHEET))))


def _switch(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise InputError(f"{name}={shorten(text)!r} is not on or off")
    return text == "on"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip())
    if not match:
        raise InputError(f"size={shorten(text)!r} is not WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def _shown(events: "Iterator[Progress | Picture]") -> "Iterator[Picture]":
    """The pictures among `events`; a bar on stderr tells how far they are, if someone is looking."""
    from qkv.pictures.picture import Picture

    with Bar("drawing") as bar:
        for event in events:
            if isinstance(event, Picture):
                yield event
            else:
                done = event.picture * event.steps + event.step
                bar.update(done, total=event.pictures * event.steps)
