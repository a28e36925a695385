"""How much memory models may take, and giving back what is no longer used. Imports no torch."""

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from qkv.config import parse_bytes

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.75  # of a device's memory, unless QKV_MEMORY says how much
UNKNOWN = 8 << 30  # bytes, where the system does not tell how much it has
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's


def budget(device: str) -> int:
    """Bytes that all models on a device may take together: $QKV_MEMORY, such as 8G, or a share of what there is.

    Raises ConfigError.
    """
    given = os.environ.get("QKV_MEMORY", "").strip()
    return parse_bytes("QKV_MEMORY", given) if given else int(SHARE * total(device))


def total(device: str) -> int:
    """The memory that a device has, in bytes; of a processor what this process may have at most."""
    if device == "cuda":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        here = UNKNOWN
    for limit in _LIMITS:
        try:
            here = min(here, int(Path(limit).read_text()))
        except (OSError, ValueError):  # none there, or "max"
            continue
    return here


def module_bytes(*networks: "nn.Module") -> int:
    """The memory that the tensors of networks take, those included that are packed for the processor."""
    from torch import Tensor

    modules = [module for network in networks for module in network.modules()]
    held = [vars(module) | module._parameters | module._buffers for module in modules]
    tensors = {id(each): each for values in held for each in values.values() if isinstance(each, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def give_back() -> None:
    """What was freed goes back to the system: a model that was converted or laid out anew leaves holes of its own size,
    which glibc keeps for later. Elsewhere this does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def readable(count: int) -> str:
    """Bytes for people."""
    if count < 10**6:
        return f"{count:,} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"
