"""Gemma (2403.08295) and Gemma 2 (2408.00118) as transformers publishes them: the Llama line's naming, norms that store
their gain less one, scaled embeddings. Gemma 2 norms each layer's output too, caps scores and logits, and gives every
other layer a window."""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import ROTARY, DecoderFamily, fields, layer_windows, write_windows
from qkv.weights.family import whole
from qkv.weights.llama import TABLE, VALUES, WORDS, read_biased, table, write_biased

GEMMA2_TABLE = table(
    ("(attention|ffn)_norm.weight", "(input|pre_feedforward)_layernorm.weight"),
    ("(attention|ffn)_post_norm.weight", "post_(attention|feedforward)_layernorm.weight"),
)
_VALUES = VALUES | {"norm": "rms_unit_offset", "scaled": True, "activation": "gelu_tanh"}
_ABSENT = {
    **{"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192},
    **{"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}
_CAPS = {"attn_logit_softcapping": "score_cap", "final_logit_softcapping": "logit_cap"}


def _read_gemma(published: Published) -> dict[str, Any]:
    """Files of the first release say gelu and mean its approximation."""
    legacy = {"activation": "gelu_tanh"} if published["hidden_act"] == "gelu" else {}
    return {**read_biased(published), **legacy}


def _activation(config: DecoderConfig) -> str:
    return "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation


def _read_gemma2(published: Published) -> dict[str, Any]:
    layers = whole(published, "num_hidden_layers", most=1000)
    kinds = published.get("layer_types")
    if kinds is None:
        kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    windows = {"sliding_attention": published.get("sliding_window"), "full_attention": None}
    return {
        **read_biased(published),
        **{ours: published.get(key) for key, ours in _CAPS.items()},
        "scale": whole(published, "query_pre_attn_scalar") ** -0.5,
        "windows": layer_windows(kinds, windows, layers, "layer_types"),
    }


def _write_gemma2(config: DecoderConfig) -> Published:
    scale = config.stack.head_width**-0.5 if config.scale is None else config.scale
    return {
        **write_biased(config),
        "hidden_activation": _activation(config),
        **{key: getattr(config, ours) for key, ours in _CAPS.items()},
        "query_pre_attn_scalar": round(scale**-2),
        **write_windows(config, 4096),
    }


GEMMA = DecoderFamily(
    architecture="GemmaForCausalLM",
    keys=Keys(
        fields=fields(**WORDS),
        read={*ROTARY, "attention_bias"},
        fixed={"model_type": ("gemma",), "use_bidirectional_attention": (None, False)},
        absent=_ABSENT | {"hidden_act": "gelu_tanh"},
    ),
    values=_VALUES,
    table=lambda config: TABLE,
    read=_read_gemma,
    write=lambda config: {**write_biased(config), "hidden_act": _activation(config)},
)
GEMMA2 = DecoderFamily(
    architecture="Gemma2ForCausalLM",
    keys=Keys(
        fields=fields(activation="hidden_activation", **WORDS),
        read={*ROTARY, "attention_bias", "layer_types"},
        fixed={"model_type": ("gemma2",), "use_bidirectional_attention": (None, False)},
        absent=_ABSENT
        | {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "sliding_window": 4096, "query_pre_attn_scalar": 256}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    values=_VALUES | {"post_norm": True},
    table=lambda config: GEMMA2_TABLE,
    read=_read_gemma2,
    write=_write_gemma2,
)
