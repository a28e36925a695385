"""The Llama line: Llama 2 and 3, SmolLM2, Mistral, Qwen 2.5 and Qwen 3, as transformers publishes them.

Llama 2 (2307.09288), Llama 3 (2407.21783), Mistral 7B (2310.06825), Qwen2.5 (2412.15115), Qwen3 (2505.09388): one
block (RMS norm, rotary positions, gated SiLU, grouped keys) and one naming; they differ in biases, windows and norms.
"""

from collections.abc import Collection
from typing import Any

from qkv.config import convert
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys
from qkv.weights.decoder_family import FIELDS, ROTARY, DecoderFamily, layer_windows, read_rotary, write_rotary
from qkv.weights.family import Published, whole
from qkv.weights.tables import Table

TABLE = Table(
    [
        ("token.weight", "model.embed_tokens.weight"),
        ("stack.norm.weight", "model.norm.weight"),
        ("head.weight", "lm_head.weight"),
        ("stack.blocks.{}.attention_norm.weight", "model.layers.{}.input_layernorm.weight"),
        ("stack.blocks.{}.attention.q.{}", "model.layers.{}.self_attn.q_proj.{}"),
        ("stack.blocks.{}.attention.k.{}", "model.layers.{}.self_attn.k_proj.{}"),
        ("stack.blocks.{}.attention.v.{}", "model.layers.{}.self_attn.v_proj.{}"),
        ("stack.blocks.{}.attention.out.{}", "model.layers.{}.self_attn.o_proj.{}"),
        ("stack.blocks.{}.attention.q_norm.weight", "model.layers.{}.self_attn.q_norm.weight"),
        ("stack.blocks.{}.attention.k_norm.weight", "model.layers.{}.self_attn.k_norm.weight"),
        ("stack.blocks.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
        ("stack.blocks.{}.ffn.gate.{}", "model.layers.{}.mlp.gate_proj.{}"),
        ("stack.blocks.{}.ffn.up.{}", "model.layers.{}.mlp.up_proj.{}"),
        ("stack.blocks.{}.ffn.down.{}", "model.layers.{}.mlp.down_proj.{}"),
    ],
    ignored=["model.layers.{}.self_attn.rotary_emb.inv_freq"],
)

VALUES = {
    "activation": "silu",
    "gated": True,
    "bias": False,
    "attention_bias": False,
    "out_bias": False,
    "norm": "rms",
    "position": "rotary",
}
LLAMA_FIELDS = {key: ours for key, ours in FIELDS.items() if ours != "norm_eps"} | {
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
}
_SIZES = {  # what transformers takes for keys that a file leaves out
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN_SIZES = _SIZES | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
# Llama has no windows; transformers would leave these keys unread.
_GLOBAL = {"sliding_window": (None,), "use_sliding_window": (None, False), "layer_types": (None,)}


_LAYERED = {"use_sliding_window", "layer_types"}


def _keys(name: str, absent: Published, read: Collection[str] = (), **more: str) -> Keys:
    return Keys(fields=LLAMA_FIELDS | more, read={*ROTARY, *read}, fixed={"model_type": (name,)}, absent=absent)


def read_biased(published: Published) -> dict[str, Any]:
    """attention_bias speaks of all four projections."""
    biased = published.get("attention_bias", False)
    return read_rotary(published) | {"attention_bias": biased, "out_bias": biased}


def write_biased(config: DecoderConfig) -> Published:
    return {**write_rotary(config), "attention_bias": config.attention_bias}


def _read_mistral(published: Published) -> dict[str, Any]:
    return read_rotary(published) | {"windows": [published["sliding_window"]]}


def _write_mistral(config: DecoderConfig) -> Published:
    return {**write_rotary(config), "sliding_window": config.windows[0]}


def _read_layered(published: Published) -> dict[str, Any]:
    """Qwen's windows: layer by layer (layer_types), or in the layers from max_window_layers on."""
    layers = whole(published, "num_hidden_layers", most=1000)
    if published.get("use_sliding_window"):
        window = whole(published, "sliding_window", most=1_000_000_000)
    else:
        window = None
    kinds = published.get("layer_types")
    if kinds is None:
        start = convert(int, published["max_window_layers"], "max_window_layers")
        return {"windows": [window if i >= start else None for i in range(layers)]}
    windows = {"full_attention": None} | ({} if window is None else {"sliding_attention": window})
    return {"windows": layer_windows(kinds, windows, layers, "layer_types")}


def _write_layered(config: DecoderConfig) -> Published:
    windows = config.stack.layer_windows
    width = next((window for window in windows if window is not None), None)
    return {
        "use_sliding_window": width is not None,
        "sliding_window": width,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


LLAMA = DecoderFamily(
    architecture="LlamaForCausalLM",
    keys=_keys("llama", _SIZES, {"attention_bias"}, mlp_bias="bias"),
    values=VALUES,
    table=lambda config: TABLE,
    read=read_biased,
    write=write_biased,
    refused=_GLOBAL,
)
MISTRAL = DecoderFamily(
    architecture="MistralForCausalLM",
    keys=_keys(
        "mistral",
        _SIZES
        | {"intermediate_size": 14_336, "max_position_embeddings": 131_072, "num_key_value_heads": 8}
        | {"sliding_window": 4096},
    ),
    values=VALUES,
    table=lambda config: TABLE,
    read=_read_mistral,
    write=_write_mistral,
    refused={"layer_types": (None,)},
)
QWEN2 = DecoderFamily(
    architecture="Qwen2ForCausalLM",
    keys=_keys("qwen2", _QWEN_SIZES, _LAYERED),
    values=VALUES | {"attention_bias": True},
    table=lambda config: TABLE,
    read=lambda published: {**read_rotary(published), **_read_layered(published)},
    write=lambda config: {**write_rotary(config), **_write_layered(config)},
)
QWEN3 = DecoderFamily(
    architecture="Qwen3ForCausalLM",
    keys=_keys("qwen3", _QWEN_SIZES | {"head_dim": 128}, {"attention_bias", *_LAYERED}),
    values=VALUES | {"qk_norm": True},
    table=lambda config: TABLE,
    read=lambda published: {**read_biased(published), **_read_layered(published)},
    write=lambda config: {**write_biased(config), **_write_layered(config)},
)
