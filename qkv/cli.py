"""`qkv`: a verb, what it is about, and options. Results go to stdout, everything else to stderr.

A `QkvError` is one line and exit code 2, Ctrl-C is exit code 130. Torch and the rest of the package are imported by
the verb that needs them, so that `qkv --help` answers at once. Left out: a configuration file of the command line's
own, and shell completion.
"""

import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qkv.errors import InputError, OutputError, QkvError, shorten

if TYPE_CHECKING:
    from qkv.tasks.draw import Progress
    from qkv.tasks.picture import Picture

Plain = dict[str, Any]  # values that JSON knows

app = typer.Typer(
    help="From a prompt to a picture, with models that run on your own machine.",
    epilog="Start with: qkv draw 'a dog in a suit'",
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
models_app = typer.Typer(rich_markup_mode=None)
data_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
eval_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(models_app, name="models", help="List the models that are here, or remove one.")
app.add_typer(data_app, name="data", help="Build the data sets that models are trained on.")
app.add_typer(eval_app, name="eval", help="Measure how good a model is.")


@dataclass(frozen=True)
class Shared:
    """The options of every verb."""

    device: Annotated[str | None, typer.Option(help="auto (if not given), cpu or cuda.")] = None
    dtype: Annotated[str | None, typer.Option(help="auto (if not given), float32, bfloat16, float16.")] = None
    threads: Annotated[int | None, typer.Option(help="How many processor threads to compute on.")] = None
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print results as JSON, an object a line.")] = False

    def say(self, text: str, values: Plain) -> None:
        """Prints a result: `text` for people, `values` for programs."""
        print(json.dumps(values) if self.json else text, flush=True)


def verb(run: Callable[..., None]) -> Callable[..., None]:
    """`run(shared, ...)` as a function with `Shared`'s options behind its own, which is what typer reads."""
    own = list(inspect.signature(run).parameters.values())[1:]
    shared = list(inspect.signature(Shared).parameters.values())

    def call(**values: Any) -> None:
        options = Shared(**{option.name: values.pop(option.name) for option in shared})
        if options.offline:
            os.environ |= {"HF_HUB_OFFLINE": "1", "NPM_CONFIG_OFFLINE": "true"}
        run(options, **values)

    call.__name__, call.__doc__ = run.__name__, run.__doc__
    call.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    call.__annotations__ = {option.name: option.annotation for option in (*own, *shared)}
    return call


def _version(wanted: bool) -> None:
    if wanted:
        from qkv import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = (
        False
    ),
) -> None:
    pass


@app.command()
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
    size: Annotated[str | None, typer.Option(help="In pixels, such as 512x512.", metavar="WxH")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise in every step of ddim, 0 to 1.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="A .png file, or a folder.")] = None,
    show_attention: Annotated[
        bool, typer.Option("--show-attention", help="Also save where each word was looked at.")
    ] = False,
    replay: Annotated[Path | None, typer.Option(help="Draw this picture again; other options change it.")] = None,
) -> None:
    """Draw pictures from a text, and print their files' names."""
    if prompt is None and replay is None:
        raise InputError("there is no prompt; say what to draw: qkv draw 'a dog in a suit'")
    place = Place(out)
    from qkv.config import as_dict
    from qkv.device import threads
    from qkv.tasks.draw import drawing
    from qkv.tasks.request import Request, written_in
    from qkv.weights.files import replacing

    asked, before = written_in(replay) if replay else ({}, None)
    given = {
        "prompts": None if prompt is None else (prompt,),
        "negatives": None if negative is None else (negative,),
        "model": model,
        "count": count,
        "seeds": tuple(seed) if seed else None,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "size": None if size is None else _size(size),
        "eta": eta,
        "device": shared.device,
        "dtype": shared.dtype,
        "attention": show_attention,
    }
    request = Request(**asked | {name: value for name, value in given.items() if value is not None})
    said: set[str] = set()
    with threads(before.threads if before and shared.threads is None else shared.threads):
        for number, picture in enumerate(_shown(drawing(request))):
            warnings = list(picture.warnings)
            if before and before.fingerprint != picture.settings.fingerprint:
                warnings.append(f"model-changed: {picture.settings.model} is not the model that drew {replay}")
            for warning in dict.fromkeys(warnings):
                if warning not in said:
                    print(f"qkv: warning: {warning}", file=sys.stderr)
            said.update(warnings)
            path = picture.save(place.of(picture, number, request.pictures))
            result = {"path": str(path)} | as_dict(picture.settings) | {"warnings": warnings}
            text = str(path)
            if picture.attention:
                sheet = path.with_suffix(".attention.png")
                with replacing(sheet) as file:
                    picture.attention.save(file, format="PNG")
                result["attention"] = str(sheet)
                text += f"\n{sheet}"
            shared.say(text, result | {"seconds": round(picture.seconds, 3)})


