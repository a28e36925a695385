"""One line before a socket opens: what is fetched, how large it is, from where, and where it goes.

Place: every fetch calls it first, so that nothing comes over the network unsaid.
"""

import sys
from pathlib import Path


def announce(what: str, size: int, origin: str, place: Path, *, licence: str | None = None) -> None:
    """One line on stderr; `size` is in bytes."""
    details = f"{size / 1e6:.1f} MB" if licence is None else f"{size / 1e6:.1f} MB, {licence}"
    print(f"qkv: fetching {what} ({details}) from {origin} into {place}", file=sys.stderr)
