"""The README's lines for clients, as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", README.partition("## The endpoint")[2], re.DOTALL)
CURL = re.search(r"^curl (\S+) -d '(.*)'$", README, re.MULTILINE)


@pytest.fixture
def here(live):
    """The README's text with this server's address, and models that are small."""
    names = {"http://127.0.0.1:8000": live.address, '"smollm2"': '"small"', '"emblem"': '"tiny"', "yellow": "blue"}

    def put(text: str) -> str:
        for theirs, ours in names.items():
            text = text.replace(theirs, ours)
        return text.replace('"seed": 1', '"seed": 1, "num_inference_steps": 2')

    return put


@pytest.mark.parametrize("number", range(2))
def test_python(here, number: int) -> None:
    ran = subprocess.run([sys.executable, "-c", here(SCRIPTS[number])], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-500:]
    assert ran.stdout.strip()


@pytest.mark.weights
def test_curl(here) -> None:
    assert CURL is not None
    ran = subprocess.run(shlex.split(here(f"curl -s {CURL[1]} -d '{CURL[2]}'")), capture_output=True, timeout=120)
    assert "Schaltfläche" in json.loads(ran.stdout)["text"]
