"""How fast a picture is drawn, by us and by diffusers' StableDiffusionPipeline on the same folder.

    python bench/draw_vs_diffusers.py [MODEL_FOLDER] [--json]

Claims: a picture, 20 steps with guidance, takes at least 1.5 times less time when warm and 3 times less from the
start of the process to the PNG on the disk, with at most half the memory above a bare `import torch`. Ours computes in
its default precision; the peer is the better one of diffusers in float32 and, where the processor has it, in bfloat16.
The quality gate: our default is 35 dB from our own float32 picture over 20 prompts (the median), and never below 25.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from measure import (
    Process,
    machine,
    prepare,
    ratios,
    report,
    run_process,
    spread,
    table,
    take_turns,
    timed,
    worker,
)

import qkv
from qkv.registry import ASSETS

PROMPTS = [
    "a dog in a suit",
    "dogs playing poker",
    "a photo of an astronaut riding a horse on mars",
    "a painting of new york city in impressionist style",
    "a colorful photo of a castle in the middle of a forest with trees",
    "a red apple, 3d style",
    "a smiling face with sunglasses",
    "a blue whale, flat style",
    "a woman firefighter",
    "a slice of pizza",
    "a yellow taxi",
    "a green frog",
    "a birthday cake with candles",
    "a rainbow over the sea",
    "a steam locomotive",
    "a cactus in a pot",
    "a soccer ball",
    "a bee on a flower",
    "a house with a garden",
    "a crescent moon at night",
]
OURS = "qkv"
AIMS = {"warm": 1.5, "start": 3.0, "memory": 2.0, "median_db": 35.0, "lowest_db": 25.0}

# The least that a user of diffusers would write; also the text of the peer's process.
PEER = """
import sys
import torch
from diffusers import StableDiffusionPipeline

folder, dtype, threads, steps, guidance, prompt, seed, path = sys.argv[1:]
torch.set_num_threads(int(threads))
pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
generator = torch.Generator().manual_seed(int(seed))
picture = pipeline(prompt, num_inference_steps=int(steps), guidance_scale=float(guidance), generator=generator)
picture.images[0].save(path)
"""


# In the workers' processes.

_draw: Callable[[str, int], Any]  # this worker's (prompt, seed) -> Pillow image


def open_ours(folder: str, dtype: str, threads: int, options: dict[str, Any]) -> str:
    """Loads the model; the precision that it computes in."""
    global _draw
    import torch

    torch.set_num_threads(threads)

    def draw(prompt: str, seed: int) -> Any:
        return qkv.draw(prompt, seed=seed, model=folder, dtype=dtype, **options)[0].image

    _draw = draw
    ready = qkv.draw(PROMPTS[0], seed=0, model=folder, dtype=dtype, **options)
    return str(ready[0].settings.dtype)


def precisions() -> list[str]:
    """The peer's; bfloat16 only where the processor has it: emulated it is several times slower than float32."""
    import torch

    from qkv.device import find_dtype

    return ["float32", "bfloat16"] if find_dtype("auto", torch.device("cpu")) == torch.bfloat16 else ["float32"]


def open_diffusers(folder: str, dtype: str, threads: int, options: dict[str, Any]) -> None:
    global _draw
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        steps, guidance = options["steps"], options["guidance"]
        return pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator).images[0]

    _draw = draw


def seconds() -> float:
    return timed(lambda: _draw(PROMPTS[0], 7))


def pixels(number: int) -> bytes:
    return bytes(_draw(PROMPTS[number], number).tobytes())


# Here.


def warm(
    folder: str, peers: Sequence[str], threads: int, options: dict[str, Any], rounds: int
) -> tuple[str, dict[str, list[float]]]:
    """Our default precision, and the seconds a picture of each."""
    with ExitStack() as stack:
        pools = {name: stack.enter_context(worker()) for name in (OURS, *peers)}
        dtype: str = pools[OURS].submit(open_ours, folder, "auto", threads, options).result()
        for name in peers:
            pools[name].submit(open_diffusers, folder, name.split()[1], threads, options).result()
        turns = {name: lambda pool=pool: pool.submit(seconds).result() for name, pool in pools.items()}
        return dtype, take_turns(turns, rounds)


