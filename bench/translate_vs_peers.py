"""Translation beside its peers: training against torch.nn.Transformer, and beam search on the same weights against
transformers' MarianMTModel and CTranslate2.

    python bench/translate_vs_peers.py [--data FOLDER] [--model FOLDER] [--rounds 5] [--threads 2] [--only train|search]

FOLDER of data holds pairs (data/parallel.py); Multi30k is what docs/numbers.md quotes. Training: the time for tokens of
the targets, both with the same batches, sizes, loss and optimiser; the peer as PyTorch's own tutorial writes it, in
fp32 and under autocast. Search: beam 4, every peer is given token ids, and sorts the texts by length. CTranslate2 gets
its weights straight from our arrays. Beside the times stands how many translations are those of transformers, token for
token; with random weights they differ, for the peers end their searches differently: give a trained model.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine, prepare, ratios, report, spread, table, take_turns, worker

RECIPE = "qkv/recipes/translate-multi30k.toml"
STEPS = 3  # of training a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a trained translator; without one, random weights of the recipe")
    parser.add_argument("--part", default="test_2016_flickr")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("train", "search"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    prepare(given.threads)
    results: dict[str, Any] = {
        "machine": machine(given.threads, "torch", "transformers", "ctranslate2", "sentencepiece")
    }
    tables = []
    if given.only != "search":
        results["train"], text = compare_training(given)
        tables.append(text)
    if given.only != "train":
        results["search"], text = compare_search(given)
        tables.append(text)
    report(results, tables, as_json=given.json)


def compare_training(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    names = ("qkv bf16", "qkv fp32", "torch.nn.Transformer fp32", "torch.nn.Transformer bf16")
    with worker() as ours, worker() as theirs:
        places = {name: ours if name.startswith("qkv") else theirs for name in names}
        for place in (ours, theirs):
            place.submit(start_training, str(given.data), given.threads).result()
        peers = {
            name: lambda place=place, name=name: place.submit(
                train_steps, name.startswith("qkv"), name.endswith("bf16")
            ).result()
            for name, place in places.items()
        }
        seconds = take_turns(peers, given.rounds)
    rows = [
        [name, spread(seconds[name]), *(ratios(seconds[peer], seconds[name]) for peer in names[2:])] for name in names
    ]
    head = ["training", "seconds per 1,000 target tokens", *(f"times faster than {peer}" for peer in names[2:])]
    return {"seconds": seconds}, table(head, rows)


# In the workers: a module-wide state for each process.

STATE: dict[str, Any] = {}


def start_training(data: str, threads: int) -> None:
    """Both models and the batches."""
    import torch

    from qkv.config import build, read_toml
    from qkv.models.translator import Translator
    from qkv.train import translation
    from qkv.train.optim import adamw

    torch.set_num_threads(threads)
    values = read_toml(Path(RECIPE), [f"data={data}", "text=plain"])
    values.pop("task")
    recipe = build(translation.Recipe, values)
    pairs = [translation.Pair(a.lower(), b.lower()) for a, b in translation.prepared(recipe, "train")]
    pieces = translation.learn_pieces((side for pair in pairs for side in pair), recipe.model.vocab)
    config = translation.replace(recipe.model, start=pieces.pad, end=pieces.end, pad=pieces.pad)
    batches = translation.make_batches(recipe, pairs, pieces, config)
    torch.manual_seed(0)
    models = {True: Translator(config).train(), False: peer_translator(config).train()}
    optimizers = {ours: adamw(list(model.parameters()), recipe.fit.optim) for ours, model in models.items()}
    STATE.update(models=models, optimizers=optimizers, batches=batches, step=0, pad=config.pad)


def peer_translator(config: Any) -> Any:
    """The same sizes out of PyTorch's own parts."""
    import math

    import torch
    from torch import nn

    from qkv.core.position import SinusoidalPosition

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(config.vocab, config.dim)
            self.position, self.drop = SinusoidalPosition(config.context), nn.Dropout(config.dropout)
            self.body = nn.Transformer(
                config.dim, config.heads, config.layers, config.layers, config.ffn_dim, config.dropout, batch_first=True
            )

        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return self.drop(self.position(self.token(ids) * math.sqrt(config.dim)))

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            gone = source == config.pad
            states = self.body(
                self.embed(source),
                self.embed(target),
                tgt_mask=mask,
                tgt_is_causal=True,
                src_key_padding_mask=gone,
                memory_key_padding_mask=gone,
            )
            return states @ self.token.weight.T

    return Peer()


