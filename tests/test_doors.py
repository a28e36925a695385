"""Standard input, output and errors that are shut, full or not in UTF-8: the work goes on, or one line says why not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import qkv as package
from qkv.errors import InputError
from qkv.pictures.request import Request
from qkv.sample.constrain import Lexicon, from_regex


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """`line` with $QKV for the command, in a folder."""
    root = str(Path(package.__file__).parent.parent)
    line = line.replace("$QKV", f"{sys.executable} -m qkv")
    env = {"PYTHONPATH": root, "QKV_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(["sh", "-c", line], cwd=folder, env=env, capture_output=True, check=False)


@pytest.mark.parametrize("doors", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_shut_doors(tmp_path, doors):
    ran = shell(f"$QKV models {doors}", tmp_path)
    assert ran.returncode == 0
    assert (b"emblem" in ran.stdout) is (">&-" not in doors.replace("2>&-", ""))
    wrong = shell(f"$QKV models nothing {doors}", tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert wrong.stderr in (b"", b"qkv: error: unknown command 'nothing'; known: rm\n")
    assert bool(wrong.stderr) is ("2>" not in doors)


@pytest.mark.parametrize("line", ["$QKV models >/dev/full", "$QKV --help >/dev/full"])
def test_results_that_find_no_room_are_an_error(tmp_path, line):
    ran = shell(line, tmp_path)
    assert (ran.returncode, ran.stderr) == (2, b"qkv: error: the output: No space left on device\n")


def test_nothing_to_read_is_said(tmp_path):
    ran = shell("$QKV chat <&-", tmp_path)
    assert (ran.returncode, ran.stderr) == (2, b"qkv: error: the prompt is empty; ask something\n")


def test_what_a_library_writes_to_a_shut_door_lands_in_no_file(tmp_path):
    program = (
        "import os; from qkv.cli.doors import open_doors; open_doors(); file = open('kept', 'w');"
        "os.write(1, b'noise'); os.write(2, b'noise'); file.write('mine'); file.close()"
    )
    shell(f'{sys.executable} -c "{program}" <&- >&- 2>&-', tmp_path)
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "mine"


def test_a_picture_is_drawn_with_all_doors_shut(tmp_path, tiny):
    ran = shell(f"$QKV draw dog --seed 1 --steps 1 --model {tiny} <&- >&- 2>&-", tmp_path)
    assert ran.returncode == 0
    Image.open(tmp_path / "dog-1.png").load()


@pytest.mark.parametrize("verb", ["draw", "chat", "translate", "draw x --negative"])
def test_arguments_that_are_no_utf8(tmp_path, verb):
    ran = shell(f"$QKV {verb} 'caf\udce9'", tmp_path)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.startswith(b"qkv: error: ")
    assert b"is no UTF-8 text: " in ran.stderr
    assert ran.stderr.count(b"\n") == 1


def test_a_files_name_need_not_be_utf8(tmp_path, tiny):
    ran = shell(f"$QKV draw x --seed 1 --steps 1 --model {tiny} -o 'caf\udce9.png' --json", tmp_path)
    assert json.loads(ran.stdout)["path"] == "caf\udce9.png"
    again = shell(f"$QKV draw --replay 'caf\udce9.png' -o b.png --json --model {tiny}", tmp_path)
    assert again.returncode == 0


def test_python_is_told_too():
    with pytest.raises(InputError, match="prompt is no Unicode text: half a surrogate pair at character 1"):
        Request(prompts=("a\ud800",))
    with pytest.raises(InputError, match="regex is no Unicode text"):
        from_regex(Lexicon(None, 1, ()), "a\ud800")  # type: ignore[arg-type]
