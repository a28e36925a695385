"""`qkv`: a verb, what it is about, and options. Results go to stdout, everything else to stderr.

A `QkvError` is one line and exit code 2, Ctrl-C is exit code 130. Torch and the rest of the package are imported by
the verb that needs them, so that `qkv --help` answers at once. Left out: a configuration file of the command line's
own, and shell completion.
"""

import atexit
import gc
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from qkv.cli import doctor, evaluating, models, pictures, serve, text, training, translate, understand, write
from qkv.cli.doors import flush_or_shut, open_doors
from qkv.cli.shared import INTERRUPTED, Shared, verb
from qkv.errors import QkvError, shorten, unknown

__all__ = ["Shared", "app", "main", "verb"]

app = typer.Typer(
    help="From a prompt to a picture or a text, with models that run on your own machine.",
    epilog="Start with: qkv draw 'a dog in a suit', or qkv chat",
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
models_app = typer.Typer(rich_markup_mode=None)
eval_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

app.command()(pictures.draw)
app.command()(pictures.upscale)
app.command()(text.chat)
app.command()(text.complete)
app.command()(translate.translate)
app.command()(write.write)
app.command()(understand.fill)
app.command()(understand.embed)
app.command()(understand.search)
app.command(cls=understand.LabelsCommand)(understand.classify)
app.command()(serve.serve)
app.command()(models.pull)
app.command()(models.export)
app.command()(training.train)
app.command()(doctor.doctor)
app.add_typer(models_app, name="models", help="List the models that are here, or remove one.")
models_app.callback(invoke_without_command=True)(models.models)
models_app.command("rm")(models.models_rm)
app.add_typer(eval_app, name="eval", help="Measure how good a model is.")
eval_app.command("few-shot")(evaluating.eval_few_shot)
eval_app.command("translation")(translate.eval_translation)


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


# The way out.

# typer carries its own copy of click from 0.2x on; this is the usage error of either.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None, *, app: typer.Typer = app, name: str = "qkv") -> NoReturn:
    """Runs `arguments` (default: the process's) and exits: 0, 1 (a fault of ours), 2 (the user's), 130 (Ctrl-C)."""
    open_doors()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of what is odd in a stranger's picture
    gc.set_threshold(100_000, 50, 50)  # what is imported stays: looking for garbage in it takes 0.1 s of the start
    atexit.register(gc.freeze)  # and 0.25 s of the end
    try:
        code = typer.main.get_command(app).main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code or 0)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        flush_or_shut()
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("QKV_DEBUG"):
            raise
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    """One line on stderr; the exit code. A group of commands of which none was named tells what there is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())  # type: ignore[attr-defined]
        return 0
    code = 2
    if isinstance(error, QkvError):
        text = str(error)
    elif isinstance(error, UsageError):
        text = _usage(error)
    elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        text = "there is not enough memory for this; ask for a smaller size or use a smaller model"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'the output'}: {error.strerror or error}"
    else:
        code, text = 1, f"a fault in qkv, {type(error).__name__}: {error}; QKV_DEBUG=1 shows where"
    flush_or_shut()
    print(f"qkv: error: {shorten(text, 2000)}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    """What typer found wrong on the command line, with what it leaves out: the value, and what to do."""
    text = str(error.format_message())  # type: ignore[attr-defined]
    if missing := re.match("No such command '(.*?)'", text):
        return unknown("command", missing[1], error.ctx.command.commands)  # type: ignore[attr-defined]
    wrong: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # pydantic's, in newer versions of typer
    if wrong:
        text = f"{text.partition(',')[0]}, not {shorten(str(wrong[0]['input']))!r}"
    if "unexpected extra argument" in text:
        text += "; put quotes around a text of several words"
    return text
