"""The kernels are built once, kept, and their absence is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qkv.kernels import build

pytestmark = pytest.mark.processor

HERE = build.available()
needs_compiler = pytest.mark.skipif(HERE is not None, reason=str(HERE))
QUICK = ["-O0" if flag == "-O3" else flag for flag in build.FLAGS]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_says_so():
    with pytest.raises(build.KernelError, match="no C\\+\\+ compiler") as caught:
        build.build()
    assert "\n" not in str(caught.value)


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such\nluck' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.KernelError, match="no such luck") as caught:
        build.build(folder=tmp_path / "kept")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "kept").iterdir())


def test_a_compiler_that_does_not_end_is_stopped(monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "TIMEOUT", 0.2)
    with pytest.raises(build.KernelError, match="not done"):
        build.build(folder=tmp_path / "kept")


@needs_compiler
def test_it_is_built_once_and_kept(tmp_path):
    path = build.build(QUICK, folder=tmp_path)
    made = path.stat().st_mtime_ns
    assert build.build(QUICK, folder=tmp_path) == path
    assert path.stat().st_mtime_ns == made
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert build.load(path).qkv_page() == 32


@needs_compiler
def test_another_processor_flag_or_source_is_another_library(monkeypatch):
    compiler = build.find_compiler()
    known = {build._hash(compiler, QUICK), build._hash(compiler, [*QUICK, "-DX"])}
    monkeypatch.setattr(build, "_processor", lambda: "flags: another")
    assert len(known | {build._hash(compiler, QUICK)}) == 3


def test_a_folder_that_cannot_be_written_is_no_crash(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(build.KernelError, match="cannot be built"):
        build.build(QUICK, folder=tmp_path / "file" / "below")


def test_a_broken_library_is_no_crash(tmp_path):
    (tmp_path / "x.so").write_bytes(b"not a library")
    with pytest.raises(build.KernelError, match="do not load"):
        build.load(tmp_path / "x.so")


@needs_compiler
def test_a_chat_does_not_wait_for_torch():
    code = "import sys, qkv.engine.native_runner as n; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(build.SOURCES.parents[1])}
    )


@pytest.mark.parametrize(("said", "flag"), [("x86-64-v3", "-march=x86-64-v3"), ("", "-march=native")])
def test_a_narrower_processor_may_be_asked_for(said, flag):
    """QKV_MARCH is part of the flags, and so of the library's name."""
    code = f"from qkv.kernels import build; assert {flag!r} in build.FLAGS, build.FLAGS"
    environment = os.environ | {"PYTHONPATH": str(build.SOURCES.parents[1]), "QKV_MARCH": said}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
