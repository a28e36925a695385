"""Training from scratch on tinyshakespeare against nanoGPT's setting for a CPU: the same loss, and how much sooner.

Its README: 4 layers, 4 heads, dim 128, context 64, batch 12, 2000 iterations, no dropout, a validation loss of about
1.88. The peer here is that setting written down anew in plain PyTorch: model, AdamW, schedule, clipping and batches are
those that it publishes; none of its code is used. Ours are qkv/recipes/shakespeare-char.toml (the same setting) and
shakespeare-char-fast.toml. Runs take turns, a seed a round, in processes of their own; what is timed is training alone,
with all that our loop does around it (averaging, records, curves, a checkpoint). All are judged in fp32 on the whole
last tenth of the text, in windows of 64 characters one after the other.

    python bench/train_vs_nanogpt.py --data FILE --threads 1 --seeds 3
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import measure

ROOT = Path(__file__).parents[1]
PEER, SAME, FAST = "nanoGPT's setting, plain PyTorch", "shakespeare-char", "shakespeare-char-fast"


class Run(NamedTuple):
    """One training run."""

    seconds: float
    cpu: float  # seconds of all threads
    loss: float  # nats a character of the validation split
    steps: int


def judge(logits, ids, context):  # type: ignore[no-untyped-def]
    """The mean loss of every character but the first."""
    import torch
    import torch.nn.functional as F

    whole = (len(ids) - 1) // context
    given, right = (torch.from_numpy(ids[i : i + whole * context].astype("int64")).view(whole, context) for i in (0, 1))
    rest = torch.from_numpy(ids[whole * context :].astype("int64"))[None]
    windows = [*zip(given.split(32), right.split(32)), (rest[:, :-1], rest[:, 1:])]
    with torch.no_grad():
        losses = [F.cross_entropy(logits(x).flatten(0, 1).float(), y.flatten(), reduction="sum") for x, y in windows]
    return float(torch.stack(losses).sum()) / (len(ids) - 1)


def train_peer(data: Path, seed: int, threads: int, steps: int | None) -> Run:
    """nanoGPT's setting: config/train_shakespeare_char.py with the flags that its README gives for a CPU."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    layers, heads, dim, context, batch, iterations = 4, 4, 128, 64, 12, steps or 2000
    rate, least, warmup = 1e-3, 1e-4, 100
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    text = data.read_text(encoding="utf-8")
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = np.array([number[character] for character in text], np.uint16)
    known, unseen = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
            self.qkv, self.mix = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
            self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(self.first(x)).split(dim, dim=2)
            q, k, v = (part.unflatten(2, (heads, dim // heads)).transpose(1, 2) for part in parts)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.mix(seen.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.second(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(len(number), dim), nn.Embedding(context, dim)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.norm = nn.LayerNorm(dim, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    added = name.endswith(("mix.weight", "down.weight"))  # what is added to the residual stream
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if added else 0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.token.weight)

    network = Network()
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))

    def rate_at(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(iterations - warmup, 1)
        return least + 0.5 * (1 + math.cos(math.pi * done)) * (rate - least)

    began, cpu = time.perf_counter(), time.process_time()
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        starts = torch.randint(len(known) - context, (batch,)).tolist()
        x = torch.stack([torch.from_numpy(known[i : i + context].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(known[i + 1 : i + 1 + context].astype(np.int64)) for i in starts])
        loss = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it logs every iteration
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Run(seconds, cpu, judge(network.eval(), unseen, context), iterations)


def train_ours(recipe_name: str, data: Path, seed: int, threads: int, steps: int | None) -> Run:
    """One of our recipes, by the package's own loop."""
    import torch

    from qkv.config import build, read_toml
    from qkv.models.decoder import Decoder
    from qkv.text.learn import learn_bpe
    from qkv.train.language_model import Recipe, Windows, encode, next_token, read_text
    from qkv.train.loop import fit

    torch.set_num_threads(threads)
    changes = [f'data="{data}"', f"fit.seed={seed}", "fit.save_every=1000000", "fit.sample_every=1000000"]
    changes += [f"fit.steps={steps}"] if steps else []
    values = read_toml(ROOT / "qkv" / "recipes" / f"{recipe_name}.toml", changes)
    values.pop("task")
    recipe = build(Recipe, values)
    text = read_text(recipe.data)
    cut = int(0.9 * len(text))
    tokenizer = learn_bpe(text[:cut], recipe.model.vocab)
    known, unseen = encode(tokenizer, text[:cut]), encode(tokenizer, text[cut:])
    torch.manual_seed(seed)
    decoder = Decoder(recipe.model)
    windows = Windows(known, recipe.model.context, recipe.batch, seed)
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        result = fit(decoder, windows, next_token, recipe.fit, Path(folder), progress=False)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Run(seconds, cpu, judge(result.model, unseen, 64), result.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare's text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer, to try the script")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    measure.prepare(given.threads)
    on = measure.machine(given.threads, "torch")

    runs: dict[str, list[Run]] = {PEER: [], SAME: [], FAST: []}
    for seed in range(given.seeds):
        for name, found in runs.items():
            with measure.worker() as pool:
                if name == PEER:
                    job = pool.submit(train_peer, given.data, seed, given.threads, given.steps)
                else:
                    job = pool.submit(train_ours, name, given.data, seed, given.threads, given.steps)
                found.append(job.result())
            print(name, seed, found[-1], file=sys.stderr, flush=True)

    rows = []
    for name, found in runs.items():
        losses = [run.loss for run in found]
        wall, cpu = ([getattr(run, field) for run in found] for field in ("seconds", "cpu"))
        theirs = [[getattr(run, field) for run in runs[PEER]] for field in ("seconds", "cpu")]
        times = [measure.spread(wall), measure.spread(cpu)]
        ratios = [measure.ratios(theirs[0], wall), measure.ratios(theirs[1], cpu)]
        mean, seeds = f"{sum(losses) / len(losses):.4f}", f"{min(losses):.4f} to {max(losses):.4f}"
        rows.append([name, found[0].steps, mean, seeds, *times, *ratios])
    head = [
        "",
        "steps",
        "validation loss, mean",
        "of the seeds",
        "seconds",
        "CPU seconds",
        "times faster",
        "by CPU time",
    ]
    results = {"machine": on, "runs": {name: [run._asdict() for run in found] for name, found in runs.items()}}
    measure.report(results, [measure.table(head, rows)], as_json=given.json)


if __name__ == "__main__":
    main()
