"""What this machine is: its processor with the instruction sets that matter here, its cores, how fast it reads memory.

Imports no torch and starts no process. None stands for what the system does not tell. Left out: Windows' own words.
"""

import ctypes
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# An instruction set, and the flags of which any one means that it is here: Linux's, then macOS's.
X86 = {
    "AVX2": ("avx2", "avx2_0"),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16",),
    "AMX": ("amx_int8", "amx_bf16"),
}
ARM = {
    "NEON": ("asimd", "neon", "AdvSIMD"),
    "dotprod": ("asimddp", "arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "arm.FEAT_I8MM"),
    "bf16": ("bf16", "arm.FEAT_BF16"),
    "SVE": ("sve",),
}


def processor() -> str | None:
    """Its name."""
    rows = _cpuinfo()
    arm = " ".join(rows[key] for key in ("CPU implementer", "CPU part") if key in rows)
    known = (rows.get("model name"), arm, _sysctl("machdep.cpu.brand_string"), platform.processor())
    return next((name for name in known if name), None)


def instruction_sets() -> dict[str, bool] | None:
    """Which of those that matter here it has."""
    rows, table = _cpuinfo(), ARM if platform.machine().lower() in ("arm64", "aarch64") else X86
    if told := rows.get("flags") or rows.get("Features"):
        flags = set(told.split())
    else:
        every = [flag for row in table.values() for flag in row]
        flags = {flag for flag in every if _sysctl(f"hw.optional.{flag}", number=True) == "1"}
    return {name: not flags.isdisjoint(row) for name, row in table.items()} if flags else None


def cores() -> dict[str, int | None]:
    """Those that there are, and those that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"all": os.cpu_count(), "usable": usable}


def memory_speed(free: int, seconds: float = 1.0) -> float:
    """Bytes a second that all usable cores read together from a buffer larger than their caches: the best of several
    rounds. `free`: bytes of memory that are free, of which the buffer takes an eighth at most."""
    import numpy as np

    count = min(cores()["usable"] or os.cpu_count() or 1, 32)
    parts = [np.ones(min(1 << 29, free // 8) // 8 // count, np.uint64) for _ in range(count)]
    total, best, end = sum(part.nbytes for part in parts), 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(count) as pool:
        while best == 0.0 or time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # waits for memory, and lets other threads run
            best = max(best, total / (time.perf_counter() - start))
    return best


def has_nvidia_driver() -> bool:
    """Whether there can be a GPU to compute on."""
    return Path("/proc/driver/nvidia/version").exists()


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    rows = [line.partition(":") for line in first.splitlines()]
    return {key.strip(): value.strip() for key, _, value in rows}


def _sysctl(name: str, *, number: bool = False) -> str | None:
    """A value of the kernel's on macOS; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    if ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return str(int.from_bytes(buffer.raw[: size.value], "little")) if number else buffer.value.decode(errors="replace")
