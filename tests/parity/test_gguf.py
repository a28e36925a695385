"""Decoders from GGUF files against transformers, which opens the same files in its own way (through gguf)."""

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qkv import registry
from qkv.engine.native_runner import NativeRunner
from qkv.engine.runner import Chunk
from qkv.errors import CheckpointError
from qkv.kernels import build
from qkv.weights import gguf_decoder
from qkv.weights.gguf import open_gguf
from qkv.weights.gguf_decoder import load_gguf, read_decoder

KIND = gguf.GGMLQuantizationType
CAPS = (3.0, 5.0)  # of Gemma 2's scores and logits
IDS = torch.randint(0, 90, (2, 17), generator=torch.Generator().manual_seed(0))


def numbers(draw: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Strong random weights in this format. The K formats, which the package cannot write, are random blocks."""
    if kind in ("Q4_K", "Q5_K", "Q6_K"):
        block, size = gguf.GGML_QUANT_SIZES[KIND[kind]]
        data = draw.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
        scales = {"Q6_K": [208]}.get(kind, [0, 2])
        for place in scales:
            data[..., place : place + 2] = np.frombuffer(np.float16(0.0006).tobytes(), np.uint8)
        return data.reshape(*shape[:-1], -1)
    if len(shape) == 1:
        return (1 + 0.3 * draw.standard_normal(shape)).astype(np.float32)
    values = (draw.standard_normal(shape) * 2 / shape[-1] ** 0.5).astype(np.float32)
    return values if kind == "F32" else gguf.quants.quantize(values, KIND[kind])


def write(path: Path, architecture: str, kinds: dict[str, str], **split: int) -> Path:
    """A file of two layers of 64 numbers, 4 heads, 2 for keys and values but in GPT-2."""
    dim, ffn, heads, kv_heads, vocab, context = 64, 256, 4, 2, 96, 1024
    # transformers takes these widths, the context and Gemma 2's scale, the root of 256, as given.
    width = {"qwen3": 128, "gemma2": 256}.get(architecture, dim // heads)
    writer = gguf.GGUFWriter(path, architecture, **split)
    writer.add_context_length(context)
    writer.add_token_list([str(i) for i in range(vocab)])
    writer.add_embedding_length(dim)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        kind = kinds.get(name.split(".")[-2], "F32") if name.endswith(".weight") and len(shape) > 1 else "F32"
        data = numbers(draw, shape, kind)
        writer.add_tensor(name, data, raw_dtype=None if kind == "F32" else KIND[kind])

    add("token_embd.weight", vocab, dim)
    norms = ("weight", "bias") if architecture == "gpt2" else ("weight",)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
        add("position_embd.weight", context, dim)
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(1000.0)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(CAPS[0])
        writer.add_final_logit_softcapping(CAPS[1])
        writer.add_sliding_window(6)
    elif architecture != "gpt2":
        add("output.weight", vocab, dim)
    if architecture in ("qwen3", "gemma2"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    for i in range(2):
        for norm in norms:
            add(f"blk.{i}.attn_norm.{norm}", dim)
            add(f"blk.{i}.ffn_norm.{norm}", dim)
            if architecture == "gemma2":
                add(f"blk.{i}.post_attention_norm.{norm}", dim)
                add(f"blk.{i}.post_ffw_norm.{norm}", dim)
        if architecture == "gpt2":
            for name, rows, columns in (("attn_qkv", 3 * dim, dim), ("attn_output", dim, dim)):
                add(f"blk.{i}.{name}.weight", rows, columns)
                add(f"blk.{i}.{name}.bias", rows)
            for name, rows, columns in (("ffn_up", ffn, dim), ("ffn_down", dim, ffn)):
                add(f"blk.{i}.{name}.weight", rows, columns)
                add(f"blk.{i}.{name}.bias", rows)
            continue
        for name, rows in (("attn_q", heads * width), ("attn_k", kv_heads * width), ("attn_v", kv_heads * width)):
            add(f"blk.{i}.{name}.weight", rows, dim)
            if architecture == "qwen2":
                add(f"blk.{i}.{name}.bias", rows)
            if architecture == "qwen3" and name != "attn_v":
                add(f"blk.{i}.{name}_norm.weight", width)
        add(f"blk.{i}.attn_output.weight", dim, heads * width)
        add(f"blk.{i}.ffn_gate.weight", ffn, dim)
        add(f"blk.{i}.ffn_up.weight", ffn, dim)
        add(f"blk.{i}.ffn_down.weight", dim, ffn)
    for norm in norms:
        add(f"output_norm.{norm}", dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theirs(path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    if model.config.model_type == "gemma2":  # whose caps it does not read
        model.config.final_logit_softcapping = CAPS[1]
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = CAPS[0]
    return model


@torch.no_grad()
def distance(path: Path) -> float:
    expected = theirs(path)(IDS).logits
    return float((load_gguf(path)(IDS) - expected).abs().max() / expected.abs().max())


CASES = {
    "llama": ("llama", {}),
    "llama-4-bit": ("llama", {"attn_q": "Q4_1", "attn_k": "Q4_0", "attn_v": "Q8_0", "token_embd": "Q8_0"}),
    "llama-k": ("llama", {"ffn_down": "Q4_K", "attn_q": "Q5_0", "attn_k": "Q5_1", "ffn_up": "BF16"}),
    "llama-k6": ("llama", {"ffn_down": "Q6_K", "attn_q": "Q8_0", "output": "F16"}),
    "qwen2": ("qwen2", {"ffn_down": "Q5_K"}),
    "qwen3": ("qwen3", {"attn_k": "Q8_0"}),
    "gemma2": ("gemma2", {"ffn_down": "Q8_0", "token_embd": "Q8_0"}),
    "gpt2": ("gpt2", {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_logits_equal(case: str, tmp_path: Path) -> None:
    assert distance(write(tmp_path / "a.gguf", *CASES[case])) < 1e-5


@pytest.mark.skipif(build.available() is not None, reason=str(build.available()))
@pytest.mark.filterwarnings("ignore")
def test_gemma_2_on_the_compiled_kernels(tmp_path: Path) -> None:
    """Within what keys and values of 16 bits cost; the window of 6 is in every other layer alone."""
    path = write(tmp_path / "a.gguf", *CASES["gemma2"])
    runner = NativeRunner(*read_decoder(open_gguf(path)), memory=1 << 20, threads=1)
    (found,) = runner.step([Chunk(IDS[0].tolist(), 0, [0], 17)])
    with torch.no_grad():
        expected = theirs(path)(IDS[:1]).logits[0]
    assert (torch.from_numpy(found) - expected).abs().max() < 2e-3 * expected.abs().max()


def test_gemma_2_of_46_layers_has_a_scale_of_its_own() -> None:
    """As llama.cpp has it for 27B, whose config.json says query_pre_attn_scalar 144."""
    large = {"dim": 4608, "heads": 32, "windows": [4096], "layers": 46}
    assert gguf_decoder._gemma2(large) == {"windows": [4096, None], "scale": 144**-0.5}
    assert gguf_decoder._gemma2(large | {"layers": 42}) == {"windows": [4096, None]}


@pytest.mark.filterwarnings("ignore")
def test_the_order_of_rows_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.gguf", "llama", {})
    monkeypatch.setattr(gguf_decoder, "_half_split", lambda heads, width: np.arange(heads * width))
    assert distance(path) > 1e-2


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("QKV_TEST_GGUF" not in os.environ, reason="QKV_TEST_GGUF names no published GGUF file")
def test_a_published_file() -> None:
    assert distance(Path(os.environ["QKV_TEST_GGUF"])) < 1e-5


def test_a_split_file(tmp_path: Path) -> None:
    """The parts that the package writes, opened by the folder, by the first part and by any other."""
    whole = write(tmp_path / "whole.gguf", "llama", {})
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "a.gguf", "llama", {}, split_max_tensors=7)
    files = sorted((tmp_path / "split").iterdir())
    assert [file.name for file in files] == [f"a-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    assert registry.entry(tmp_path / "split") == files[0]
    with torch.no_grad():
        expected = load_gguf(whole)(IDS)
        for file in files:
            assert torch.equal(load_gguf(file)(IDS), expected)
    files[1].rename(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match="split in 3 parts, of which 1 are not beside it: a-00002-of-00003.gguf"):
        open_gguf(files[0])
    with pytest.raises(CheckpointError, match="a part of a model that is split in 3; call its parts NAME-00001"):
        open_gguf(tmp_path / "b.gguf")
    files[2].rename(files[1])
    files[0].with_name("a-00003-of-00003.gguf").write_bytes((tmp_path / "b.gguf").read_bytes())
    with pytest.raises(CheckpointError, match="is not part 2 of 3"):
        open_gguf(files[0])
