"""The lab's verbs: `data`, `train` and `eval`, built as the package's own are (qkv/cli)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qkv import cli
from qkv.cli import training
from qkv.cli.shared import Shared, verb
from qkv.errors import InputError, unknown
from qkv.train.recipes import register

# What the lab trains, beside the package's own tasks: a recipe's `task`, and the module that trains it.
TASKS = {
    "autoencoder": "lab.train.autoencoder",
    "clip": "lab.train.clip",
    "diffusion": "lab.train.diffusion",
    "draft": "lab.train.draft",
    "judge": "lab.judge.training",
    "languages": "lab.train.multilingual",
    "scenes-autoencoder": "lab.scenes.autoencoder",
    "scenes-draft": "lab.scenes.draft",
    "scenes-judge": "lab.judge.scenes",
    "scenes-unet": "lab.scenes.diffusion",
    "scenes-upscaler": "lab.scenes.upscaler",
}

app = typer.Typer(
    help="How the models that ship were made.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
data_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
eval_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data_app, name="data", help="Build the data sets that the models are trained on.")
app.add_typer(eval_app, name="eval", help="Measure how good a model is.")
app.command()(training.train)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `arguments` (default: the process's) and exits, as `qkv` does."""
    register(TASKS)
    cli.main(arguments, app=app, name="python -m lab")