def whole(
    folder: str, peers: Sequence[str], threads: int, options: dict[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and peak memory above a bare `import torch`, in MiB, of whole processes that leave a PNG."""
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "picture.png")
        given = [PROMPTS[0], "7", path]
        steps, guidance = str(options["steps"]), str(options["guidance"])
        command = str(Path(sys.executable).with_name("qkv"))
        ours = [command, "draw", given[0], "--seed", given[1], "-o", path, "--model", folder]
        ours += ["--steps", steps, "--guidance", guidance, "--threads", str(threads)]
        commands: dict[str, Sequence[str]] = {OURS: ours}
        for name in peers:
            commands[name] = [
                sys.executable,
                "-c",
                PEER,
                folder,
                name.split()[1],
                str(threads),
                steps,
                guidance,
                *given,
            ]
        commands["torch"] = [sys.executable, "-c", "import torch"]
        processes: dict[str, list[Process]] = {name: [] for name in commands}

        def turn(name: str) -> float:
            processes[name].append(run_process(commands[name]))
            return processes[name][-1].seconds

        starts = take_turns({name: partial(turn, name) for name in commands}, rounds)
        assert Path(path).is_file()
    bare = spread([process.peak for process in processes.pop("torch")]).median
    return starts, {name: [process.peak - bare for process in found[1:]] for name, found in processes.items()}


def decibels(folder: str, threads: int, options: dict[str, Any], prompts: int) -> list[float]:
    """The PSNR of our default picture against our float32 picture of the same seed, for each prompt."""
    import numpy as np

    with worker() as narrow, worker() as wide:
        narrow.submit(open_ours, folder, "auto", threads, options).result()
        wide.submit(open_ours, folder, "float32", threads, options).result()
        found = []
        for number in range(prompts):
            a, b = (np.frombuffer(pool.submit(pixels, number).result(), np.uint8) for pool in (narrow, wide))
            error = float(((a.astype(float) - b.astype(float)) ** 2).mean())
            found.append(10 * np.log10(255**2 / max(error, 1e-3)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(ASSETS / "emblem"), help="a model; default: emblem")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each peer")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="of the quality gate")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = str(Path(asked.folder).resolve())
    own = Path(folder) / "qkv.json"
    guidance = json.loads(own.read_text()).get("guidance", 7.5) if own.is_file() else 7.5
    options = {"steps": asked.steps, "guidance": guidance}

    prepare(asked.threads)
    on = machine(asked.threads, "qkv", "torch", "diffusers", "transformers")
    with worker() as pool:
        peers = [f"diffusers {dtype}" for dtype in pool.submit(precisions).result()]
    dtype, warms = warm(folder, peers, asked.threads, options, asked.rounds)
    starts, memory = whole(folder, peers, asked.threads, options, asked.rounds)
    decibel = None if dtype == "float32" else spread(decibels(folder, asked.threads, options, asked.prompts))

    rows: list[list[object]] = []
    results: dict[str, Any] = {}
    measures = {"warm": (warms, "a picture, warm: s"), "start": (starts, "process start to PNG: s")}
    measures["memory"] = (memory, "peak above `import torch`: MiB")
    for key, (found, title) in measures.items():
        better = min(peers, key=lambda name: spread(found[name]).median)
        gain = ratios(found[better], found[OURS])
        met = "met" if gain.median >= AIMS[key] else "missed"
        rows.append([title, *(spread(found[name]) for name in (OURS, *peers)), f"{gain} x", f"{AIMS[key]:g} x: {met}"])
        results[key] = {"measured": found, "peer": better, "ratio": gain._asdict(), "aim": AIMS[key]}
    results |= {"machine": on, "options": options, "dtype": dtype}
    quality = "Ours computed in float32 too, so there is no loss of precision to measure."
    if decibel:
        good = decibel.median >= AIMS["median_db"] and decibel.low >= AIMS["lowest_db"]
        quality = f"PSNR of {dtype} to float32, {asked.prompts} prompts: {decibel} dB; "
        quality += (
            f"aim: median {AIMS['median_db']:g}, none below {AIMS['lowest_db']:g}: {'met' if good else 'missed'}."
        )
        results["psnr"] = decibel._asdict()
    title = f"{asked.steps} steps, guidance {guidance:g}"
    head = [title, f"{OURS} {dtype}", *peers, "better by", "aim"]
    report(results, [table(head, rows), quality], as_json=asked.json)


if __name__ == "__main__":
    main()
