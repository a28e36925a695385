"""What `pip install` of the wheel brings: every verb whose model ships runs from it, and so do the recipes' names."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from qkv.errors import ConfigError, NotFoundError
from qkv.train.recipes import SHIPPED, find_recipe, find_task, run
from qkv.train.recipes import _shipped_paths as shipped_paths

ROOT = Path(__file__).parents[1]


def test_recipes_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare-char").mkdir()  # a folder is no recipe
    assert find_recipe("shakespeare-char") == SHIPPED / "shakespeare-char.toml"
    (tmp_path / "mine.toml").write_text("task = 'language'\n")
    assert find_recipe("mine.toml") == Path("mine.toml")
    with pytest.raises(NotFoundError, match="unknown recipe 'shakespeare'; did you mean shakespeare-char.*toml file"):
        run("shakespeare")
    with pytest.raises(ConfigError, match=r"cannot read none\.toml: No such file"):
        run("none.toml")


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_a_recipe_that_ships_names_a_task_and_files_that_ship(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    find_task(values["task"], file)
    for key in ("data", "held_out"):
        if "/" in values.get(key, ""):
            assert Path(shipped_paths(values, file)[key]).is_file()


def test_what_verbs_import_is_a_dependency():
    """Each package that qkv imports, but where an error names the extra that brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in project["dependencies"]}  # type: ignore[index]
    assert "sentencepiece" in needed
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "qkv/text").glob("*.py"))
    found = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names - {"qkv"}
    assert found <= needed | {"sacrebleu", "sacremoses"}  # the extra `train`, by name


@pytest.mark.slow
def test_the_wheel_runs(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 100)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "QKV_HOME": str(tmp_path / "home"), "MPLBACKEND": "Agg"}

    def qkv(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "qkv", *arguments], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert "Datei" in qkv("translate", "Open the file.")
    assert qkv("draw", "a dog", "--seed", "1", "--steps", "1") == "a-dog-1.png\n"
    qkv("search", "a dog", ".")
    small = ["model.dim=32", "model.layers=1", "model.context=16", "fit.steps=2", "fit.optim.warmup=1"]
    assert "runs/shakespeare-char" in qkv("train", "shakespeare-char", "data=text.txt", *small)
    assert qkv("complete", "a", "--model", "runs/shakespeare-char/model", "--max-tokens", "2")
