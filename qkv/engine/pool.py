"""How much memory keys and values may take, if nobody says: a share of what is free, and no more than can be used.

A pool is only laid out as it is used, but what was read once stays for whoever begins alike, so in time it is used.
Hence a quarter of the free memory; half of it, if one text as long as the model can read needs that much.
"""

from collections.abc import Iterator
from pathlib import Path

TEXTS = 32  # as long as the model can read, for which a pool is ever large enough
UNKNOWN = 4 << 30  # bytes that are taken to be free where the system does not tell
_GROUPS = (  # a container's limit and what it uses, in both versions of control groups
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def pool_bytes(page_bytes: int, page: int, context: int, free: int) -> int:
    """Memory for keys and values in pages of `page` rows, where a text has `context` tokens at most: that
    share."""
    one = -(-context // page) * page_bytes
    return min(max(free // 4, min(one, free // 2), page_bytes), TEXTS * one)


def free_memory(unknown: int = UNKNOWN) -> int:
    """Bytes that this process can still take of the machine's memory, about; `unknown` if the system does not tell."""
    return min(_free(), default=unknown)


def _free() -> Iterator[int]:
    try:
        rows = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        yield next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    for most, used in _GROUPS:
        try:
            yield max(0, int(Path(most).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # none there, or "max"
            continue
