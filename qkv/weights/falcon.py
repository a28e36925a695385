"""Falcon 7B, 11B, 40B and 180B (2311.16867) as transformers publishes them: attention and feed-forward read one input,
normed once (7B, 11B) or for each (40B, 180B), and few keys and values serve many queries.

Left out: falcon-rw, whose ALiBi is divided by the root of the head's width, and rounded to bfloat16.
"""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import ROTARY, DecoderFamily, by_heads, fields, widened
from qkv.weights.family import Joint
from qkv.weights.tables import Pair, Table, rows


def _table(config: DecoderConfig) -> Table:
    norms = [("attention_norm.{}", "input_layernorm.{}")]
    if not config.shared_norm:
        norms = [("(attention_norm|ffn_norm).{}", "(ln_attn|ln_mlp).{}")]
    layer: list[Pair] = [
        ("attention.(q|k|v).{}", "self_attention.query_key_value.{}", by_heads(config.heads, config.kv_heads)),
        ("attention.out.{}", "self_attention.dense.{}"),
        ("ffn.(up|down).{}", "mlp.dense_(h_to_4h|4h_to_h).{}"),
    ]
    ends = [
        ("token.weight", "transformer.word_embeddings.weight"),
        ("stack.norm.{}", "transformer.ln_f.{}"),
        ("head.weight", "lm_head.weight"),
    ]
    return Table([*ends, *rows([*norms, *layer], "stack.blocks.{}.", "transformer.h.{}.")])


def _read(published: Published) -> dict[str, Any]:
    """The newer layout (11B, 40B, 180B) says how many norms and keys there are; in the older they are one."""
    newer = published.get("new_decoder_architecture")
    norms = published.get("num_ln_in_parallel_attn") or 2
    return {
        **dict.fromkeys(("bias", "attention_bias", "out_bias"), published.get("bias", False)),
        "kv_heads": published.get("num_kv_heads") if newer else 1,
        "shared_norm": norms == 1 if newer else True,
    }


def _write(config: DecoderConfig) -> Published:
    newer = config.kv_heads != 1 or not config.shared_norm
    written = {"new_decoder_architecture": newer, "num_kv_heads": config.kv_heads, "bias": config.bias}
    return written | {"num_ln_in_parallel_attn": 2 - config.shared_norm if newer else None}


FALCON = DecoderFamily(
    architecture="FalconForCausalLM",
    keys=Keys(
        fields=fields(ffn_dim=None, activation="activation", norm_eps="layer_norm_epsilon"),
        fixed={"model_type": ("falcon",), "alibi": (False,), "multi_query": (True,), "parallel_attn": (True,)},
        absent={"vocab_size": 65_024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
        | {"max_position_embeddings": 2048, "activation": "gelu"},
    ),
    values={"position": "rotary", "parallel": True},
    table=_table,
    joints=(
        ROTARY,
        widened("ffn_hidden_size"),
        Joint({"new_decoder_architecture", "num_kv_heads", "num_ln_in_parallel_attn", "bias"}, _read, _write),
    ),
    aliases={"n_embed": "hidden_size"},
)
