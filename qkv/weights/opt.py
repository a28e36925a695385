"""OPT (2205.01068) as transformers publishes it: GPT-3's block with ReLU, and learned positions that begin at row 2.

OPT-350m alone norms after each residual, has no last norm, and embeds in a narrower space.
"""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys
from qkv.weights.decoder_family import DecoderFamily
from qkv.weights.family import Published, whole
from qkv.weights.tables import Row, Table

_ROWS = [
    ("token.weight", "embed_tokens.weight"),
    ("position.weight", "embed_positions.weight"),
    ("widen.weight", "project_in.weight"),
    ("narrow.weight", "project_out.weight"),
    ("stack.norm.{}", "final_layer_norm.{}"),
    *((f"stack.blocks.{{}}.attention.{part}.{{}}", f"layers.{{}}.self_attn.{part}_proj.{{}}") for part in "qkv"),
    ("stack.blocks.{}.attention.out.{}", "layers.{}.self_attn.out_proj.{}"),
    ("stack.blocks.{}.attention_norm.{}", "layers.{}.self_attn_layer_norm.{}"),
    ("stack.blocks.{}.ffn.up.{}", "layers.{}.fc1.{}"),
    ("stack.blocks.{}.ffn.down.{}", "layers.{}.fc2.{}"),
    ("stack.blocks.{}.ffn_norm.{}", "layers.{}.final_layer_norm.{}"),
]
TABLE = Table(
    [
        *(Row((ours,), f"model.decoder.{theirs}", (f"decoder.{theirs}",)) for ours, theirs in _ROWS),
        ("head.weight", "lm_head.weight"),
    ]
)


def _read(published: Published) -> dict[str, Any]:
    biased = published.get("enable_bias", True)
    narrow = published.get("word_embed_proj_dim")
    return {
        **dict.fromkeys(("bias", "attention_bias", "out_bias"), biased),
        "embed_dim": None if narrow == whole(published, "hidden_size") else narrow,
    }


def _write(config: DecoderConfig) -> Published:
    return {"enable_bias": config.bias, "word_embed_proj_dim": config.embed_width}


OPT = DecoderFamily(
    architecture="OPTForCausalLM",
    keys=Keys(
        fields={
            **{"vocab_size": "vocab", "max_position_embeddings": "context", "hidden_size": "dim"},
            **{"num_hidden_layers": "layers", "num_attention_heads": "heads", "ffn_dim": "ffn_dim"},
            **{"activation_function": "activation", "do_layer_norm_before": "norm_first"},
            "tie_word_embeddings": "tied",
        },
        read={"enable_bias", "word_embed_proj_dim"},
        fixed={
            "model_type": ("opt",),
            "_remove_final_layer_norm": (False,),
            "layer_norm_elementwise_affine": (True,),
        },
        absent={
            "vocab_size": 50_272,
            "max_position_embeddings": 2048,
            "hidden_size": 768,
            "activation_function": "relu",
        },
    ),
    values={"position_offset": 2},
    table=lambda config: TABLE,
    read=_read,
    write=_write,
)
