"""A training run from its TOML file: `qkv train recipes/NAME.toml [key=value ...]`.

The file's `task` names one of TASKS: a dataclass that says what the file may hold, and a function that
builds model and batches and calls `fit`. The run's folder is `runs/NAME`; what it made lies in `runs/NAME/model`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkv.config import as_dict, build, read_toml
from qkv.errors import ConfigError, unknown
from qkv.train.loop import Result


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every task is given beside its recipe."""

    folder: Path
    device: torch.device
    resume: bool | Path
    progress: bool = True


Task = tuple[type[Any], Callable[[Any, Context], Result[Any]]]


def tasks() -> dict[str, Task]:
    """The tasks by name; imported here, since each pulls in its own part of the package."""
    from qkv.train import (
        autoencoder,
        classify,
        clip,
        diffusion,
        draft,
        finetune,
        judge,
        language,
        languages,
        masked,
        preference,
        translation,
    )

    return {
        "autoencoder": (autoencoder.Recipe, autoencoder.train),
        "chat": (finetune.Recipe, finetune.train),
        "classify": (classify.Recipe, classify.train),
        "clip": (clip.Recipe, clip.train),
        "diffusion": (diffusion.Recipe, diffusion.train),
        "draft": (draft.Recipe, draft.train),
        "judge": (judge.Recipe, judge.train),
        "language": (language.Recipe, language.train),
        "languages": (languages.Recipe, languages.train),
        "masked": (masked.Recipe, masked.train),
        "preference": (preference.Recipe, preference.train),
        "translation": (translation.Recipe, translation.train),
    }


def run(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    folder: Path | None = None,
    device: str = "cpu",
    resume: bool | Path = False,
    progress: bool = True,
) -> Result[Any]:
    """Trains the recipe at `path` in `folder` (default: runs/<its name>), `resume` as in `fit`. Raises ConfigError and
    what `fit` does."""
    values = read_toml(path, overrides)
    table, task = tasks(), values.pop("task", None)
    if not isinstance(task, str):
        raise ConfigError(f"{path} names no task; set task to one of {', '.join(table)}")
    if task not in table:
        raise ConfigError(unknown("task", task, table))
    recipe_type, train = table[task]
    context = Context(
        folder=folder or Path("runs") / path.stem, device=torch.device(device), resume=resume, progress=progress
    )
    return train(build(recipe_type, values), context)


def facts(recipe: Any) -> dict[str, Any]:
    """What a run's checkpoint keeps of its recipe beside `fit`: a resume with other values is refused."""
    return {key: value for key, value in as_dict(recipe).items() if key != "fit"}


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Takes the parameters whose names start with one of `prefixes` out of training."""
    for prefix in prefixes:
        named = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not named:
            raise ConfigError(f"freeze={prefix!r} is the start of no parameter's name")
        for parameter in named:
            parameter.requires_grad_(False)
