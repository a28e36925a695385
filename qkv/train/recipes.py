"""A training run from its TOML file: `qkv train FILE.toml [key=value ...]`, or the NAME of one that comes along.

The file's `task` is a key of TASKS. Each names a module that holds `Recipe`, a dataclass that says what the file may
hold, and `train`, a function that builds model and batches and calls `fit`. A recipe names a key, never a module, so a
file cannot choose what is imported; whoever runs trainings of his own adds keys by `register`.
The run's folder is `runs/NAME`; what it made lies in `runs/NAME/model`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import nn

from qkv.config import as_dict, build, read_toml
from qkv.errors import ConfigError, NotFoundError, unknown
from qkv.train.loop import Batch, FitConfig, Loss, Model, Result, fit

TASKS = {
    "chat": "qkv.train.finetune",
    "classify": "qkv.train.classify",
    "language": "qkv.train.language_model",
    "masked": "qkv.train.masked",
    "preference": "qkv.train.preference",
    "translation": "qkv.train.translation",
}


SHIPPED = Path(__file__).parents[1] / "recipes"


class Trained(Protocol):
    """What `Context.fit` asks of a recipe, which is a dataclass."""

    @property
    def fit(self) -> FitConfig: ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """The arguments of every task beside its recipe; `task` is its key."""

    task: str
    folder: Path
    device: torch.device
    resume: bool | Path
    progress: bool = True

    def fit(
        self,
        recipe: Trained,
        model: Model,
        batches: Callable[[int], Batch],
        objective: Callable[[Model, Batch, torch.Generator], Loss],
        *,
        facts: Mapping[str, Any] | None = None,
        samples: Callable[[Model, int], Image | str | None] | None = None,
        validate: Callable[[Model, int], Mapping[str, float]] | None = None,
    ) -> Result[Model]:
        """`train.loop.fit` in this run's folder. The run keeps what its recipe says, and `facts` about what its paths
        led to (hashes, a model's configuration): a resume with others is refused."""
        said = {key: value for key, value in as_dict(recipe).items() if key != "fit"}
        return fit(
            model,
            batches,
            objective,
            recipe.fit,
            self.folder,
            recipe={"task": self.task, **said, **(facts or {})},
            resume=self.resume,
            samples=samples,
            validate=validate,
            progress=self.progress,
        )


Train = Callable[[Any, Context], Result[Any]]


def register(tasks: Mapping[str, str]) -> None:
    """Adds tasks: a key, and the module that holds its `Recipe` and `train`."""
    assert not [key for key, module in tasks.items() if TASKS.get(key, module) != module], "a key means one task"
    TASKS.update(tasks)


def find_task(key: object, path: Path) -> tuple[type[Any], Train]:
    """The `Recipe` class of a task, and the function that trains it. ConfigError for a key that nobody registered."""
    if not isinstance(key, str):
        raise ConfigError(f"{path} names no task; set task to one of {', '.join(sorted(TASKS))}")
    if key not in TASKS:
        raise ConfigError(unknown("task", key, TASKS))
    module = import_module(TASKS[key])
    return module.Recipe, module.train


def find_recipe(name: str | Path) -> Path:
    """A recipe's file, or that of the name of one that comes with the package. NotFoundError."""
    path, shipped = Path(name), {file.stem: file for file in SHIPPED.glob("*.toml")}
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    if path.name not in shipped:
        raise NotFoundError(f"{unknown('recipe', path.name, shipped)}; or name a .toml file")
    return shipped[path.name]


def _shipped_paths(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of a recipe; the files that come along with it (recipes/shelves/train.jsonl) are found anywhere."""
    if path.parent != SHIPPED:
        return values
    beside = {key: SHIPPED.parent / text for key, text in values.items() if isinstance(text, str)}
    return values | {key: str(file) for key, file in beside.items() if values[key].startswith("recipes/")}


def run(
    name: str | Path,
    overrides: Iterable[str] = (),
    *,
    folder: Path | None = None,
    device: str = "cpu",
    resume: bool | Path = False,
    progress: bool = True,
) -> Result[Any]:
    """Trains the recipe of that name or file in `folder` (default: runs/<its name>), `resume` as in `fit`. Raises
    NotFoundError, ConfigError and what `fit` does."""
    path = find_recipe(name)
    values = _shipped_paths(read_toml(path, overrides), path)
    task = values.pop("task", None)
    recipe_type, train = find_task(task, path)
    context = Context(
        task=str(task),
        folder=folder or Path("runs") / path.stem,
        device=torch.device(device),
        resume=resume,
        progress=progress,
    )
    return train(build(recipe_type, values), context)


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Takes the parameters whose names start with one of `prefixes` out of training."""
    for prefix in prefixes:
        named = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not named:
            raise ConfigError(f"freeze={prefix!r} is the start of no parameter's name")
        for parameter in named:
            parameter.requires_grad_(False)
