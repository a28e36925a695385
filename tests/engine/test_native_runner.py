"""The compiled runner: the decoder's own numbers, and each token's bits the same whatever it was computed with."""

import mmap
import os
import time
from binascii import crc32
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.core.stack_config import ACTIVATIONS, RotaryScaling
from qkv.engine import native_runner
from qkv.engine.native_runner import NativeRunner, _mappings
from qkv.engine.runner import Chunk
from qkv.errors import CheckpointError, ConfigError, InputError
from qkv.kernels import build
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.quantise import blocks, quantise
from qkv.weights.quantised import Blocks, dequantise

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(build.available() is not None, reason=str(build.available())),
]

LLAMA = {
    "position": "rotary",
    "norm": "rms",
    "gated": True,
    "activation": "silu",
    **dict.fromkeys(("bias", "attention_bias", "out_bias"), False),
}
STRETCHED = RotaryScaling(factor=4.0, low=1.0, high=4.0, context=32)
FAMILIES = {
    "gpt": {},
    "banded": {"windows": (None, 5), "activation": "gelu"},
    "bloom": {"position": "alibi", "embed_norm": True, "heads": 6, "dim": 96},
    "llama": LLAMA | {"kv_heads": 2},
    "one key head": LLAMA | {"kv_heads": 1, "heads": 12, "head_dim": 20, "windows": (40,)},
    "qwen": LLAMA | {"qk_norm": True, "head_dim": 16, "tied": False, "rotary_scaling": STRETCHED},
    "neox": {"position": "rotary", "rotary_dim": 4, "parallel": True, "activation": "gelu", "tied": False},
    "relu": {"position": "none", "activation": "relu", "out_bias": False, "scale": 0.3},
    "quick": {"position": "none", "activation": "quick_gelu", "parallel": True, "norm": "rms", "ffn_dim": 100},
    "gemma": LLAMA
    | {"norm": "rms_unit_offset", "activation": "gelu_tanh", "post_norm": True, "scaled": True, "kv_heads": 2}
    | {"score_cap": 2.0, "logit_cap": 3.0, "windows": (20, None), "head_dim": 24},
    "opt": {"position_offset": 2, "activation": "relu", "post_norm": True},
    "phi": {"position": "rotary", "rotary_dim": 6, "parallel": True, "shared_norm": True},
    "capped alibi": {"position": "alibi", "score_cap": 2.0, "qk_norm": True, "norm": "rms_unit_offset"},
}
DRAW = np.random.default_rng(0)
SHAPE = {"vocab": 99, "context": 128, "dim": 64, "layers": 2, "heads": 4, "ffn_dim": 96}
BASE = DecoderConfig(**SHAPE)
TEXT = DRAW.integers(0, 99, 104).tolist()


def tiny(**fields) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    """A configuration and strong weights; matrices are at least as wide as four blocks of 32."""
    config = DecoderConfig(**SHAPE | fields)
    weights = {}
    draw = np.random.default_rng(crc32(repr(config).encode()))  # whichever tests ran before, it is the same model
    for name, parameter in Decoder(config).named_parameters():
        noise = draw.standard_normal(parameter.shape, np.float32)
        gain = name.endswith("norm.weight") and config.norm != "rms_unit_offset"
        weights[name] = 0.3 * noise if parameter.ndim > 1 else gain + 0.2 * noise
    return config, weights


def native(config: DecoderConfig, weights: dict[str, Blocks], **options) -> NativeRunner:
    return NativeRunner(config, weights, **{"threads": 1, "memory": 1 << 22} | options)


def decoded(config: DecoderConfig, weights: dict[str, Blocks], text: list[int]) -> np.ndarray:
    """What the decoder says in float64."""
    decoder = Decoder(config).double()
    decoder.load_state_dict({name: torch.from_numpy(dequantise(b)).double() for name, b in weights.items()})
    with torch.inference_mode():
        return decoder(torch.tensor([text]))[0].numpy()


def as_kinds(weights: dict[str, np.ndarray], *kinds: str) -> dict[str, Blocks]:
    """Matrices as these kinds, in turn; vectors stay floats."""
    matrices = sorted(name for name, w in weights.items() if w.ndim == 2)
    turn = {name: kinds[i % len(kinds)] for i, name in enumerate(matrices)}
    return {
        name: quantise(w, turn[name]) if turn.get(name, "F32") != "F32" else blocks(w) for name, w in weights.items()
    }


