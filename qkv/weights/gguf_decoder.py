"""A decoder out of a GGUF file: its metadata -> DecoderConfig, its tensors -> blocks under our names.

The Llama line (llama, which Mistral and SmolLM2 are too, qwen2, qwen3), Gemma 2 and GPT-2. A key of the architecture
that is not known here is refused by name, so that no model is silently computed wrong. Whether projections have biases
and the head is the embedding is not in the metadata: the tensors say it.

Two things that converters change are undone, by whole rows of blocks, so that quantised weights stay as they are: the
rows of q and k of "llama" (`_half_split`), and GPT-2's fused q, k and v. Left out: mixtures of experts, and rotary
scaling other than Llama 3's. Source: the key and tensor names of the GGUF specification.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qkv.config import build
from qkv.core.stack_config import RotaryScaling
from qkv.errors import CheckpointError, ConfigError, shorten, unknown
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Fixed
from qkv.weights.fit import check_fit
from qkv.weights.gguf import GGUF, open_gguf
from qkv.weights.quantised import Blocks, dequantise

if TYPE_CHECKING:
    import torch

    from qkv.models.decoder import Decoder

_FIELDS = {
    **{"context_length": "context", "embedding_length": "dim", "block_count": "layers"},
    **{"feed_forward_length": "ffn_dim", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads"},
    **{"attention.layer_norm_rms_epsilon": "norm_eps", "attention.layer_norm_epsilon": "norm_eps"},
    **{"attention.key_length": "head_dim", "rope.freq_base": "rotary_base", "rope.dimension_count": "rotary_dim"},
    **{"attn_logit_softcapping": "score_cap", "final_logit_softcapping": "logit_cap"},
}
# Keys of what we do not have, with the values that mean "none of it".
_FIXED: Fixed = {
    **{"expert_count": (0,), "expert_used_count": (0,), "attention.causal": (True,)},
    **{"rope.scaling.type": ("none",), "rope.scaling.factor": (0.0, 1.0), "rope.scale_linear": (1.0,)},
}
_IGNORED = {
    *("vocab_size", "attention.value_length", "attention.sliding_window", "tensor_data_layout"),
    *("rope.scaling.finetuned", "rope.scaling.original_context_length"),
}
_NEEDED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_LLAMA = {"activation": "silu", "gated": True, "norm": "rms", "position": "rotary"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"qk_norm": True},
    "gemma2": _LLAMA | {"activation": "gelu_tanh", "post_norm": True, "scaled": True},
    "gpt2": {"activation": "gelu_tanh", "norm": "layer", "position": "learned"},
}


def read_decoder(gguf: GGUF) -> tuple[DecoderConfig, dict[str, Blocks]]:
    """The configuration and the weights, by our names and in our order of rows (rotary positions turn half-split
    pairs). ConfigError for what we cannot honour, CheckpointError for tensors that do not fit."""
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ConfigError(f"{gguf.path}: {unknown('architecture', str(architecture), ARCHITECTURES)}")
    try:
        tensors = _split_fused(gguf.tensors)
        config = _config(architecture, gguf.metadata, tensors)
        weights = _ours(config, tensors)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{gguf.path}: {error}") from error
    if architecture == "llama":
        order = _half_split(config.heads, config.stack.head_width)
        for name, blocks in weights.items():
            if ".attention.q." in name or ".attention.k." in name:
                weights[name] = blocks.take(order[: blocks.shape[0]])
    return config, weights


def load_gguf(path: str | Path, dtype: "torch.dtype | None" = None) -> "Decoder":
    """The decoder in a GGUF file, its numbers as `dtype` (None: float32). At most one tensor is held twice."""
    import torch

    from qkv.models.decoder import Decoder
    from qkv.weights.load import load_module

    config, weights = read_decoder(open_gguf(path))
    tensors = {name: torch.from_numpy(dequantise(blocks)).to(dtype) for name, blocks in weights.items()}
    return load_module(lambda: Decoder(config), tensors)


def _config(architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Blocks]) -> DecoderConfig:
    prefix = f"{architecture}."
    given = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    for key, value in given.items():
        honoured = key in _FIELDS or key in _IGNORED or (np.ndim(value) == 0 and value in _FIXED.get(key, ()))
        if not honoured:
            raise ConfigError(f"{prefix}{shorten(key)}={shorten(repr(value))} is not supported")
    for key in _NEEDED:
        if key not in given:
            raise ConfigError(f"{prefix}{key} is missing; it must be there")
    if (token := tensors.get("token_embd.weight")) is None:
        raise CheckpointError("it has no tensor token_embd.weight; is it a decoder, and whole?")
    values = {ours: given[key] for key, ours in _FIELDS.items() if key in given} | ARCHITECTURES[architecture]
    values |= {
        "vocab": token.shape[0],
        "tied": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "out_bias": "blk.0.attn_output.bias" in tensors,
        "bias": "blk.0.ffn_up.bias" in tensors,
        "windows": [given.get("attention.sliding_window") or None],
    }
    if architecture == "gemma2":
        values |= _gemma2(values)
    config = build(DecoderConfig, values)
    width = config.stack.head_width
    for key in ("attention.value_length", *(["rope.dimension_count"] if architecture == "llama" else [])):
        if given.get(key, width) != width:
            raise ConfigError(f"{prefix}{key}={given[key]} is not supported; it must be the width of a head, {width}")
    if "rope_freqs.weight" in tensors:
        scaling = _scaling(config, dequantise(tensors["rope_freqs.weight"]))
        config = dataclasses.replace(config, rotary_scaling=scaling)
    return config


def _gemma2(values: Mapping[str, Any]) -> dict[str, Any]:
    """What converters leave out: every other layer has no window, and the 27B model, of 46 layers, its own scale."""
    large = {"scale": (values["dim"] / values["heads"]) ** -0.5} if values["layers"] == 46 else {}
    return {"windows": [*values["windows"], None], **large}


def _scaling(config: DecoderConfig, slower: npt.NDArray[np.float32]) -> RotaryScaling:
    """Converters write Llama 3's rotary scaling as what it comes to: how many times slower each pair turns. All of its
    models were pre-trained on 8,192 tokens; ConfigError if the numbers say anything else."""
    scaling = build(RotaryScaling, {"factor": float(slower.max()), "low": 1.0, "high": 4.0, "context": 8192})
    rates = config.rotary_base ** -(np.arange(0, config.stack.rotary_width, 2) / config.stack.rotary_width)
    turns = scaling.context * rates / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    if slower.shape != rates.shape or not np.allclose(slower, 1 / (kept + (1 - kept) / scaling.factor), rtol=1e-4):
        raise ConfigError("rope_freqs.weight is not Llama 3's rotary scaling, the only one that is supported")
    return scaling


def _half_split(heads: int, width: int) -> npt.NDArray[np.int64]:
    """Where our rows of q or k are in a "llama" file, whose converter has put the two rows of each rotary pair side by
    side: row (head, half, pair) is their row (head, pair, half)."""
    return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)


def _split_fused(tensors: Mapping[str, Blocks]) -> dict[str, Blocks]:
    """GPT-2's attn_qkv as three; everything else as it is."""
    found: dict[str, Blocks] = {}
    for name, blocks in tensors.items():
        if ".attn_qkv." not in name:
            found[name] = blocks
            continue
        third = blocks.shape[0] // 3
        for i, part in enumerate("qkv"):
            found[name.replace("attn_qkv", f"attn_{part}")] = blocks.take(slice(i * third, (i + 1) * third))
    return found


def _ours(config: DecoderConfig, tensors: Mapping[str, Blocks]) -> dict[str, Blocks]:
    """The tensors by our names. CheckpointError if they do not fit."""
    layout = {ours: _spelled(ours) for ours in config.tensors}
    given = {name: blocks.shape for name, blocks in tensors.items() if name != "rope_freqs.weight"}
    check_fit("its configuration", {layout[ours]: shape for ours, shape in config.tensors.items()}, given)
    return {ours: tensors[theirs] for ours, theirs in layout.items()}


_ENDS = {"token": "token_embd", "position": "position_embd", "stack.norm": "output_norm", "head": "output"}
_PARTS = {
    **{f"attention.{part}": f"attn_{part}" for part in ("q", "k", "v", "q_norm", "k_norm")},
    "attention.out": "attn_output",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm",
    **{f"ffn.{part}": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def _spelled(ours: str) -> str:
    """The file's name of one of our tensors."""
    name, _, kind = ours.rpartition(".")
    if not name.startswith("stack.blocks."):
        return f"{_ENDS[name]}.{kind}"
    layer, _, part = name.removeprefix("stack.blocks.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"
