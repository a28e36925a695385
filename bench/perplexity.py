"""What smaller weights cost, as perplexity: the published file, its head in 4 bits, and 8 bits made of bfloat16.

    apt-get install wordnet-base && python bench/perplexity.py [--tokens 100000] [--wordnet FOLDER] [--model FILE.gguf]

Claims, on SmolLM2-135M-Instruct and the compiled kernels, with their own arithmetic: with the head in Q4_1 the
perplexity of the published file rises by at most 1 %; int8 weights made of bfloat16 ones are within 0.5 % of them. The
text is named and the same everywhere: half of the tokens are glosses of WordNet 3.0 (every n-th, so that all parts of
speech are there), half modules of Python's standard library in the order of their names. Read in windows of 512.

The bfloat16 weights are those that the published file stands for, unless --bf16 names a folder that has better ones.
"""

import argparse
import dataclasses
import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from measure import machine, prepare, report, table

CONTEXT = 512


def glosses(folder: Path, characters: int) -> str:
    """About so many characters of WordNet, from its beginning to its end."""
    from lab.emblem.wordnet import wordnet_glosses

    lines = [f"{word}: {gloss}\n" for word, gloss in wordnet_glosses(folder)]
    step = max(1, sum(map(len, lines)) // characters)
    return "".join(lines[::step])


def code(characters: int) -> str:
    """At least so many characters of the standard library: whole modules."""
    found, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if length >= characters:
            break
        found.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(found[-1])
    return "".join(found)


def variants(model: Path, bf16: Path | None) -> Iterator[tuple[str, Callable[[], tuple[Any, Mapping[str, Any]]]]]:
    """Name and weights, read only when they are needed."""
    from qkv.weights.decoder import as_blocks, load_decoder
    from qkv.weights.folder import Folder
    from qkv.weights.gguf import open_gguf
    from qkv.weights.gguf_decoder import load_gguf, read_decoder
    from qkv.weights.quantise import requantise

    def with_head(kind: str) -> tuple[Any, Mapping[str, Any]]:
        config, weights = read_decoder(open_gguf(model))
        weights = {"head.weight": weights["token.weight"]} | weights  # of its own: what is looked up stays as it is
        return dataclasses.replace(config, tied=False), requantise(weights, kind, ["head.weight"])

    def narrow() -> tuple[Any, Mapping[str, Any]]:
        import torch

        return as_blocks(load_gguf(model, torch.bfloat16) if bf16 is None else load_decoder(Folder(bf16)))

    def eight() -> tuple[Any, Mapping[str, Any]]:
        config, weights = narrow()
        return config, requantise(weights, "Q8_0")

    yield "as published", lambda: read_decoder(open_gguf(model))
    yield "head in int4 (Q4_1)", lambda: with_head("Q4_1")
    yield "bfloat16", narrow
    yield "int8 (Q8_0) of it", eight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; default: SmolLM2, fetched if need be")
    parser.add_argument("--bf16", type=Path, help="a folder with the weights in bfloat16")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    prepare(asked.threads)

    from qkv.engine.native_runner import NativeRunner
    from qkv.evaluate.loss import mean_loss_on
    from qkv.fetch.pull import find
    from qkv.text.language import LanguageTokenizer
    from qkv.weights.gguf import open_gguf

    model = find(asked.model or "smollm2")
    encode = LanguageTokenizer.from_gguf(open_gguf(model).metadata).encode
    half = asked.tokens // 2
    texts = {"glosses": encode(glosses(asked.wordnet, half * 6))[:half], "code": encode(code(half * 6))[:half]}
    results: dict[str, Any] = {"machine": machine(asked.threads, "qkv", "torch")}
    results["tokens"] = {name: len(ids) for name, ids in texts.items()}
    for name, read in variants(model, asked.bf16):
        began = time.perf_counter()
        runner = NativeRunner(*read(), memory=1 << 26, threads=asked.threads)
        losses = {part: mean_loss_on(runner, ids, context=CONTEXT) for part, ids in texts.items()}
        total = sum(losses[part] * (len(ids) - 1) for part, ids in texts.items())
        losses["both"] = total / sum(len(ids) - 1 for ids in texts.values())
        results[name] = {part: math.exp(loss) for part, loss in losses.items()}
        print(json.dumps({name: results[name], "seconds": time.perf_counter() - began}), file=sys.stderr, flush=True)
        del runner
    rows: list[list[object]] = []
    for name, base, most in (
        ("as published", None, 0.0),
        ("head in int4 (Q4_1)", "as published", 1.0),
        ("bfloat16", None, 0.0),
        ("int8 (Q8_0) of it", "bfloat16", 0.5),
    ):
        row: list[object] = [name, *(f"{results[name][part]:.4f}" for part in ("glosses", "code", "both"))]
        if base is not None:
            more = 100 * (results[name]["both"] / results[base]["both"] - 1)
            row += [f"{more:+.3f} %", f"within {most:g} %: {'met' if abs(more) <= most else 'missed'}"]
        rows.append(row + [""] * (6 - len(row)))
    report(results, [table(["weights", *texts, "both", "more", "aim"], rows)], as_json=asked.json)


if __name__ == "__main__":
    main()