def alone(runner: NativeRunner, text: list[int]) -> np.ndarray:
    """The logits of every token, read as one chunk."""
    return runner.step([Chunk(text, 0, range(-(-len(text) // runner.page)), len(text))])[0]


def off(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_decoder(family):
    config, weights = tiny(**FAMILIES[family])
    plain = as_kinds(weights, "F32")
    assert off(alone(native(config, plain), TEXT), decoded(config, plain, TEXT)) < 4e-4  # keys and values have 16 bits


@pytest.mark.parametrize("kinds", [("Q8_0",), ("Q4_0",), ("Q4_1",), ("Q4_1", "F32", "Q8_0")], ids=str)
def test_it_is_the_decoder_of_the_dequantised_weights(kinds):
    config, weights = tiny(**FAMILIES["llama"])
    packed = as_kinds(weights, *kinds)
    assert off(alone(native(config, packed), TEXT), decoded(config, packed, TEXT)) < 1e-3


@pytest.mark.parametrize("family", ["banded", "bloom", "one key head", "qwen"])
def test_a_mutation_is_seen(family):
    """The bound above would not hold with a wrong window, slope, group or stretch."""
    config, weights = tiny(**FAMILIES[family])
    other = {
        "banded": {"windows": (None, 6)},
        "bloom": {"position": "none"},
        "one key head": {"windows": (41,)},
        "qwen": {"rotary_scaling": None},
    }
    wrong = replace(config, **other[family])
    plain = as_kinds(weights, "F32")
    assert off(alone(native(wrong, plain), TEXT), decoded(config, plain, TEXT)) > 2e-3


# Another value of every field, alone or with what it needs: the kernels compute it, or refuse it by name.
REFUSED = ("norm_first", "embed_dim")
ROTARY = {"position": "rotary"}
FLIPPED = {
    **{name: [{name: value}] for name, value in {"vocab": 120, "context": 130, "layers": 3, "ffn_dim": 100}.items()},
    **{name: [{name: value}] for name, value in {"dim": 96, "heads": 2, "kv_heads": 2, "head_dim": 24}.items()},
    **{name: [{name: False}] for name in ("bias", "attention_bias", "out_bias", "norm_first", "tied")},
    **{name: [{name: True}] for name in ("gated", "post_norm", "scaled", "embed_norm", "qk_norm", "parallel")},
    "score_cap": [{"score_cap": 2.0}],
    "logit_cap": [{"logit_cap": 8.0}],
    "activation": [{"activation": name} for name in ACTIVATIONS],
    "norm": [{"norm": "rms"}, {"norm": "rms_unit_offset"}],
    "norm_eps": [{"norm_eps": 0.1}],
    "shared_norm": [{"shared_norm": True, "parallel": True}],
    "embed_dim": [{"embed_dim": 32}],
    "head_bias": [{"head_bias": True, "tied": False}],
    "scale": [{"scale": 0.5}],
    "windows": [{"windows": (None, 9)}],
    "position": [{"position": "none"}, ROTARY, {"position": "alibi"}],
    "position_offset": [{"position_offset": 3}],
    "rotary_base": [ROTARY | {"rotary_base": 50.0}],
    "rotary_dim": [ROTARY | {"rotary_dim": 6}],
    "rotary_scaling": [ROTARY | {"rotary_scaling": STRETCHED}],
}


@pytest.mark.parametrize("field", [field.name for field in fields(DecoderConfig)])
def test_every_field_is_computed_or_refused_by_name(field):
    for values in FLIPPED[field]:
        config, weights = tiny(**values)
        plain = as_kinds(weights, "F32")
        if field in REFUSED:
            with pytest.raises(ConfigError, match=f"do not compute {field}="):
                native(config, plain)
            continue
        truth = decoded(config, plain, TEXT)
        assert off(alone(native(config, plain), TEXT), truth) < 4e-4
        default = replace(config, **{field: getattr(BASE, field)})
        if config.activation == "gelu":  # too near to gelu_tanh
            continue
        if default != config and default.tensors == config.tensors:  # the bound sees this field
            assert off(decoded(default, plain, TEXT), truth) > 2e-3


def test_a_field_that_the_kernels_do_not_know_is_refused(monkeypatch):
    """As if it had just been added to the configuration."""
    config, weights = tiny(logit_cap=2.0)
    monkeypatch.setattr(native_runner, "_ANY", native_runner._ANY - {"logit_cap"})
    with pytest.raises(ConfigError, match="do not compute logit_cap=2.0"):
        native(config, as_kinds(weights, "F32"))


# Rows of every kind of product: enough columns for tiles, sequences that share a page, two threads.
CONFIG, WEIGHTS = tiny(**FAMILIES["gemma"] | {"windows": (None, 50)})
MIXED = as_kinds(WEIGHTS, "Q4_1", "Q8_0", "Q4_0", "Q4_1", "F32")
TEXTS = [TEXT[:i] + DRAW.integers(0, 99, 90 - i).tolist() for i in (0, 40)] * 9


@pytest.fixture(scope="module")
def runner() -> NativeRunner:
    return native(CONFIG, MIXED, threads=2)


@pytest.fixture(scope="module")
def truth(runner) -> list[np.ndarray]:
    return [alone(runner, text) for text in TEXTS]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 17), seed=st.integers(0, 1 << 32))
def test_bits_depend_on_nothing_else(runner, truth, count, seed):
    """1 to 17 sequences, each cut anywhere, in any company, their pages anywhere."""
    draw = np.random.default_rng(seed)
    pages = draw.permutation(runner.pages)[: 4 * count].reshape(count, 4)
    read = np.zeros(count, int)
    while read.min() < 90:
        chunks, expected = [], []
        for i in draw.permutation(count):
            first, length = read[i], min(draw.choice([0, 1, 1, 3, 17, 40, 90]), 90 - read[i])
            if length:
                wanted = draw.integers(0, length, endpoint=True)
                chunks.append(Chunk(TEXTS[i][first : first + length], first, pages[i], wanted))
                expected += [truth[i][first + length - wanted : first + length]] if wanted else []
                read[i] += length
        found = runner.step(chunks)
        assert len(found) == len(expected)
        assert all(map(np.array_equal, found, expected))


def test_threads_change_no_bit(truth):
    for threads in (1, 3):
        assert np.array_equal(alone(native(CONFIG, MIXED, threads=threads), TEXTS[0]), truth[0])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinities")
def test_threads_on_one_core_cost_little():
    """Work is claimed: nobody waits for who has no processor. Where they met at barriers it took 40 times as long."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})
        runners = [native(CONFIG, MIXED, threads=threads) for threads in (1, 4)]
        times = [min(_seconds(runner) for _ in range(5)) for runner in runners]
    finally:
        os.sched_setaffinity(0, allowed)
    assert times[1] < 3 * times[0]


def _seconds(runner: NativeRunner) -> float:
    """For 50 steps of one row."""
    began = time.perf_counter()
    for i in range(50):
        runner.step([Chunk([5], i, [0, 1], 1)])
    return time.perf_counter() - began


def test_threads_may_step_at_once(runner, truth):
    """They wait for each other."""
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: runner.step([Chunk(TEXTS[i], 0, range(4 * i, 4 * i + 3), 90)])[0], range(12))
    assert all(map(np.array_equal, found, truth))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told(runner):
    child = os.fork()
    if child == 0:
        try:
            runner.step([Chunk([1], 0, [0], 1)])
        except InputError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_prefix_can_be_shared(runner, truth):
    """TEXTS[1] begins as TEXT does: 40 tokens, so the first page of both is the same."""
    runner.step([Chunk(TEXT[:32], 0, [7], 0)])
    found = runner.step([Chunk(TEXTS[1][32:], 32, [7, 3, 1], 1)])
    assert np.array_equal(found[0], truth[1][-1:])


POISONED = {
    "quantised": FAMILIES["llama"] | {"tied": False},
    "odd widths": FAMILIES["qwen"] | {"head_dim": 10, "dim": 50, "heads": 5, "norm": "layer", "embed_norm": True},
}


@pytest.mark.parametrize("family", POISONED)
def test_a_poisoned_sequence_stays_alone(family):
    """A token whose embedding is not finite, in one sequence of a batch, and its pages used again."""
    config, weights = tiny(**POISONED[family])
    kinds = as_kinds(weights, "Q4_1" if family == "quantised" else "F32")
    weights["token.weight"][98] = np.nan
    weights["token.weight"][97, 3] = np.inf
    runner = native(config, kinds | {"token.weight": blocks(weights["token.weight"])}, threads=2)
    healthy = [token % 97 for token in TEXTS[0]]
    truth = alone(runner, healthy)
    assert np.isfinite(truth).all()
    for bad in (97, 98):
        found = runner.step([Chunk([bad, *healthy[:40]], 0, [3, 4], 1), Chunk(healthy, 0, [0, 1, 2], 90)])
        assert np.array_equal(found[1], truth)
        assert np.isnan(runner.step([Chunk([bad], 0, [3], 1)])[0]).all()
        assert np.array_equal(runner.step([Chunk(healthy, 0, [4, 3, 0], 90)])[0], truth)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk([99], 0, [0], 1),
        Chunk([-1], 0, [0], 1),
        Chunk([1 << 40], 0, [0], 1),
        Chunk([1 << 80], 0, [0], 1),
        Chunk(["a"], 0, [0], 1),
        Chunk([1.5], 0, [0], 1),
        Chunk([], 0, [0], 0),
        Chunk([1], -1, [0], 1),
        Chunk([1], 128, range(5), 1),
        Chunk([1] * 33, 0, [0], 1),
        Chunk([1], 32, [0], 1),
        Chunk([1], 0, [], 1),
        Chunk([1], 0, [-1], 1),
        Chunk([1], 0, [1 << 30], 1),
        Chunk([1], 0, [0], 2),
        Chunk([1], 0, [0], -1),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(runner, truth, chunk):
    with pytest.raises(InputError):
        runner.step([Chunk(TEXTS[0], 0, [4, 5, 6], 1), chunk])
    assert np.array_equal(alone(runner, TEXTS[0]), truth[0])


def test_weights_that_do_not_fit_are_refused():
    head = "token.weight"
    with pytest.raises(CheckpointError, match=r"missing.*token"):
        native(CONFIG, {name: b for name, b in MIXED.items() if name != head})
    with pytest.raises(CheckpointError, match="shape"):
        native(CONFIG, MIXED | {head: blocks(WEIGHTS[head][:-1])})
    with pytest.raises(CheckpointError, match="bytes"):
        native(CONFIG, MIXED | {head: Blocks("F32", MIXED[head].shape, MIXED[head].data[:-4])})
    with pytest.raises(CheckpointError, match="belong to nothing"):
        native(CONFIG, MIXED | {"more.weight": MIXED[head]})
    with pytest.raises(ConfigError, match="Q5_0"):
        native(CONFIG, MIXED | {head: Blocks("Q5_0", MIXED[head].shape, MIXED[head].data)})


def test_what_the_kernels_do_not_have_is_refused():
    config, weights = tiny(norm_first=False)
    with pytest.raises(ConfigError, match="do not compute norm_first=False"):
        native(config, as_kinds(weights, "F32"))
    for options in ({"memory": 100}, {"threads": 0}, {"threads": 1000}):
        with pytest.raises(ConfigError):
            native(CONFIG, MIXED, **options)


def test_mapped_weights_are_used_and_given_back(tmp_path, truth):
    """The same bits from a memory-mapped file; what is not mapped is left alone."""
    file = tmp_path / "weights"
    file.write_bytes(b"".join(b.data.tobytes() for b in MIXED.values()))
    with file.open("rb") as opened:
        whole = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    mapped, at = {}, 0
    for name, b in MIXED.items():
        mapped[name] = Blocks(b.kind, b.shape, whole[at : at + b.data.size])
        at += b.data.size
        assert len(list(_mappings(mapped[name].data))) == 1
        assert not list(_mappings(b.data))
    assert np.array_equal(alone(native(CONFIG, mapped), TEXTS[0]), truth[0])
    assert all(np.array_equal(mapped[name].data, b.data) for name, b in MIXED.items())
