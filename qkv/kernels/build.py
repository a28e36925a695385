"""The kernels' shared library: compiled once on this machine, for its processor, and kept.

    sources + flags + compiler + processor -> a hash -> $QKV_HOME/kernels/<hash>.so

A compiler is on most machines where this package runs, and none is needed: `library()` raises KernelError with one
line that says why, and callers compute with PyTorch instead. Left out: prebuilt libraries (they would have to guess the
processor) and MSVC (the sources use GNU vectors).
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qkv import registry
from qkv.errors import QkvError, shorten

SOURCES = Path(__file__).parent
MAIN = "step.cpp"
MARCH = f"-march={os.environ.get('QKV_MARCH') or 'native'}"  # QKV_MARCH=x86-64-v3: as on a processor with AVX2
# -ffp-contract=off: lanes.h says which operations are fused. -w: gcc warns about its own headers.
FLAGS = ("-std=c++17", "-O3", MARCH, "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w")
TIMEOUT = 180  # seconds; it takes some 10


class KernelError(QkvError):
    """The kernels cannot be had here."""


@functools.cache
def available() -> str | None:
    """None if the kernels run here (the first call compiles them); else why not, in one line."""
    try:
        library()
    except KernelError as error:
        return str(error)
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, loaded. KernelError without a compiler, if it fails, or where they cannot be kept."""
    return load(build())


def load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the compiled kernels do not load: {shorten(str(error), 300)}") from error


def build(flags: Sequence[str] = FLAGS, *, folder: Path | None = None) -> Path:
    """The library's file, compiled unless it is there already. KernelError as `library`."""
    compiler, path = find_compiler(), library_path(flags, folder=folder)
    folder = path.parent
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may build at once: each in a folder of its own, and whoever is last replaces an equal file.
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as room:
            made = Path(room) / "kernels.so"
            command = [str(compiler), *flags, str(SOURCES / MAIN), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=room, check=False)
            if done.returncode != 0:
                raise KernelError(f"{compiler} cannot compile the kernels: {shorten(done.stderr, 300)}")
            os.replace(made, path)
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{compiler} was not done with the kernels after {TIMEOUT} s") from error
    except OSError as error:
        raise KernelError(f"the kernels cannot be built in {folder}: {error.strerror or error}") from error
    return path


def library_path(flags: Sequence[str] = FLAGS, *, folder: Path | None = None) -> Path:
    """The file that the library is kept in, there or not. KernelError without a compiler."""
    folder = registry.home() / "kernels" if folder is None else folder
    return folder / f"{_hash(find_compiler(), flags)}.so"


def version() -> str:
    """The compiler's own first line about itself. KernelError without one, or if it says nothing."""
    return shorten(_ask("--version").partition("\n")[0])


def instruction_sets() -> list[str]:
    """Those that the sources ask for and the compiler uses here, as its macros name them. KernelError."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.h")))
    defined = set(re.findall(r"^#define (\w+)", _ask(*FLAGS, "-dM", "-E", "-x", "c++", os.devnull), re.MULTILINE))
    return sorted(set(re.findall(r"\b__(?:AVX|AMX|ARM)\w+", sources)) & defined)


def _ask(*arguments: str) -> str:
    """What the compiler prints."""
    command = [str(find_compiler()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{command[0]} does not answer: {shorten(str(error))}") from error
    if done.returncode != 0 or not done.stdout:
        raise KernelError(f"{command[0]} does not answer: {shorten(done.stderr)}")
    return done.stdout


def find_compiler() -> Path:
    """$CXX if it is set, else the first C++ compiler on the path."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in wanted:
        if found := shutil.which(name):
            return Path(found)
    raise KernelError(f"no C++ compiler is here ({', '.join(wanted)}); install one for fast text, such as g++")


def _hash(compiler: Path, flags: Sequence[str]) -> str:
    known = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        known.update(source.read_bytes() + b"\0")
    real = compiler.resolve().stat()
    # The compiler by its size and age: asking for its version costs as much as loading the library.
    known.update(repr((tuple(flags), str(compiler), real.st_size, real.st_mtime_ns, _processor())).encode())
    return known.hexdigest()[:32]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