@app.command("train-within")
@verb
def train_within(
    shared: Shared,
    minutes: Annotated[float, typer.Argument(help="For all of it; the number of steps is measured.")],
    recipe: Annotated[Path, typer.Argument(help="A .toml file.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="In place of its own.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to; runs/NAME if not given.")] = None,
) -> None:
    """Train a recipe of the lab for a number of minutes."""
    from lab.train.timed import run_within
    from qkv.device import find_device, threads

    device, place = str(find_device(shared.device or "auto")), folder or Path("runs") / recipe.stem
    with threads(shared.threads):
        result = run_within(minutes, recipe, changes or (), folder=place, device=device, progress=not shared.json)
    shared.say(str(result.checkpoint), {"checkpoint": str(result.checkpoint), "steps": result.steps})


@data_app.command("emblem")
@verb
def data_emblem(
    shared: Shared,
    notice: Annotated[bool, typer.Option("--notice", help="Only print licences and attributions.")] = False,
    latents: Annotated[
        Path | None, typer.Option(help="Pack what the data set trains emblem on into this file, to train elsewhere.")
    ] = None,
) -> None:
    """Build the emblem data set: emoji-like pictures with captions."""
    from lab.emblem import dataset

    if notice:
        text = dataset.notice()
        shared.say(text.rstrip("\n"), {"notice": text})
        return
    if latents is not None:
        _pack(latents, progress=not shared.json)
        shared.say(str(latents), {"path": str(latents)})
        return
    path = str(dataset.build(progress=not shared.json))
    shared.say(path, {"path": path})


def _pack(path: Path, *, progress: bool) -> None:
    from lab.train.latents import pack
    from qkv.registry import resolve
    from qkv.weights.folder import Folder
    from qkv.weights.vae import load_vae

    pack(load_vae(Folder(resolve("emblem"))).float(), path, progress=progress)


@data_app.command("scenes")
@verb
def data_scenes(
    shared: Shared,
    notice: Annotated[bool, typer.Option("--notice", help="Only print licences and attributions.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet with captions into this file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sheet's scenes.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=600, help="How many scenes the sheet shows.")] = 60,
    held_out: Annotated[
        str | None, typer.Option(help="Of combinations that training never sees: pair, ride ...")
    ] = None,
    pack: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="AUTOENCODER FILE", help="Pack what training elsewhere needs (.tar.xz)."),
    ] = None,
) -> None:
    """Render the sprites that scenes are composed of; scenes themselves are drawn as they are needed."""
    from lab.scenes import dataset, heldout

    if notice:
        shared.say(dataset.notice().rstrip("\n"), {"notice": dataset.notice()})
        return
    if pack is not None:
        from lab.scenes import travel

        travel.pack(*pack)
        shared.say(str(pack[1]), {"path": str(pack[1])})
        return
    if held_out is not None and held_out not in heldout.KINDS:
        raise InputError(unknown("kind", held_out, heldout.KINDS))
    scenes = dataset.load(seed, kinds=frozenset([held_out] if held_out else []), progress=not shared.json)
    if sheet is not None:
        dataset.sheet(scenes, count).save(sheet)
    said = str(sheet or f"{len(scenes.vocabulary.things)} things")
    shared.say(said, {"things": len(scenes.vocabulary.things), "sheet": str(sheet) if sheet else None})


@data_app.command("scene-latents")
@verb
def data_scene_latents(
    shared: Shared,
    autoencoder: Annotated[Path, typer.Argument(help="Its folder, such as runs/scenes-autoencoder/model.")],
    folder: Annotated[Path, typer.Argument(help="Where to; an ended run goes on there.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes, in whole thousands.")] = 300_000,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw scenes; with a GPU, one a core.")] = 1,
) -> None:
    """Encode scenes and single drawings for a U-Net to train on: 8 MB a thousand, more of them at any time."""
    from functools import partial

    from lab.emblem.dataset import load as load_drawings
    from lab.scenes import dataset, latents
    from lab.scenes.workers import making
    from qkv.device import find_device, threads
    from qkv.weights.folder import Folder
    from qkv.weights.vae import load_vae

    vae = load_vae(Folder(autoencoder)).float().eval().to(find_device(shared.device or "auto"))
    with threads(shared.threads):
        scenes, drawings = dataset.load(seed, progress=not shared.json), load_drawings(tinted=True)
        latents.encode_drawings(vae, drawings.pictures, folder, progress=not shared.json)
        with making(partial(dataset.painter, seed), workers) as paint:
            latents.encode(vae, scenes, folder, count, paint=paint, progress=not shared.json)
    shared.say(str(folder), {"path": str(folder)})


@data_app.command("libreoffice-help")
@verb
def data_help(
    shared: Shared,
    pair: Annotated[str, typer.Option(help="en-de, en-fr or en-zh-TW.")] = "en-de",
) -> None:
    """Build pairs of sentences out of LibreOffice's help in two languages, from Debian's packages."""
    from lab.help.help_pages import build

    path = str(build(pair))
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
    from lab.measure import drawings
    from qkv.device import threads

    with threads(shared.threads):
        scores = drawings.run(model, folder=folder, seed=seed, samples=samples, progress=not shared.json)
    shared.say(drawings.table(scores), scores)


@eval_app.command("scenes")
@verb
def eval_scenes(
    shared: Shared,
    model: Annotated[str, typer.Option(help="A name from `qkv models`, or a folder.")] = "emblem",
    judge: Annotated[Path | None, typer.Option(help="The judge's folder, such as runs/scenes-judge/model.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the drawings go; an ended run goes on there.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw contact sheets with the prompts into this folder.")] = None,
    count: Annotated[int, typer.Option(help="How many drawings of seen scenes; the others in proportion.")] = 200,
    blind: Annotated[
        Path | None, typer.Option(help="Only draw pictures without their prompts into this folder, to be described.")
    ] = None,
) -> None:
    """Measure how well scenes are drawn: who, where, how many, in which relation, painted how."""
    from lab.judge.files import READER
    from lab.measure import scenes
    from lab.measure.blind import draw_blind
    from qkv.device import threads

    with threads(shared.threads):
        if blind is not None:
            key = str(draw_blind(model, blind, progress=not shared.json))
            shared.say(f"{blind}; which is which: {key}", {"folder": str(blind), "key": key})
            return
        scores = scenes.run(
            model, folder=folder, sheet=sheet, count=count, progress=not shared.json, judge=judge or READER
        )
    shared.say(scenes.table(scores), scores)


@eval_app.command("autoencoder")
@verb
def eval_autoencoder(
    shared: Shared,
    folder: Annotated[Path, typer.Argument(help="An autoencoder's folder, such as runs/NAME/model.")],
    sheet: Annotated[Path | None, typer.Option(help="Draw pictures beside their redraws into this file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures of each kind.")] = 256,
) -> None:
    """Measure how well an autoencoder redraws held-out scenes and single drawings."""
    from lab.scenes.autoencoder import measure
    from qkv.device import threads
    from qkv.weights.folder import Folder
    from qkv.weights.vae import load_vae

    with threads(shared.threads):
        numbers, picture = measure(load_vae(Folder(folder)).float().eval(), count)
    if sheet is not None:
        picture.save(sheet)
    shared.say("  ".join(f"{name} {value:.2f} dB" for name, value in numbers.items()), numbers)


@eval_app.command("upscaler")
@verb
def eval_upscaler(
    shared: Shared,
    path: Annotated[Path, typer.Argument(help="An upscaler's folder or file, such as runs/NAME/model.")],
    autoencoder: Annotated[Path | None, typer.Option(help="Also measure on what this one redraws.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw seen, bicubic, ours and original into this file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures of each kind.")] = 64,
) -> None:
    """Measure an upscaler on held-out scenes and drawings, beside bicubic's and nearest neighbours'."""
    from lab.scenes.upscaler import measure
    from qkv.device import threads
    from qkv.weights.folder import Folder
    from qkv.weights.upscaler import FOLDER, load_upscaler
    from qkv.weights.vae import load_vae

    network, _ = load_upscaler(path / FOLDER if (path / FOLDER).is_dir() else path)
    vae = load_vae(Folder(autoencoder)).float().eval() if autoencoder else None
    with threads(shared.threads):
        numbers, picture = measure(network.float(), vae, count)
    if sheet is not None:
        picture.save(sheet)
    shared.say("\n".join(f"{name} {value:.2f} dB" for name, value in numbers.items()), numbers)


@eval_app.command("clip")
@verb
def eval_clip(
    shared: Shared,
    model: Annotated[str | None, typer.Option(help="A CLIP folder; the one that ships if not given.")] = None,
) -> None:
    """Measure how well pictures of unseen concepts find their captions, in four languages, beside chance."""
    from lab.measure import retrieval
    from qkv.device import threads

    with threads(shared.threads):
        result = retrieval.run(
            model,
            device=shared.device or "auto",
            dtype=shared.dtype or "float32",
            offline=shared.offline,
            progress=not shared.json,
        )
    shared.say(retrieval.table(result).rstrip("\n"), result)
