"""How fast text is written on a CPU: qkv, transformers and llama.cpp on the same weights.

    make peers && python bench/text_vs_peers.py [--model FILE.gguf] [--peers .venv-peers/bin/python] [--json]

Claims, on SmolLM2-135M's published GGUF file with two threads: one stream is written at least 4 times faster than by
transformers (the better of float32 and bfloat16) and 1.5 times faster than by llama.cpp; the first token after a prompt
of 512 comes 3 times sooner than from transformers in float32, 1.2 times sooner than in bfloat16 and no later than from
llama.cpp; 16 streams at once are written no slower than by llama.cpp's own server with 16 slots, and 3 times faster
than one stream of ours; from process start to the first token takes at most half of transformers' time, and the memory
above a bare `import torch` is at most 1.3 times the weights file. How near decoding is to the memory's roof is shown
beside it: bytes of weights that a token needs times tokens a second, over what a plain read by as many threads gets.

transformers reads the file's weights dequantised, which is what it can do with them. Quality gate: our logits against
transformers' in float32 on these weights (relative to the largest), and how many greedy tokens agree.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from measure import Process, machine, prepare, ratios, report, run_process, spread, table, take_turns

TEXT = (
    "The history of the steam engine begins long before the railway. Miners had to lift water out of deep pits, and "
    "neither horses nor men could do it fast enough. In the first machines steam filled a cylinder and was then cooled "
    "by a jet of water, so that the weight of the air pressed the piston down and lifted the pump at the other end of "
    "a great wooden beam. They burned so much coal that only a mine could feed them. James Watt's idea was to cool the "
    "steam somewhere else, in a vessel of its own, so that the cylinder could stay hot from one stroke to the next. "
)
PROMPT, LONG, WRITTEN, STREAMS = 64, 512, 128, 16  # tokens, tokens, tokens, streams

# The workers: each reads one JSON object a line, does what it says and answers with another. They are the least that a
# user of these libraries would write.

QKV = """
from concurrent.futures import ThreadPoolExecutor
from qkv.engine.sequence import EngineRequest
from qkv.loaded.language import load_language

language = load_language(MODEL, threads=THREADS)

def write(ids, tokens, guess=False):
    times, found = [], []
    began = time.perf_counter()
    for event in language.submit(EngineRequest(prompt=ids, max_tokens=tokens, guess=guess)):
        times.append(time.perf_counter() - began)
        found.append(event.id)
    return times, found

def streams(prompts, tokens):
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda ids: write(ids, tokens), prompts))

def tokenize(text):
    return language.tokenizer.encode(text)

def weights():
    from qkv.weights.gguf import open_gguf
    from qkv.weights.gguf_decoder import read_decoder
    config, blocks = read_decoder(open_gguf(MODEL))
    looked_up = set() if config.tied else {"token.weight"}  # a row of it alone is read
    return sum(b.data.nbytes for name, b in blocks.items() if name not in looked_up | {"position.weight"})

