"""The Llama line: Llama 2 and 3, SmolLM2, Mistral, Qwen 2.5 and Qwen 3, as transformers publishes them.

Llama 2 (2307.09288), Llama 3 (2407.21783), Mistral 7B (2310.06825), Qwen2.5 (2412.15115), Qwen3 (2505.09388): one
block (RMS norm, rotary positions, gated SiLU, grouped keys) and one naming; they differ in biases, windows and norms.
"""

from qkv.config import convert
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import (
    ROTARY,
    DecoderFamily,
    fields,
    windowed,
)
from qkv.weights.family import REFUSED, Joint
from qkv.weights.tables import Table, rows

ENDS = [
    ("token.weight", "model.embed_tokens.weight"),
    ("stack.norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
]
LAYER = [
    ("attention.(q|k|v|out).{}", "self_attn.(q|k|v|o)_proj.{}"),
    ("attention.(q|k)_norm.weight", "self_attn.(q|k)_norm.weight"),
    ("ffn.(gate|up|down).{}", "mlp.(gate|up|down)_proj.{}"),
]


def table(*norms: tuple[str, str]) -> Table:
    """The line's names, with a family's own for the norms of a layer."""
    layer = rows([*norms, *LAYER], "stack.blocks.{}.", "model.layers.{}.")
    return Table([*ENDS, *layer], ["model.layers.{}.self_attn.rotary_emb.inv_freq"])


TABLE = table(("(attention_norm|ffn_norm).weight", "(input|post_attention)_layernorm.weight"))

VALUES = {
    **{"activation": "silu", "gated": True, "norm": "rms", "position": "rotary"},
    **dict.fromkeys(("bias", "attention_bias", "out_bias"), False),
}
WORDS = {"norm_eps": "rms_norm_eps", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_SIZES = {  # what transformers takes for keys that a file leaves out
    **{"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
}
_QWEN_SIZES = _SIZES | {
    **{"vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768},
    **{"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
}


def _keys(name: str, absent: Published, **more: str) -> Keys:
    return Keys(fields=fields(**WORDS, **more), fixed={"model_type": (name,)}, absent=absent)


# attention_bias speaks of all four projections.
BIASED = Joint[DecoderConfig](
    {"attention_bias"},
    lambda published: dict.fromkeys(("attention_bias", "out_bias"), published.get("attention_bias", False)),
    lambda config: {"attention_bias": config.attention_bias},
)
_WINDOW = Joint[DecoderConfig](
    {"sliding_window"},
    lambda published: {"windows": [published["sliding_window"]]},
    lambda config: {"sliding_window": config.windows[0]},
)


def _later(published: Published, layers: int) -> list[str]:
    start = convert(int, published["max_window_layers"], "max_window_layers")
    return ["sliding_attention" if i >= start else "full_attention" for i in range(layers)]


_LAYERED = windowed(_later, switch="use_sliding_window")
LLAMA = DecoderFamily(
    architecture="LlamaForCausalLM",
    keys=_keys("llama", _SIZES, bias="mlp_bias"),
    values=VALUES,
    table=lambda config: TABLE,
    joints=(ROTARY, BIASED),
    # It has no windows; transformers would leave these keys unread.
    refused=REFUSED | {"sliding_window": (None,), "use_sliding_window": (None, False), "layer_types": (None,)},
)
MISTRAL = DecoderFamily(
    architecture="MistralForCausalLM",
    keys=_keys(
        "mistral",
        {**_SIZES, "intermediate_size": 14_336, "max_position_embeddings": 131_072}
        | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    values=VALUES,
    table=lambda config: TABLE,
    joints=(ROTARY, _WINDOW),
    refused=REFUSED | {"layer_types": (None,)},
)
QWEN2 = DecoderFamily(
    architecture="Qwen2ForCausalLM",
    keys=_keys("qwen2", _QWEN_SIZES),
    values=VALUES | {"attention_bias": True},
    table=lambda config: TABLE,
    joints=(ROTARY, _LAYERED),
)
QWEN3 = DecoderFamily(
    architecture="Qwen3ForCausalLM",
    keys=_keys("qwen3", _QWEN_SIZES | {"head_dim": 128}),
    values=VALUES | {"qk_norm": True},
    table=lambda config: TABLE,
    joints=(ROTARY, BIASED, _LAYERED),
)
