"""How long it takes to index pictures for `qkv search`, and that Ctrl-C loses next to nothing.

python bench/index_pictures.py [--count 10000] [--model FOLDER] [--threads N] [--json]

The pictures are those of the emblem data set (`python -m lab data emblem`) as PNG, JPEG and WebP files, some of them
broken. The command runs three times on a data home of its own: it is interrupted halfway, goes on, and finds
everything there.
"""

import argparse
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

KEY = 16  # bytes of a key, one a picture that is kept


def write_pictures(folder: Path, count: int) -> int:
    """`count` pictures under distinct names; every 500th is cut off. How many those are."""
    import numpy as np
    from PIL import Image

    from lab.emblem import dataset

    pictures = dataset.load().pictures
    folder.mkdir()
    for number in range(count):
        pixels = np.roll(pictures[number % len(pictures)], number // len(pictures), axis=0)
        path = folder / f"{number:06d}.{('png', 'jpg', 'webp')[number % 3]}"
        Image.fromarray(pixels).save(path)
        if number % 500 == 499:
            path.write_bytes(path.read_bytes()[:200])
    return count // 500


def search(folder: Path, home: Path, options: list[str], stop_at: int | None = None) -> dict[str, Any]:
    """One run with a terminal for its stderr; Ctrl-C as soon as `stop_at` pictures are kept."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "qkv", "search", "something sweet", str(folder), "--json", *options]
    environment = os.environ | {"QKV_HOME": str(home), "COLUMNS": "100", "TERM": "xterm"}
    start = time.perf_counter()
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment, cwd=home, start_new_session=True
    )
    os.close(theirs)
    told = bytearray()
    listener = threading.Thread(target=_listen, args=(terminal, told))
    listener.start()
    while stop_at is not None and running.poll() is None:
        if kept(home) >= stop_at:
            running.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.communicate()
    listener.join()
    found = json.loads(first) if first else {}
    return {
        "exit": running.returncode,
        "seconds": round(time.perf_counter() - start, 2),
        "kept": kept(home),
        "computed": found.get("computed"),
        "skipped": found.get("skipped"),
        "bar": bool(re.search(rb"\d+/\d+", told)),
    }


def _listen(terminal: int, told: bytearray) -> None:
    try:
        while data := os.read(terminal, 4096):
            told += data
    except OSError:  # the other end is closed
        return


def kept(home: Path) -> int:
    return sum(file.stat().st_size for file in (home / "vectors").glob("*/keys")) // KEY


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--model")
    parser.add_argument("--threads")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job, and its children, would ignore it
    options = [word for name in ("model", "threads") if (v := getattr(given, name)) for word in (f"--{name}", v)]
    with tempfile.TemporaryDirectory() as scratch:
        folder, home = Path(scratch, "pictures"), Path(scratch, "home")
        home.mkdir()
        broken = write_pictures(folder, given.count)
        runs = {
            "interrupted": search(folder, home, options, stop_at=given.count // 2),
            "resumed": search(folder, home, options),
            "again": search(folder, home, options),
        }
    if given.json:
        print(json.dumps({"pictures": given.count, "broken": broken, **runs}))
        return
    print(f"{given.count} pictures, {broken} of them broken")
    print(f"{'':<14}{'exit':>6}{'seconds':>10}{'computed':>10}{'kept':>8}{'skipped':>9}  bar")
    for name, run in runs.items():
        computed, skipped = ("-" if run[key] is None else run[key] for key in ("computed", "skipped"))
        cells = f"{run['exit']:>6}{run['seconds']:>10}{computed:>10}{run['kept']:>8}{skipped:>9}"
        print(f"{name:<14}{cells}  {'shown' if run['bar'] else 'none'}")


if __name__ == "__main__":
    main()
