"""Nothing but `qkv pull`, and the first use of a model by its name, opens a socket or starts a package manager."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qkv

ROOT = Path(qkv.__file__).parent
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "socketserver", "xmlrpc", "telnetlib"}
NETWORK |= {"requests", "httpx", "httpx2", "aiohttp", "urllib3", "websockets", "huggingface_hub", "fsspec"}
MAY_FETCH = {"fetch/hub.py"}
MAY_RUN = {"fetch/wheel.py", "fetch/npm.py", "kernels/build.py"}  # the user's pip, npm and compiler

# Runs each of the verbs on the command line, one after the other, in a process that raises where the network begins.
PROGRAM = """
import contextlib, io, json, sys

def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        raise AssertionError(f"the network was used: {event} {arguments}")
    if event == "subprocess.Popen" and {"pip", "npm"} & {str(part).rsplit("/")[-1] for part in arguments[1]}:
        raise AssertionError(f"a package manager was started: {arguments[1]}")

sys.addaudithook(guard)
from qkv.cli import main

codes = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main(arguments)
        except SystemExit as ended:
            codes.append(ended.code)
print(codes)
"""


def run(verbs: list[list[str]], place: Path) -> tuple[list[int], str]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(verbs)]
    ran = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert ran.stdout, ran.stderr
    return json.loads(ran.stdout), ran.stderr


def test_verbs_on_local_models(home: Path, tiny: Path, tmp_path: Path) -> None:
    verbs = [
        ["models"],
        ["draw", "a dog", "--model", str(tiny), "--steps", "1"],
        ["export", str(tiny), "copy"],
        ["models", "--json"],
    ]
    codes, told = run(verbs, tmp_path)
    assert codes == [0] * len(verbs), told
    assert "network" not in told


@pytest.mark.parametrize("name", ["smollm2", "some/model"])
def test_the_guard_sees_what_a_name_fetches(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    program = PROGRAM.replace("main(arguments)", "from qkv.fetch.pull import find; find(*arguments)")
    command = [sys.executable, "-c", program, json.dumps([[name]])]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "the network was used" in ran.stderr or "a package manager was started" in ran.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert f"run once: qkv pull {name}" in ran.stderr


def imported(tree: ast.AST) -> set[str]:
    """The packages that are imported anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_can_reach_the_network(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = imported(ast.parse(path.read_text(encoding="utf-8")))
    if name not in MAY_FETCH and not name.startswith("serve/"):
        assert not found & NETWORK
    if name not in MAY_RUN:
        assert "subprocess" not in found
