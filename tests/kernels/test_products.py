"""Products of every kind of block against float64, through a model that is only an embedding, a norm and a head."""

import platform
import re

import numpy as np
import pytest

from qkv.engine.native_runner import NativeRunner
from qkv.engine.runner import Chunk
from qkv.kernels import build, library
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.quantise import blocks
from qkv.weights.quantised import KINDS, Blocks, dequantise

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(build.available() is not None, reason=str(build.available())),
]

DRAW = np.random.default_rng(0)
DIM, VOCAB = 512, 75  # whole blocks of 256; rows that do not fill the last group of 16
QUANTISED = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}  # where halves stand


def random_blocks(kind: str) -> Blocks:
    """Any bytes as weights, ordinary numbers as scales; each block has its own, some none."""
    if kind in QUANTISED:
        data = DRAW.integers(0, 256, (VOCAB * DIM // KINDS[kind].numbers, KINDS[kind].bytes), np.uint8)
        for at in QUANTISED[kind]:
            scales = DRAW.standard_normal(len(data)) * (DRAW.random(len(data)) > 0.05)
            data[:, at : at + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
        return Blocks(kind, (VOCAB, DIM), data.reshape(-1))
    numbers = DRAW.standard_normal((VOCAB, DIM), np.float32)
    if kind == "BF16":
        return Blocks(kind, numbers.shape, (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1))
    return blocks(numbers.astype({"F32": np.float32, "F16": np.float16}[kind]))


def head_alone(head: Blocks, token: Blocks, **options) -> NativeRunner:
    """logits = head . rms_norm(token[id]): the one layer adds nothing."""
    config = DecoderConfig(
        vocab=VOCAB, context=VOCAB, dim=DIM, layers=1, heads=8, ffn_dim=32, norm="rms", position="none", bias=False,
        attention_bias=False, out_bias=False, tied=False,
    )  # fmt: skip
    zeros = {f"attention.{name}.weight": (DIM, DIM) for name in ("q", "k", "v", "out")}
    zeros |= {"ffn.up.weight": (32, DIM), "ffn.down.weight": (DIM, 32), "attention_norm.weight": (DIM,)}
    zeros |= {"ffn_norm.weight": (DIM,)}
    weights = {f"stack.blocks.0.{name}": blocks(np.zeros(shape, np.float32)) for name, shape in zeros.items()}
    weights |= {"token.weight": token, "head.weight": head, "stack.norm.weight": blocks(np.ones(DIM, np.float32))}
    return NativeRunner(config, weights, **{"threads": 1, "memory": 1 << 22} | options)


def rows(runner: NativeRunner, count: int) -> np.ndarray:
    return runner.step([Chunk(range(count), 0, range(3), count)])[0]


def states(token: Blocks) -> np.ndarray:
    x = dequantise(token).astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)


def error(logits: np.ndarray, head: Blocks, token: Blocks) -> float:
    """The largest error of a row, relative to the lengths of its two factors."""
    x, w = states(token)[: len(logits)], dequantise(head).astype(np.float64)
    lengths = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(w, axis=1))
    return float((np.abs(logits - x @ w.T) / np.maximum(lengths, 1e-9)).max())


@pytest.mark.parametrize("kind", library.KINDS)
def test_products_are_those_of_the_dequantised_weights(kind):
    """16-bit activations: their rounding is 1e-5 of a block's largest number."""
    head, token = random_blocks(kind), random_blocks("F32")
    runner = head_alone(head, token)
    everything = rows(runner, VOCAB)
    assert error(everything, head, token) < (2e-5 if kind in QUANTISED else 2e-6)
    for count in range(1, 18):
        assert np.array_equal(rows(runner, count), everything[:count])


@pytest.mark.parametrize("kind", library.KINDS)
def test_embeddings_are_the_dequantised_rows(kind):
    head, token = random_blocks("F32"), random_blocks(kind)
    assert error(rows(head_alone(head, token), VOCAB), head, token) < 2e-6


def test_one_large_number_does_not_drown_the_others():
    """As before `down`: a number as large as all others together takes away the bits of its own block only."""
    numbers = DRAW.standard_normal((VOCAB, DIM), np.float32)
    numbers[:, 7] = 3000
    head, token = random_blocks("Q4_1"), blocks(numbers)
    silent = dequantise(head)
    silent[:, :32] = 0
    head = Blocks("Q4_1", head.shape, head.data.reshape(VOCAB, -1).copy().reshape(-1))
    head.data.reshape(VOCAB, -1)[:, :20] = 0  # the head does not look at that block
    x = states(token)
    truth = x @ silent.astype(np.float64).T
    assert np.abs(rows(head_alone(head, token), VOCAB) - truth).max() < 3e-5 * np.abs(truth).max()


@pytest.mark.parametrize("row", [np.zeros(DIM), np.full(DIM, 1e-40), np.full(DIM, 1e38), np.eye(DIM)[5]], ids=range(4))
def test_extreme_rows(row):
    token = blocks(np.tile(row.astype(np.float32), (VOCAB, 1)))
    head = random_blocks("Q8_0")
    logits = rows(head_alone(head, token), 2)
    if row.max() == 1e38:  # its square is infinite, so the norm makes it nothing
        assert np.array_equal(logits, np.zeros_like(logits))
    else:
        assert np.allclose(logits, states(token)[:2] @ dequantise(head).T, rtol=1e-4, atol=1e-4)


PATHS = [
    pytest.param("-march=x86-64", marks=pytest.mark.slow, id="plain"),
    pytest.param("-march=x86-64-v3", id="avx2"),
    pytest.param("-march=skylake-avx512", marks=pytest.mark.slow, id="avx512 without dot products"),
]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("path", PATHS)
def test_every_instruction_set_computes_the_same(path, tmp_path, monkeypatch):
    """Integers are exact everywhere, and with a fused multiply-add so are all other bits."""
    if "avx512" in path and "avx512dq" not in build._processor().split():
        pytest.skip("this processor has no AVX-512")
    token, heads = random_blocks("F32"), [random_blocks(kind) for kind in library.KINDS]
    native = [rows(head_alone(head, token), 21) for head in heads]
    flags = [{build.MARCH: path, "-O3": "-O1"}.get(flag, flag) for flag in build.FLAGS]
    other = build.load(build.build(flags, folder=tmp_path))
    monkeypatch.setattr(build, "library", lambda: other)
    for head, expected in zip(heads, native):
        found = rows(head_alone(head, token), 21)
        if path == "-march=x86-64":
            assert error(found, head, token) < 2e-5
        else:
            assert np.array_equal(found, expected)


def listed(file: str, opening: str) -> list[str]:
    """The names in the first braces after `opening`, without comments and types."""
    text = (build.SOURCES / file).read_text()
    body = text[text.index(opening) + len(opening) :].split("};")[0]
    return re.findall(r"(\w+)\s*[,;}]", re.sub(r"//.*", "", body) + "}")


def test_python_and_the_sources_list_the_same():
    assert listed("model.h", "struct Plan {") == [name for name, _ in library.Plan._fields_]
    assert listed("blocks.h", "enum KindCode {") == list(library.KINDS)
    assert [name.lower() for name in listed("pointwise.h", "enum Activation {")] == list(library.ACTIVATIONS)
    for slots, count in (("MatrixSlot", len(library.MATRICES)), ("VectorSlot", len(library.VECTORS))):
        assert len(listed("model.h", f"enum {slots} {{")) == count + 1