def plain(size=1 << 28):
    import ctypes
    import numpy as np
    search = ctypes.CDLL(None).memchr  # looks at every byte, as fast as memory gives them
    search.argtypes, search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    parts = [np.full(size // THREADS, 1, np.uint8) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        list(pool.map(lambda part: search(part.ctypes.data, 0, part.size), parts))
        return size / (time.perf_counter() - began)

def logits(ids):
    from qkv.engine.runner import Chunk
    runner = language.engine.runner
    pages = range(-(-len(ids) // runner.page))
    return runner.step([Chunk(ids, 0, list(pages), 1)])[0][-1].tolist()
"""

TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(THREADS)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, DTYPE)).eval()

def run(prompts, tokens):
    ids = torch.tensor(prompts)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                         do_sample=False, pad_token_id=0)
    return out[0, ids.shape[1]:].tolist()

def write(ids, tokens):
    began = time.perf_counter()
    run([ids], 1)
    first = time.perf_counter() - began
    found = run([ids], tokens) if tokens > 1 else []
    return [first, time.perf_counter() - began - first], found  # the second run pays for the prompt again

def streams(prompts, tokens):
    run(prompts, tokens)

@torch.no_grad()
def logits(ids):
    return model(torch.tensor([ids])).logits[0, -1].float().tolist()
"""

LLAMA = """
from llama_cpp import Llama

model = Llama(MODEL, n_ctx=1024, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)

def write(ids, tokens):
    model.reset()
    times, found = [], []
    began = time.perf_counter()
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        times.append(time.perf_counter() - began)
        found.append(token)
        if len(found) == tokens:
            return times, found
"""

SERVER = """
from concurrent.futures import ThreadPoolExecutor
import xllamacpp

given = xllamacpp.CommonParams()
given.model.path, given.n_ctx, given.n_parallel, given.warmup = MODEL, 16 * 1024, 16, True
given.cpuparams.n_threads = given.cpuparams_batch.n_threads = THREADS
server = xllamacpp.Server(given)

def ask(ids, tokens):
    found = server.handle_completions({"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                                       "cache_prompt": False})
    return found

def write(ids, tokens):
    times = ask(ids, tokens)["timings"]
    first = times["prompt_ms"] / 1e3
    return [first, first + times["predicted_ms"] / 1e3], []

def streams(prompts, tokens):
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda ids: ask(ids, tokens), prompts))
"""

LOOP = """
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    began = time.perf_counter()
    found = globals()[asked.pop("do")](**asked)
    print(json.dumps({"found": found, "seconds": time.perf_counter() - began}), flush=True)
"""


class Worker:
    """A peer in a process of its own, under its own interpreter."""

    def __init__(self, python: str, program: str, **values: Any) -> None:
        given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        text = f"import json, sys, time\n{given}\n{program}\n{LOOP}"
        self._process = subprocess.Popen(
            [python, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # llama.cpp logs to stdout now and then
            if line.startswith(("{", '"')):
                return json.loads(line)
        raise RuntimeError(f"a peer ended with exit code {self._process.wait()}; run its program by hand to see why")

    def __call__(self, do: str, **values: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


class Prompts:
    """Prompts that nobody has seen before: what a cache could know of them would not be measured otherwise."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids, self._number = list(ids), 0

    def new(self, length: int) -> list[int]:
        self._number += 1
        start = self._number * 7 % len(self._ids)
        turned = (self._ids[start:] + self._ids[:start]) * (length // len(self._ids) + 1)
        return turned[:length]


def has(python: str, package: str) -> bool:
    """Whether an interpreter is there and can import it; a peer that is not there is left out and named."""
    if shutil.which(python) is None:
        return False
    return not subprocess.run([python, "-c", f"import {package}"], stderr=subprocess.DEVNULL).returncode


def decode(worker: Worker, prompts: Prompts) -> float:
    """Seconds a token of one stream, behind its first token."""
    times = worker("write", ids=prompts.new(PROMPT), tokens=WRITTEN)["found"][0]
    return float(times[-1] - times[0]) / (WRITTEN - 1)


def first(worker: Worker, prompts: Prompts) -> float:
    """Seconds to the first token after a long prompt."""
    return float(worker("write", ids=prompts.new(LONG), tokens=1)["found"][0][0])


def plain(worker: Worker, prompts: Prompts) -> float:
    """Seconds a byte of a plain read."""
    return 1 / float(worker("plain")["found"])


def together(worker: Worker, prompts: Prompts) -> float:
    """Seconds a token of many streams at once, their short prompts included."""
    many = [prompts.new(PROMPT) for _ in range(STREAMS)]
    return float(worker("streams", prompts=many, tokens=WRITTEN)["seconds"]) / (STREAMS * WRITTEN)


START = {
    "transformers": """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, dtype, threads, prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
tokenizer = AutoTokenizer.from_pretrained(folder)
out = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=1, do_sample=False, pad_token_id=0)
print(tokenizer.decode(out[0]))
""",
    "llama.cpp": """
import sys
from llama_cpp import Llama
path, threads, prompt = sys.argv[1:]
model = Llama(path, n_ctx=1024, n_threads=int(threads), verbose=False)
print(model(prompt, max_tokens=1, temperature=0)["choices"][0]["text"])
""",
}


def starts(model: str, folder: str, peers: str, threads: int, rounds: int) -> dict[str, list[Process]]:
    """Whole processes from their start to the first token of a short prompt; also a bare `import torch`."""
    prompt = "The capital of France is"
    python, given = sys.executable, [str(threads), prompt]
    ours = [str(Path(python).with_name("qkv")), "complete", prompt, "--model", model]
    commands: dict[str, list[str]] = {
        "qkv": [*ours, "--max-tokens", "1", "--threads", str(threads)],
        "transformers float32": [python, "-c", START["transformers"], folder, "float32", *given],
        "transformers bfloat16": [python, "-c", START["transformers"], folder, "bfloat16", *given],
        "torch": [python, "-c", "import torch"],
    }
    if has(peers, "llama_cpp"):
        commands["llama.cpp"] = [peers, "-c", START["llama.cpp"], model, *given]
    found: dict[str, list[Process]] = {name: [] for name in commands}

    def turn(name: str) -> float:
        found[name].append(run_process(commands[name]))
        return found[name][-1].seconds

    take_turns({name: partial(turn, name) for name in commands}, rounds)
    return {name: processes[1:] for name, processes in found.items()}


# The file's weights as a folder that transformers opens; in a process of its own, for whoever weighs has to be small.
DEQUANTISE = """
import sys
from pathlib import Path
from qkv.text.language import LanguageTokenizer
from qkv.weights.decoder import save_decoder
from qkv.weights.gguf import open_gguf
from qkv.weights.gguf_decoder import load_gguf

model, folder = map(Path, sys.argv[1:])
save_decoder(load_gguf(model), folder, family="llama")
LanguageTokenizer.from_gguf(open_gguf(model).metadata).save(folder)
"""


def gate(ours: Worker, theirs: Worker, prompts: Prompts) -> str:
    """Our logits and greedy tokens against transformers' in float32."""
    import numpy as np

    errors = []
    for _ in range(5):
        ids = prompts.new(PROMPT)
        mine, other = (np.array(worker("logits", ids=ids)["found"]) for worker in (ours, theirs))
        errors.append(float(np.abs(mine - other).max() / np.abs(other).max()))
    ids = prompts.new(PROMPT)
    mine, other = (worker("write", ids=ids, tokens=64)["found"][1] for worker in (ours, theirs))
    same = next((i for i, (a, b) in enumerate(zip(mine, other)) if a != b), len(mine))
    return (
        f"Logits against transformers in float32 on these weights: {max(errors):.1e} of the largest (aim 1e-3); "
        f"the first {same} of 64 greedy tokens agree."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; default: SmolLM2, fetched if need be")
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="where llama.cpp is; `make peers` makes it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--only", nargs="*", default=["decode", "first", "streams", "start"])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    prepare(asked.threads)

    from qkv.fetch.pull import find

    model = str(find(asked.model or "smollm2"))
    on = machine(asked.threads, "qkv", "torch", "transformers")
    results: dict[str, Any] = {"machine": on}
    rows: list[list[object]] = []

    def row(title: str, found: dict[str, list[float]], aims: dict[str, float], show: Callable[[float], float]) -> None:
        results[title] = found
        for peer, aim in ((peer, aim) for peer, aim in aims.items() if peer in found):
            gain = ratios(found[peer], found["qkv"])
            verdict = "met" if gain.median >= aim else "missed"
            mine, other = (spread([show(value) for value in found[name]]) for name in ("qkv", peer))
            rows.append([title, mine, peer, other, f"{gain} x", f"{aim:g} x: {verdict}"])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        subprocess.run([sys.executable, "-c", DEQUANTISE, model, str(folder)], check=True)
        here, there = partial(Worker, sys.executable), partial(Worker, asked.peers)
        workers = {
            "qkv": here(QKV, MODEL=model, THREADS=asked.threads),
            "transformers float32": here(TRANSFORMERS, MODEL=str(folder), THREADS=asked.threads, DTYPE="float32"),
            "transformers bfloat16": here(TRANSFORMERS, MODEL=str(folder), THREADS=asked.threads, DTYPE="bfloat16"),
        }
        for name, package, program in (("llama.cpp", "llama_cpp", LLAMA), ("llama.cpp server", "xllamacpp", SERVER)):
            if has(asked.peers, package):
                workers[name] = there(program, MODEL=model, THREADS=asked.threads)
            else:
                print(f"left out: {name}, since {asked.peers} has no {package}", file=sys.stderr)
        for worker in workers.values():
            stack.enter_context(worker)
        prompts = Prompts(workers["qkv"]("tokenize", text=TEXT)["found"])

        def turns(measure: Callable[[Worker, Prompts], float], *names: str) -> dict[str, list[float]]:
            here = {name: partial(measure, workers[name], prompts) for name in names if name in workers}
            return take_turns(here, asked.rounds)

        bits = ("transformers float32", "transformers bfloat16")
        if "decode" in asked.only:
            one = turns(decode, "qkv", *bits, "llama.cpp", "llama.cpp server")
            aims = dict.fromkeys(bits, 4.0) | dict.fromkeys(("llama.cpp", "llama.cpp server"), 1.5)
            row("one stream: tokens/s", one, aims, _rate)
            size = int(workers["qkv"]("weights")["found"])
            mine = {"qkv": partial(decode, workers["qkv"], prompts), "plain": partial(plain, workers["qkv"], prompts)}
            reads = take_turns(mine, asked.rounds)
            results["weights read a token: bytes"], results["seconds a token, a byte of a plain read"] = size, reads
            speeds = [
                spread([size / 1e9 / seconds for seconds in reads["qkv"]]),
                spread([1e-9 / s for s in reads["plain"]]),
            ]
            share = spread([size * byte / token for token, byte in zip(reads["qkv"], reads["plain"])])
            title = f"one stream: GB/s of weights ({size / 1e6:.0f} MB a token)"
            rows.append([title, speeds[0], "a plain read", speeds[1], f"{share} of it", ""])
        if "first" in asked.only:
            found = turns(first, "qkv", *bits, "llama.cpp", "llama.cpp server")
            aims = dict(zip(bits, (3.0, 1.2))) | {"llama.cpp": 1.0, "llama.cpp server": 1.0}
            row(f"first token after {LONG}: s", found, aims, float)
        if "streams" in asked.only:
            many = turns(together, "qkv", "llama.cpp server") | {"qkv, one stream": turns(decode, "qkv")["qkv"]}
            row(f"{STREAMS} streams: tokens/s", many, {"llama.cpp server": 1.0, "qkv, one stream": 3.0}, _rate)
        quality = gate(workers["qkv"], workers["transformers float32"], prompts)
        for worker in workers.values():
            worker.__exit__()
        if "start" in asked.only:
            processes = starts(model, str(folder), asked.peers, asked.threads, asked.rounds)
            bare = spread([process.peak for process in processes.pop("torch")]).median
            seconds = {name: [process.seconds for process in each] for name, each in processes.items()}
            row("process start to first token: s", seconds, {**dict.fromkeys(bits, 2.0), "llama.cpp": 1.0}, float)
            size = Path(model).stat().st_size / (1 << 20)
            peaks = {name: [process.peak - bare for process in each] for name, each in processes.items()}
            results["peak memory above import torch: MiB"] = peaks
            share = spread(peaks["qkv"]).median / size
            verdict = "met" if share <= 1.3 else "missed"
            others = ", ".join(f"{name} {spread(each).median:.0f}" for name, each in peaks.items() if name != "qkv")
            beside = f"{size:.0f} (peers: {others})"
            title = "peak above `import torch`: MiB"
            rows.append([title, spread(peaks["qkv"]), "file", beside, f"{share:.2f} of it", f"at most 1.3: {verdict}"])
    head = ["", "qkv", "against", "there", "better by", "aim"]
    report(results | {"quality": quality}, [table(head, rows), quality], as_json=asked.json)


def _rate(seconds: float) -> float:
    return 1 / seconds


if __name__ == "__main__":
    main()
