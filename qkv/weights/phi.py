"""Phi-1, 1.5 and 2 (2306.11644, 2309.05463) as transformers publishes them: half of each head turns, attention and
feed-forward read one input, normed once, and the head has a bias."""

from qkv.published import Keys
from qkv.weights.decoder_family import DecoderFamily, fields, partly_rotary
from qkv.weights.tables import Table, rows

_LAYER = [
    ("attention.(q|k|v).{}", "self_attn.(q|k|v)_proj.{}"),
    ("attention.out.{}", "self_attn.dense.{}"),
    ("attention_norm.{}", "input_layernorm.{}"),
    ("ffn.(up|down).{}", "mlp.(fc1|fc2).{}"),
]
TABLE = Table(
    [
        ("token.weight", "model.embed_tokens.weight"),
        ("stack.norm.{}", "model.final_layernorm.{}"),
        ("head.{}", "lm_head.{}"),
        *rows(_LAYER, "stack.blocks.{}.", "model.layers.{}."),
    ],
    ["model.layers.{}.self_attn.rotary_emb.inv_freq"],
)
PHI = DecoderFamily(
    architecture="PhiForCausalLM",
    keys=Keys(
        fields=fields(kv_heads="num_key_value_heads"),
        fixed={"model_type": ("phi",), "qk_layernorm": (False,)},
        absent={"vocab_size": 51_200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
        | {"num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    ),
    values={"position": "rotary", "parallel": True, "shared_norm": True, "head_bias": True},
    table=lambda config: TABLE,
    joints=(partly_rotary(0.5),),
)
