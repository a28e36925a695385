"""Where tensors live, in which precision, and on how many threads: the words of `--device`, `--dtype`, `--threads`."""

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from qkv.config import plain
from qkv.errors import InputError, unknown

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_THREADS = 1024
T = TypeVar("T")


def find_device(device: object) -> torch.device:
    """The device of that name; auto (or None) is a GPU where there is one. Raises InputError."""
    name = "auto" if device is None else plain(device)
    if name not in DEVICES:
        raise InputError(unknown("device", name, DEVICES))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch finds no GPU here; use cpu or auto")
    forked = torch.cuda._is_in_bad_fork()  # CUDA does not come along
    if name == "cuda" and forked:
        raise InputError("device cuda: this process was forked from one that used the GPU; spawn it, or use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() and not forked else "cpu")


def find_dtype(dtype: object, device: torch.device) -> torch.dtype:
    """The precision of that name; auto or None: the fastest that the device computes natively. InputError."""
    name = "auto" if dtype is None else plain(dtype)
    if name == "auto":
        return _natural(device)
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(unknown("dtype", name, ("auto", *DTYPES)))
    return DTYPES[name]


def find_small_dtype(dtype: object, device: torch.device) -> torch.dtype:
    """As `find_dtype`, for networks of small matrices: on a processor these gain nothing from bfloat16. InputError."""
    if device.type == "cpu" and (dtype is None or plain(dtype) == "auto"):
        return torch.float32
    return find_dtype(dtype, device)


def _natural(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # oneDNN's own check is true wherever AVX-512 can emulate bfloat16, which is slower than float32; and false where
    # DNNL_MAX_CPU_ISA forbids what the processor has.
    native = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch computes on `count` threads within (None: as it is set), for the calling thread of this program alone.

    A generator must not yield within: its caller would compute on as many. `on_threads` is for those.
    """
    if count is None:
        yield
        return
    check_threads(count)
    before = torch.get_num_threads()
    _set_threads(count)
    try:
        yield
    finally:
        _set_threads(before)


def on_threads(count: int | None, events: Iterator[T]) -> Iterator[T]:
    """The events of a generator, each made on `count` threads; between them the caller has his own number."""
    while True:
        with threads(count):
            try:
                event = next(events)
            except StopIteration:
                return
        yield event


_setting = threading.Lock()


def _set_threads(count: int) -> None:
    """PyTorch sets what the calling thread computes on, and what threads begin with that have not computed yet. The
    second belongs to the process and is put back."""
    with _setting:
        if torch.get_num_threads() != count:
            new = _elsewhere(torch.get_num_threads)
            torch.set_num_threads(count)
            _elsewhere(lambda: torch.set_num_threads(new))


def _elsewhere(run: Callable[[], T]) -> T:
    """What `run` gives in a new thread."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


def check_threads(count: int) -> int:
    """`count` if it can be; else InputError."""
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads={count} is not in 1..{MAX_THREADS}")
    return count


def _rest() -> None:
    """Before a fork, the workers that compute for the forking thread are sent home: they are not copied into the child,
    whose first product would wait for them for ever. They come again with the next product. (OpenMP 5, section 3.3.3;
    GNU's library is the one that does not see to it itself.)"""
    try:
        mapped = Path("/proc/self/maps").read_text().split()
    except OSError:
        return
    for library in {path for path in mapped if re.search(r"/libgomp[^/]*\.so", path)}:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(library).omp_pause_resource_all(_SOFT)


_SOFT = 1  # of omp.h: settings stay


def _renew() -> None:
    """In the child: another thread may have held the lock."""
    global _setting
    _setting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_rest, after_in_child=_renew)
