"""The lab's command line: its verbs hand over, its tasks are the lab's alone, the package knows nothing of it."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from lab import cli
from lab.emblem import dataset
from lab.measure import drawings
from qkv.errors import ConfigError
from qkv.train import recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    own = {key: module for key, module in recipes.TASKS.items() if module.startswith("qkv.")}
    monkeypatch.setattr(recipes, "TASKS", own)

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def test_its_verbs_hand_over(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "build", lambda *, progress: Path("d"))
    monkeypatch.setattr(drawings, "run", lambda model, **options: {"model": model, "seed": options["seed"]})
    monkeypatch.setattr(drawings, "table", str)
    assert run("data", "emblem") == (0, "d\n")
    assert run("eval", "emblem", "--seed", 4) == (0, "{'model': 'emblem', 'seed': 4}\n")
    assert json.loads(run("eval", "emblem", "--model", "x", "--json")[1]) == {"model": "x", "seed": 0}
    assert "licence" in run("data", "emblem", "--notice")[1]


def test_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "lab", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0
    assert "Usage: python -m lab" in ran.stdout


def test_its_tasks_are_there_when_it_is_the_one_that_runs(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    recipe = tmp_path / "judge.toml"
    recipe.write_text('task = "judge"\n')
    with pytest.raises(ConfigError, match="judge"):
        recipes.find_task("judge", recipe)
    run("--help")
    for key, module in cli.TASKS.items():
        assert recipes.find_task(key, recipe) == (import_module(module).Recipe, import_module(module).train)


def test_every_recipe_names_a_task_that_there_is() -> None:
    known = {**recipes.TASKS, **cli.TASKS}
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        assert recipes.read_toml(path)["task"] in known, path.name
