"""GPT-NeoX-20B (2204.06745) and Pythia (2304.01373) as transformers publishes them: a quarter of each head turns,
attention and feed-forward read the same input, q, k and v are stacked by heads."""

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import ROTARY, DecoderFamily, by_heads, fields, partly_rotary
from qkv.weights.tables import Pair, Row, Table, rows


def _table(config: DecoderConfig) -> Table:
    layer: list[Pair] = [
        ("(attention_norm|ffn_norm).{}", "(input|post_attention)_layernorm.{}"),
        ("attention.(q|k|v).{}", "attention.query_key_value.{}", by_heads(config.heads)),
        ("attention.out.{}", "attention.dense.{}"),
        ("ffn.(up|down).{}", "mlp.dense_(h_to_4h|4h_to_h).{}"),
    ]
    return Table(
        [
            ("token.weight", "gpt_neox.embed_in.weight"),
            ("stack.norm.{}", "gpt_neox.final_layer_norm.{}"),
            Row(("head.weight",), "embed_out.weight", ("lm_head.weight",)),
            *rows(layer, "stack.blocks.{}.", "gpt_neox.layers.{}."),
        ],
        [f"gpt_neox.layers.{{}}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")],
    )


def _write(config: DecoderConfig) -> Published:
    rotary = ROTARY.write(config)
    share = config.stack.rotary_width / config.stack.head_width
    return {"rotary_emb_base": rotary["rope_theta"], "rotary_pct": share, "rope_scaling": rotary["rope_scaling"]}


NEOX = DecoderFamily(
    architecture="GPTNeoXForCausalLM",
    keys=Keys(
        fields=fields(parallel="use_parallel_residual"),
        harmless={"is_decoder"},
        fixed={"model_type": ("gpt_neox",), "attention_bias": (True,)},
        absent={"vocab_size": 50_432, "max_position_embeddings": 2048, "hidden_size": 6144, "num_hidden_layers": 44}
        | {"num_attention_heads": 64, "intermediate_size": 24_576},
    ),
    values={"activation": "gelu", "position": "rotary", "parallel": True, "tied": False},
    table=_table,
    joints=(partly_rotary(0.25, _write),),
    aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
)
