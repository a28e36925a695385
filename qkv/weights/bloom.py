"""BLOOM (2211.05100) as transformers publishes it: ALiBi, a norm after the embeddings, q, k and v stacked by heads."""

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys
from qkv.weights.decoder_family import DecoderFamily, by_heads, fields
from qkv.weights.family import Joint, whole
from qkv.weights.tables import Pair, Table, rows


def _table(config: DecoderConfig) -> Table:
    """With the prefix that transformers writes, and without, as BigScience's own files have it."""
    ends = [
        ("token.weight", "word_embeddings.weight"),
        ("norm.{}", "word_embeddings_layernorm.{}"),
        ("stack.norm.{}", "ln_f.{}"),
    ]
    layer: list[Pair] = [
        ("(attention_norm|ffn_norm).{}", "(input|post_attention)_layernorm.{}"),
        ("attention.(q|k|v).{}", "self_attention.query_key_value.{}", by_heads(config.heads)),
        ("attention.out.{}", "self_attention.dense.{}"),
        ("ffn.(up|down).{}", "mlp.dense_(h_to_4h|4h_to_h).{}"),
    ]
    named = rows(ends, "", "transformer.", "") + rows(layer, "stack.blocks.{}.", "transformer.h.{}.", "h.{}.")
    return Table([*named, ("head.weight", "lm_head.weight")])


BLOOM = DecoderFamily(
    architecture="BloomForCausalLM",
    keys=Keys(
        fields=fields(  # seq_length is of training: ALiBi itself has no longest input
            context="seq_length",
            layers="n_layer",
            heads="n_head",
            ffn_dim=None,
            activation=None,
            norm_eps="layer_norm_epsilon",
        ),
        harmless={"slow_but_exact", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id"}
        | {"masked_softmax_fusion", "attention_softmax_in_fp32", "bias_dropout_fusion"},
        fixed={"model_type": ("bloom",), "apply_residual_connection_post_layernorm": (False,)},
        absent={"vocab_size": 250_880, "seq_length": 2048, "hidden_size": 64, "n_layer": 2, "n_head": 8},
    ),
    values={"position": "alibi", "embed_norm": True, "activation": "gelu_tanh"},
    table=_table,
    joints=(Joint((), lambda published: {"ffn_dim": 4 * whole(published, "hidden_size")}),),
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
)
