"""Gemma (2403.08295) and Gemma 2 (2408.00118) as transformers publishes them: the Llama line's naming, norms that store
their gain less one, scaled embeddings. Gemma 2 norms each layer's output too, caps scores and logits, and gives every
other layer a window."""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import ROTARY, DecoderFamily, fields, windowed
from qkv.weights.family import Joint, whole
from qkv.weights.llama import BIASED, TABLE, VALUES, WORDS, table

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
    return {"activation": "gelu_tanh"} if published["hidden_act"] == "gelu" else {}


def _activation(config: DecoderConfig) -> str:
    return "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation


def _read_caps(published: Published) -> dict[str, Any]:
    scale = whole(published, "query_pre_attn_scalar") ** -0.5
    return {"scale": scale, **{ours: published.get(key) for key, ours in _CAPS.items()}}


def _write_caps(config: DecoderConfig) -> Published:
    scale = config.stack.head_width**-0.5 if config.scale is None else config.scale
    caps = {key: getattr(config, ours) for key, ours in _CAPS.items()}
    return caps | {"hidden_activation": _activation(config), "query_pre_attn_scalar": round(scale**-2)}


def _alternate(published: Published, layers: int) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]


GEMMA = DecoderFamily(
    architecture="GemmaForCausalLM",
    keys=Keys(
        fields=fields(**WORDS),
        fixed={"model_type": ("gemma",), "use_bidirectional_attention": (None, False)},
        absent=_ABSENT | {"hidden_act": "gelu_tanh"},
    ),
    values=_VALUES,
    table=lambda config: TABLE,
    joints=(ROTARY, BIASED, Joint((), _read_gemma, lambda config: {"hidden_act": _activation(config)})),
)
GEMMA2 = DecoderFamily(
    architecture="Gemma2ForCausalLM",
    keys=Keys(
        fields=fields(activation="hidden_activation", **WORDS),
        fixed={"model_type": ("gemma2",), "use_bidirectional_attention": (None, False)},
        absent=_ABSENT
        | {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "sliding_window": 4096, "query_pre_attn_scalar": 256}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    values=_VALUES | {"post_norm": True},
    table=lambda config: GEMMA2_TABLE,
    joints=(ROTARY, BIASED, windowed(_alternate, absent=4096), Joint((), _read_caps, _write_caps)),
)