class Place:
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
        if not os.access(self.folder, os.W_OK):
            raise OutputError(f"cannot write into the folder {self.folder}: it is not there or not writable")

    def of(self, picture: "Picture", number: int, pictures: int) -> Path:
        """The file for picture `number`. A name that we choose is never one that is taken."""
        if self.file is None:
            return _free(self.folder / f"{slug(picture.prompt)}-{picture.seed}.png")
        return self.file if pictures == 1 else self.file.with_stem(f"{self.file.stem}-{number + 1}")


def slug(text: str) -> str:
    """The words of `text` as a file's name, in any script, at most 50 characters."""
    return re.sub(r"[\W_]+", "-", text.lower())[:50].strip("-") or "picture"


def _free(path: Path) -> Path:
    candidates = itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1)))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip())
    if not match:
        raise InputError(f"size={shorten(text)!r} is not WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def _shown(events: "Iterator[Progress | Picture]") -> "Iterator[Picture]":
    """The pictures among `events`; a bar on stderr tells how far they are, if someone is looking."""
    from qkv.tasks.picture import Picture

    if not sys.stderr.isatty():
        yield from (event for event in events if isinstance(event, Picture))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        steps = bar.add_task("", total=None)
        for event in events:
            if isinstance(event, Picture):
                yield event
            else:
                done = event.picture * event.steps + event.step
                bar.update(steps, total=event.pictures * event.steps, completed=done)


@models_app.callback(invoke_without_command=True)
@verb
def models(shared: Shared, context: typer.Context) -> None:
    """List the models that are here."""
    if context.invoked_subcommand:
        return
    from qkv.registry import listing

    for model in listing():
        text = f"{model.name:20} {model.bytes / 1e6:8.1f} MB  {model.licence:12} {model.path}"
        shared.say(text, {**vars(model), "path": str(model.path)})


@models_app.command("rm")
@verb
def models_rm(shared: Shared, name: Annotated[str, typer.Argument(help="A name from `qkv models`.")]) -> None:
    """Remove one of your models; those that came with the package stay."""
    from qkv.registry import remove

    path = str(remove(name))
    shared.say(path, {"removed": path})


@app.command()
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


@app.command()
@verb
def train(
    shared: Shared,
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/NAME.toml.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="In place of its own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where to; runs/NAME if not given.")] = None,
) -> None:
    """Train a model from a recipe."""
    from qkv.device import find_device, threads
    from qkv.train.recipes import run

    device = str(find_device(shared.device or "auto"))
    changes = [*(changes or []), *_precision(shared.dtype)]
    with threads(shared.threads):
        result = run(recipe, changes, folder=folder, device=device, resume=resume, progress=not shared.json)
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


@data_app.command("emblem")
@verb
def data_emblem(
    shared: Shared,
    notice: Annotated[bool, typer.Option("--notice", help="Only print licences and attributions.")] = False,
) -> None:
    """Build the emblem data set: emoji-like pictures with captions."""
    from qkv.data import emblem

    if notice:
        text = emblem.notice()
        shared.say(text.rstrip("\n"), {"notice": text})
        return
    path = str(emblem.build(progress=not shared.json))
    shared.say(path, {"path": path})


@eval_app.command("emblem")
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


# The way out.

INTERRUPTED = 130
# typer carries its own copy of click from 0.2x on; this is the usage error of either.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `arguments` (default: the process's) and exits: 0, 1 (a fault of ours), 2 (the user's), 130 (Ctrl-C)."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="qkv", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code or 0)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("QKV_DEBUG"):
            raise
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    """One line on stderr; the exit code."""
    code = 2
    if isinstance(error, QkvError):
        text = str(error)
    elif isinstance(error, UsageError):
        text = error.format_message()  # type: ignore[attr-defined]
    elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        text = "there is not enough memory for this; ask for a smaller size or use a smaller model"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'the output'}: {error.strerror or error}"
    else:
        code, text = 1, f"a fault in qkv, {type(error).__name__}: {error}; QKV_DEBUG=1 shows where"
    print(f"qkv: error: {shorten(text, 2000)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
