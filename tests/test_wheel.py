"""What `pip install` of the wheel brings: every verb whose model ships runs from it, and so do the recipes' names."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


# What a plain install holds, and runs: a virtual environment with qkv's dependencies, and nothing else that is here.


def dependencies(name: str, extra: str = "") -> set[str]:
    """The names of the distributions that `name` needs, itself too."""
    found, rows = {name}, map(Requirement, metadata.requires(name) or [])
    for row in rows:
        if row.marker is None or row.marker.evaluate({"extra": extra}):
            found |= {each for of in row.extras or {""} for each in dependencies(row.name, of)}
    return found


def environment() -> dict[str, str]:
    """The variables of a process that sees nothing of this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def link(name: str, packages: Path) -> None:
    """The files of a distribution that is installed here, in another folder of packages."""
    distribution = metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
        if not (packages / top).exists():
            (packages / top).symlink_to(str(distribution.locate_file(top)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder."""
    room = tmp_path_factory.mktemp("wheel")
    source, made = room / "source", room / "venv"  # a copy: what an earlier build left beside the package stays out
    shutil.copytree(ROOT / "qkv", source / "qkv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    pip = [sys.executable, "-m", "pip", "-q", "--no-cache-dir"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(room), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = room.glob("*.whl")
    (packages,) = made.glob("lib/python*/site-packages")
    for name in dependencies("qkv") - {"qkv"}:
        link(name, packages)
    into = ["--python", str(made / "bin" / "python"), "install", "--no-index", str(wheel)]  # with its dependencies
    subprocess.run([*pip, *into], env=environment(), check=True)
    return made


@pytest.mark.slow
def test_the_wheel_holds_every_file(plain: Path) -> None:
    (packages,) = plain.glob("lib/python*/site-packages")

    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)) for path in found}

    assert files(packages / "qkv") == files(ROOT / "qkv")


@pytest.mark.slow
def test_the_wheel_runs(plain: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 100)

    def qkv(*arguments: str) -> str:
        command = [plain / "bin" / "qkv", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Datei" in qkv("translate", "Open the file.")
    assert qkv("draw", "a dog", "--seed", "1", "--steps", "1", "-o", "pictures/dog.png") == "pictures/dog.png\n"
    assert "pictures/dog.png" in qkv("search", "a dog", "pictures")
    assert "a dog" in qkv("classify", "pictures/dog.png", "--labels", "a dog", "a house")
    assert "emblem" in qkv("models")
    assert "qkv" in qkv("doctor")
    qkv("export", "emblem", "copy")
    small = ["model.dim=32", "model.layers=1", "model.context=16", "fit.steps=2", "fit.optim.warmup=1"]
    assert "runs/shakespeare-char" in qkv("train", "shakespeare-char", "data=text.txt", *small)
    assert qkv("complete", "a", "--model", "runs/shakespeare-char/model", "--max-tokens", "2")
