"""Where tensors live, in which precision, and on how many threads: the words of `--device`, `--dtype`, `--threads`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qkv.errors import InputError, unknown

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_THREADS = 1024


def find_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU where there is one. Raises InputError."""
    if name not in DEVICES:
        raise InputError(unknown("device", name, DEVICES))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch finds no GPU here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name; auto is the fastest that the device computes natively. Raises InputError."""
    if name == "auto":
        return _natural(device)
    if name not in DTYPES:
        raise InputError(unknown("dtype", name, ("auto", *DTYPES)))
    return DTYPES[name]


def _natural(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # mkldnn's own check is true wherever AVX-512 can emulate bfloat16, which is slower than float32.
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch computes on `count` threads within (None: as it is set). They belong to the process, not to a caller."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(check_threads(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(count: int) -> int:
    """`count` if it can be; else InputError."""
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads={count} is not in 1..{MAX_THREADS}")
    return count
