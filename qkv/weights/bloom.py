"""BLOOM (2211.05100) as transformers publishes it: ALiBi, a norm after the embeddings, q, k and v stacked by heads."""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys
from qkv.weights.decoder_family import DecoderFamily, by_heads
from qkv.weights.family import Published, whole
from qkv.weights.tables import Row, Table

_ROWS = [
    ("token.weight", "word_embeddings.weight"),
    ("norm.{}", "word_embeddings_layernorm.{}"),
    ("stack.norm.{}", "ln_f.{}"),
    ("stack.blocks.{}.attention_norm.{}", "h.{}.input_layernorm.{}"),
    ("stack.blocks.{}.attention.out.{}", "h.{}.self_attention.dense.{}"),
    ("stack.blocks.{}.ffn_norm.{}", "h.{}.post_attention_layernorm.{}"),
    ("stack.blocks.{}.ffn.up.{}", "h.{}.mlp.dense_h_to_4h.{}"),
    ("stack.blocks.{}.ffn.down.{}", "h.{}.mlp.dense_4h_to_h.{}"),
]
_QKV = tuple(f"stack.blocks.{{}}.attention.{part}.{{}}" for part in "qkv")


def _table(config: DecoderConfig) -> Table:
    """With the prefix that transformers writes, and without, as BigScience's own files have it."""
    qkv = "h.{}.self_attention.query_key_value.{}"
    return Table(
        [
            *(Row((ours,), f"transformer.{published}", (published,)) for ours, published in _ROWS),
            Row(_QKV, f"transformer.{qkv}", (qkv,), by_heads(config.heads)),
            Row(("head.weight",), "lm_head.weight"),
        ]
    )


def _read(published: Published) -> dict[str, Any]:
    return {"ffn_dim": 4 * whole(published, "hidden_size")}


BLOOM = DecoderFamily(
    architecture="BloomForCausalLM",
    keys=Keys(
        fields={
            "vocab_size": "vocab",
            "seq_length": "context",  # of training: ALiBi itself has no longest input
            "hidden_size": "dim",
            "n_layer": "layers",
            "n_head": "heads",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tied",
        },
        harmless={"slow_but_exact", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id"}
        | {"masked_softmax_fusion", "attention_softmax_in_fp32", "bias_dropout_fusion"},
        fixed={"model_type": ("bloom",), "apply_residual_connection_post_layernorm": (False,)},
        absent={"vocab_size": 250_880, "seq_length": 2048, "hidden_size": 64, "n_layer": 2, "n_head": 8},
    ),
    values={"position": "alibi", "embed_norm": True, "activation": "gelu_tanh"},
    table=_table,
    read=_read,
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
)
