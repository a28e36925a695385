"""`make draw` and `make chat` hand PROMPT on as one argument, whatever is in it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def make(tmp_path: Path):
    """Runs make where everything is installed and `qkv` prints its arguments."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / "installed").touch()
    qkv = tmp_path / ".venv" / "bin" / "qkv"
    qkv.write_text("#!/bin/sh\nprintf '[%s]' \"$@\"\n")
    qkv.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PROMPT"}

    def run(*arguments: str, **changes: str) -> str:
        command = ["make", "-s", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment | changes, capture_output=True, text=True).stdout

    return run


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_prompt(make) -> None:
    assert make("draw") == "[draw][a dog in a suit]"
    assert make("chat") == "[chat]"
    for prompt in ("a red apple", 'it\'s "so"; $(rm -rf x) `ls` $HOME', "-x", "犬"):
        written = prompt.replace("$", "$$")  # as one types it on make's command line
        assert make("draw", f"PROMPT={written}") == f"[draw][{prompt}]"
        assert make("chat", f"PROMPT={written}") == f"[chat][{prompt}]"
    assert make("chat", PROMPT="hello there") == "[chat][hello there]"
