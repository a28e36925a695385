"""How many texts a second become vectors, by us, by sentence-transformers and by ONNX Runtime, all on MiniLM.

    python bench/embed_vs_peers.py [TEXTS] [--model FOLDER] [--sentences N] [--json]

Claims: at least 2 times sentence-transformers and at least 1 time ONNX Runtime's float32, tokenising included; ours in
its default precision, with a cosine of at least 0.999 to its own float32. TEXTS is a file with one a line; without it,
sentences of 3 to 60 words are made. ONNX Runtime gets the graph of transformers' BertModel with all its own
optimisations, and batches sorted by length, as sentence-transformers makes them.

The peers live in an environment of their own, which runs this script:
    python -m venv peers && peers/bin/pip install -e . sentence-transformers onnxruntime onnx transformers
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import machine, prepare, ratios, report, spread, table, take_turns, timed, worker

from qkv.registry import home

OURS, SENTENCE, ONNX = "qkv", "sentence-transformers", "ONNX Runtime"
AIMS = {SENTENCE: 2.0, ONNX: 1.0}
COSINE = 0.999
WORDS = """the a of and in to is was river mountain city people music water light house small large old new red blue
green walks runs speaks reads between under over because although quickly slowly winter summer machine paper story
question answer number country window garden engine letter bridge forest market doctor teacher child"""
BATCH = 32  # sentence-transformers' own, ONNX Runtime's too

# In the workers' processes.

_embed: Callable[[Sequence[str]], Any]  # this worker's texts -> vectors (N, D), of length 1


def open_ours(folder: str, threads: int, dtype: str) -> str:
    """Loads the model; the precision that it computes in."""
    global _embed
    import torch

    import qkv
    from qkv.tasks.embed import load_embedder

    torch.set_num_threads(threads)
    _embed = lambda texts: qkv.embed(texts, model=folder, dtype=dtype)  # noqa: E731
    return load_embedder(folder, dtype=dtype).stamp.rpartition("-")[2]


def open_sentence_transformers(folder: str, threads: int) -> None:
    global _embed
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")
    _embed = lambda texts: model.encode(texts, batch_size=BATCH)  # noqa: E731


def export_onnx(folder: str, path: str) -> None:
    """transformers' BertModel as a graph whose batch and length are free."""
    import torch
    from transformers import BertModel

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.bert(ids, mask.float()[:, None, None, :].sub(1).mul(1e9)).last_hidden_state

    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    free = {name: {0: "B", 1: "T"} for name in ("ids", "mask", "states")}
    names = {"input_names": ["ids", "mask"], "output_names": ["states"]}
    torch.onnx.export(States(), example, path, **names, dynamic_axes=free, opset_version=17, dynamo=False)


def open_onnx(folder: str, threads: int, path: str) -> None:
    global _embed
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: Sequence[str]) -> Any:
        made = np.empty((len(texts), 384), np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        for rows in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            encoded = tokenizer.encode_batch([texts[row] for row in rows])
            ids, mask = (np.array([getattr(text, name) for text in encoded]) for name in ("ids", "attention_mask"))
            (states,) = session.run(["states"], {"ids": ids, "mask": mask})
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            made[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return made

    _embed = embed


def seconds(texts: Sequence[str]) -> float:
    return timed(lambda: _embed(texts))


def vectors(texts: Sequence[str]) -> Any:
    return _embed(texts)


# Here.


def sentences(count: int) -> list[str]:
    """Of mixed length: most are short, some are paragraphs."""
    rng = random.Random(0)
    words = WORDS.split()
    lengths = [min(60, 3 + int(rng.expovariate(1 / 12))) for _ in range(count)]
    return [" ".join(rng.choice(words) for _ in range(length)) for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="?", type=Path, help="a file with a text on each line")
    parser.add_argument("--model", default=str(home() / "models" / "minilm"), help="a folder; default: minilm")
    parser.add_argument("--sentences", type=int, default=2000, help="how many texts at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each peer")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    lines = asked.texts.read_text(encoding="utf-8").splitlines() if asked.texts else sentences(asked.sentences)
    texts = [line for line in lines if line.strip()][: asked.sentences]

    prepare(asked.threads)
    on = machine(asked.threads, "qkv", "torch", "transformers", "sentence-transformers", "onnxruntime")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        path = str(Path(place) / "minilm.onnx")
        with worker() as pool:
            pool.submit(export_onnx, asked.model, path).result()
        pools = {name: stack.enter_context(worker()) for name in (OURS, "float32", SENTENCE, ONNX)}
        dtype: str = pools[OURS].submit(open_ours, asked.model, asked.threads, "auto").result()
        pools["float32"].submit(open_ours, asked.model, asked.threads, "float32").result()
        pools[SENTENCE].submit(open_sentence_transformers, asked.model, asked.threads).result()
        pools[ONNX].submit(open_onnx, asked.model, asked.threads, path).result()
        made = {name: pool.submit(vectors, texts).result() for name, pool in pools.items()}
        turns = {name: lambda pool=pool: pool.submit(seconds, texts).result() for name, pool in pools.items()}
        found = take_turns(turns, asked.rounds)

    cosine = {name: float((made["float32"] * made[name]).sum(1).min()) for name in made}
    rates = {name: spread([len(texts) / second for second in found[name]]) for name in found}
    rows: list[list[object]] = [[f"{OURS} {dtype}", rates[OURS], "", "", f"{cosine[OURS]:.5f}"]]
    rows.append([f"{OURS} float32", rates["float32"], ratios(found["float32"], found[OURS]), "", ""])
    results: dict[str, Any] = {"machine": on, "dtype": dtype, "measured": found, "cosine": cosine, "texts": len(texts)}
    for name, aim in AIMS.items():
        gain = ratios(found[name], found[OURS])
        met = "met" if gain.median >= aim else "missed"
        rows.append([f"{name} float32", rates[name], gain, f"{aim:g} x: {met}", f"{cosine[name]:.5f}"])
        results[name] = {"ratio": gain._asdict(), "aim": aim}
    good = "met" if cosine[OURS] >= COSINE else "missed"
    head = [f"{len(texts)} texts", "texts a second", f"{OURS} is faster by", "aim", "least cosine to our float32"]
    report(results, [table(head, rows), f"Cosine of at least {COSINE}: {good}."], as_json=asked.json)


if __name__ == "__main__":
    main()