def train_steps(ours: bool, narrow: bool) -> float:
    """Processor-independent work: seconds for 1,000 target tokens, over a few steps."""
    import torch
    import torch.nn.functional as F

    from qkv.train.translation import translation_loss

    model, optimizer, pad = STATE["models"][ours], STATE["optimizers"][ours], STATE["pad"]
    batches = [STATE["batches"](STATE["step"] + i) for i in range(STEPS)]
    STATE["step"] += STEPS
    tokens, began = 0, time.perf_counter()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            if ours:
                loss = translation_loss(model, batch, smoothing=0.1).value
            else:
                logits = model(batch.source, batch.target[:, :-1])
                wanted = batch.target[:, 1:].flatten()
                loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted, ignore_index=pad, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        tokens += int((batch.target[:, 1:] != pad).sum())
    return (time.perf_counter() - began) / tokens * 1000


def compare_search(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    names = ("qkv fp32", "transformers fp32", "CTranslate2 fp32", "CTranslate2 int8")
    with tempfile.TemporaryDirectory() as scratch:
        with worker() as first:
            folder = given.model or first.submit(random_model, str(given.data), scratch).result()
        workers = {name: worker() for name in names}
        pools = {name: pool.__enter__() for name, pool in workers.items()}
        try:
            for name, pool in pools.items():
                task = (name, str(folder), str(given.data), given.part, given.texts, given.threads, scratch)
                pool.submit(start_search, *task).result()
            peers = {name: lambda pool=pool: pool.submit(search_all).result() for name, pool in pools.items()}
            seconds = take_turns(peers, given.rounds)
            said = {name: pool.submit(lately).result() for name, pool in pools.items()}
        finally:
            for pool in workers.values():
                pool.__exit__(None, None, None)
    same = {name: sum(a == b for a, b in zip(said[name], said["transformers fp32"])) for name in names}
    rows = [
        [
            name,
            spread(seconds[name]),
            *(ratios(seconds[peer], seconds[name]) for peer in names[1:]),
            f"{100 * same[name] / len(said[name]):.1f} %",
        ]
        for name in names
    ]
    head = ["search, beam 4", "seconds", *(f"times faster than {peer}" for peer in names[1:]), "same as transformers"]
    return {"seconds": seconds, "same": same}, table(head, rows)


def random_model(data: str, scratch: str) -> str:
    """A folder with the recipe's sizes whose texts end after about as many tokens as they have."""
    import torch

    start_training(data, 1)
    from qkv.config import build, read_toml
    from qkv.train import translation

    values = read_toml(Path(RECIPE), [f"data={data}", "text=plain"])
    values.pop("task")
    recipe = build(translation.Recipe, values)
    pairs = translation.prepared(recipe, "train")
    pieces = translation.learn_pieces((side for pair in pairs for side in pair), recipe.model.vocab)
    model = STATE["models"][True].eval()
    with torch.no_grad():
        model.bias[model.config.end] = 3.0
    folder = Path(scratch) / "model"
    translation.export(model, pieces, recipe, folder)
    return str(folder)


def start_search(name: str, folder: str, data: str, part: str, count: int, threads: int, scratch: str) -> None:
    import torch

    from qkv.data.parallel import read_pairs
    from qkv.loaded.translator import encode, load_ready

    torch.set_num_threads(threads)
    ready = load_ready(folder, dtype="float32", device="cpu")
    pairs = read_pairs(Path(data), part, "en", "de")[:count]
    texts = [encode(ready, pair.source) for pair in pairs]
    STATE.update(texts=texts, ready=ready, said=None)
    if name.startswith("qkv"):
        STATE["run"] = run_ours
    elif name.startswith("transformers"):
        import transformers

        STATE["model"] = transformers.MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
        STATE["run"] = run_transformers
    else:
        import ctranslate2

        path = Path(scratch) / name.replace(" ", "-")
        write_ctranslate2(ready, path)
        kind = "int8_float32" if name.endswith("int8") else "float32"
        STATE["model"] = ctranslate2.Translator(str(path), compute_type=kind, intra_threads=threads, inter_threads=1)
        STATE["run"] = run_ctranslate2


LIMIT = 80  # tokens of a translation


def search_all() -> float:
    began = time.perf_counter()
    STATE["said"] = STATE["run"]()
    return time.perf_counter() - began


def lately() -> list[list[int]]:
    """The translations of the last turn."""
    return STATE["said"]


def run_ours() -> list[list[int]]:
    from qkv.sample.translation_beam import Search, search_texts

    model = STATE["ready"].model
    search = Search(beams=4, length_penalty=1.0, penalty="power", max_tokens=LIMIT, banned=(model.config.pad,))
    found = dict(search_texts(model, STATE["texts"], search))
    return [found[i][0].ids[:-1] for i in range(len(found))]


def run_transformers(size: int = 64) -> list[list[int]]:
    import torch

    model, texts, pad = STATE["model"], STATE["texts"], STATE["ready"].model.config.pad
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    said: list[list[int]] = [[] for _ in texts]
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(len(texts[i]) for i in rows)
        source = torch.tensor([texts[i] + [pad] * (width - len(texts[i])) for i in rows])
        with torch.inference_mode():
            found = model.generate(
                source, attention_mask=(source != pad).long(), num_beams=4, length_penalty=1.0, max_length=LIMIT + 1
            )
        for i, row in zip(rows, found[:, 1:].tolist()):
            said[i] = [token for token in row if token not in (pad, model.config.eos_token_id)]
    return said


def run_ctranslate2() -> list[list[int]]:
    texts = STATE["texts"]
    names = [[str(token) for token in text] for text in texts]
    found = STATE["model"].translate_batch(
        names, beam_size=4, length_penalty=1.0, max_batch_size=64, max_decoding_length=LIMIT
    )
    return [[int(token) for token in result.hypotheses[0]] for result in found]


def write_ctranslate2(ready: Any, path: Path) -> None:
    """A CTranslate2 model folder from our arrays; its tokens are our ids as text."""
    from ctranslate2.specs import common_spec, transformer_spec

    config = ready.model.config
    activation = {"relu": common_spec.Activation.RELU, "silu": common_spec.Activation.SWISH}[config.activation]
    spec = transformer_spec.TransformerSpec.from_config(
        (config.encoder.layers, config.decoder.layers), config.heads, pre_norm=config.norm_first, activation=activation
    )
    weights = {name: tensor.detach().float().numpy() for name, tensor in ready.model.state_dict().items()}
    fill_ctranslate2(spec, weights, config)
    # Control tokens by the names that CTranslate2 looks for, all others by their number.
    tokens = [str(id) for id in range(config.vocab)]
    spec.config.decoder_start_token, spec.config.eos_token = str(config.start), str(config.end)
    spec.config.unk_token, spec.config.bos_token = str(ready.pieces.ids["<unk>"]), str(config.start)
    spec.config.add_source_eos = False
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.validate()
    path.mkdir()
    spec.save(str(path))


def fill_ctranslate2(spec: Any, weights: dict[str, Any], config: Any) -> None:
    import numpy as np
    import torch

    from qkv.core.position import sinusoidal

    def linear(place: Any, *names: str) -> None:
        place.weight = np.concatenate([weights[f"{name}.weight"] for name in names])
        place.bias = np.concatenate([weights[f"{name}.bias"] for name in names])

    def norm(place: Any, name: str) -> None:
        place.gamma, place.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    sines = sinusoidal(torch.arange(config.context), config.dim, interleaved=False).numpy()
    for side in ("encoder", "decoder"):
        place = getattr(spec, side)
        embeddings = place.embeddings[0] if side == "encoder" else place.embeddings
        embeddings.weight, place.scale_embeddings = weights["token.weight"], config.scaled
        place.position_encodings.encodings = sines
        for i, layer in enumerate(place.layer):
            ours = f"{side}.blocks.{i}"
            attention = layer.self_attention
            linear(attention.linear[0], *(f"{ours}.attention.{part}" for part in "qkv"))
            linear(attention.linear[1], f"{ours}.attention.out")
            norm(attention.layer_norm, f"{ours}.attention_norm")
            if side == "decoder":
                linear(layer.attention.linear[0], f"{ours}.memory_attention.q")
                linear(layer.attention.linear[1], *(f"{ours}.memory_attention.{part}" for part in "kv"))
                linear(layer.attention.linear[2], f"{ours}.memory_attention.out")
                norm(layer.attention.layer_norm, f"{ours}.memory_norm")
            linear(layer.ffn.linear_0, f"{ours}.ffn.up")
            linear(layer.ffn.linear_1, f"{ours}.ffn.down")
            norm(layer.ffn.layer_norm, f"{ours}.ffn_norm")
    spec.decoder.projection.weight = weights["token.weight"]
    banned = weights["bias"].copy()
    banned[config.pad] = -1e4  # what CTranslate2 does not rule out itself
    spec.decoder.projection.bias = banned


if __name__ == "__main__":
    main()
