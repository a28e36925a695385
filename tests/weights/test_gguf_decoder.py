"""What a GGUF file says about a decoder, and what is refused by name. Numbers: tests/parity/test_gguf.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkv.core.stack_config import RotaryScaling
from qkv.errors import CheckpointError, ConfigError
from qkv.weights.gguf import GGUF
from qkv.weights.gguf_decoder import load_gguf, read_decoder
from qkv.weights.quantised import Blocks

LLAMA = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500_000.0,
    "llama.rope.dimension_count": 8,
    "llama.vocab_size": 50,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (50, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}


def floats(numbers: np.ndarray) -> Blocks:
    return Blocks("F32", numbers.shape, numbers.astype(np.float32).reshape(-1).view(np.uint8))


def opened(changes: dict[str, Any] | None = None, shapes: dict[str, tuple[int, ...] | None] | None = None) -> GGUF:
    """The tiny file with some keys changed and tensors exchanged; None takes one away."""
    metadata = {key: value for key, value in {**LLAMA, **(changes or {})}.items() if value is not None}
    tensors = {name: floats(np.zeros(shape)) for name, shape in {**SHAPES, **(shapes or {})}.items() if shape}
    return GGUF(Path("tiny.gguf"), metadata, tensors)


def test_the_configuration() -> None:
    config, weights = read_decoder(opened())
    assert (config.vocab, config.context, config.dim, config.layers, config.ffn_dim) == (50, 64, 32, 1, 64)
    assert (config.heads, config.kv_heads, config.stack.head_width) == (4, 2, 8)
    assert (config.norm, config.norm_eps, config.activation, config.gated) == ("rms", 1e-5, "silu", True)
    assert (config.position, config.rotary_base, config.rotary_scaling) == ("rotary", 500_000.0, None)
    assert (config.tied, config.bias, config.attention_bias, config.out_bias) == (True, False, False, False)
    assert len(weights) == len(SHAPES)


def test_what_only_tensors_say() -> None:
    biases = {"blk.0.attn_q.bias": (32,), "blk.0.attn_k.bias": (16,), "blk.0.attn_v.bias": (16,)}
    config, weights = read_decoder(opened({}, {**biases, "output.weight": (50, 32)}))
    assert (config.tied, config.attention_bias, config.out_bias) == (False, True, False)
    assert {"head.weight", "stack.blocks.0.attention.k.bias"} <= weights.keys()


def test_a_window() -> None:
    assert read_decoder(opened({"llama.attention.sliding_window": 16}))[0].windows == (16,)
    assert read_decoder(opened({"llama.attention.sliding_window": 0}))[0].windows == (None,)


def test_rotary_scaling_of_llama_3() -> None:
    rates = 500_000.0 ** -(np.arange(0, 8, 2) / 8)
    length = 2 * np.pi / rates
    smooth = (8192 / length - 1) / (4 - 1)
    slower = np.where(length < 8192 / 4, 1, np.where(length > 8192, 32, 1 / ((1 - smooth) / 32 + smooth)))
    gguf = opened()
    gguf.tensors["rope_freqs.weight"] = floats(slower)  # type: ignore[index]
    assert read_decoder(gguf)[0].rotary_scaling == RotaryScaling(factor=32, low=1, high=4, context=8192)
    gguf.tensors["rope_freqs.weight"] = floats(slower * [1, 1, 2, 1])  # type: ignore[index]
    with pytest.raises(ConfigError, match="rope_freqs.weight is not Llama 3's"):
        read_decoder(gguf)


REFUSED = {
    "another architecture": ({"general.architecture": "mamba"}, "unknown architecture 'mamba'"),
    "no architecture": ({"general.architecture": None}, "unknown architecture 'None'"),
    "architecture is a number": ({"general.architecture": 7}, "unknown architecture '7'"),
    "a key that is not known": ({"llama.logit_scale": 0.5}, "llama.logit_scale=0.5"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count=8"),
    "YaRN": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type='yarn'"),
    "a list where one is honoured": ({"llama.expert_count": np.array([0, 0])}, "llama.expert_count"),
    "heads layer by layer": ({"llama.attention.head_count": np.array([4, 4])}, "heads"),
    "no heads": ({"llama.attention.head_count": 0}, "heads=0"),
    "heads are not there": ({"llama.attention.head_count": None}, "llama.attention.head_count is missing"),
    "heads are a text": ({"llama.attention.head_count": "4"}, "heads='4' is not a whole number"),
    "heads that do not divide": ({"llama.attention.head_count": 5}, "divisible"),
    "10^9 layers": ({"llama.block_count": 10**9}, "layers"),
    "NaN": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a finite number"),
    "values of another width": ({"llama.attention.value_length": 4}, "value_length=4"),
    "half of the head turns": ({"llama.rope.dimension_count": 4}, "dimension_count=4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured(name: str) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(ConfigError, match="tiny.gguf") as error:
        read_decoder(opened(changes))
    assert reason in str(error.value)


def test_tensors_that_do_not_fit() -> None:
    odd = {"blk.0.attn_k.weight": (32, 32), "blk.0.ffn_up.weight": None, "blk.1.ffn_up.weight": (64, 32)}
    with pytest.raises(CheckpointError) as error:
        read_decoder(opened({}, odd))
    for reason in (
        "1 missing: blk.0.ffn_up.weight",
        "1 unexpected: 'blk.1.ffn_up.weight'",
        "1 of another shape: blk.0.attn_k.weight is (32, 32), expected (16, 32)",
    ):
        assert reason in str(error.value)
    with pytest.raises(CheckpointError, match=r"no tensor token_embd\.weight"):
        read_decoder(opened({}, {"token_embd.weight": None}))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        load_gguf(tmp_path / "a.gguf")
