"""OPT (2205.01068) as transformers publishes it: GPT-3's block with ReLU, and learned positions that begin at row 2.

OPT-350m alone norms after each residual, has no last norm, and embeds in a narrower space.
"""

from typing import Any

from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import DecoderFamily, fields
from qkv.weights.family import Joint, whole
from qkv.weights.tables import Table, rows

_ROWS = [
    ("(token|position).weight", "embed_(tokens|positions).weight"),
    ("(widen|narrow).weight", "project_(in|out).weight"),
    ("stack.norm.{}", "final_layer_norm.{}"),
    ("stack.blocks.{}.attention.(q|k|v|out).{}", "layers.{}.self_attn.(q|k|v|out)_proj.{}"),
    ("stack.blocks.{}.(attention_norm|ffn_norm).{}", "layers.{}.(self_attn|final)_layer_norm.{}"),
    ("stack.blocks.{}.ffn.(up|down).{}", "layers.{}.(fc1|fc2).{}"),
]
TABLE = Table([*rows(_ROWS, "", "model.decoder.", "decoder."), ("head.weight", "lm_head.weight")])


def _read(published: Published) -> dict[str, Any]:
    biased = published.get("enable_bias", True)
    narrow = published.get("word_embed_proj_dim")
    return {
        **dict.fromkeys(("bias", "attention_bias", "out_bias"), biased),
        "embed_dim": None if narrow == whole(published, "hidden_size") else narrow,
    }


_WIDTHS = Joint[DecoderConfig](
    {"enable_bias", "word_embed_proj_dim"},
    _read,
    lambda config: {"enable_bias": config.bias, "word_embed_proj_dim": config.embed_width},
)
OPT = DecoderFamily(
    architecture="OPTForCausalLM",
    keys=Keys(
        fields=fields(
            ffn_dim="ffn_dim", activation="activation_function", norm_eps=None, norm_first="do_layer_norm_before"
        ),
        fixed={"model_type": ("opt",)}
        | {"_remove_final_layer_norm": (False,), "layer_norm_elementwise_affine": (True,)},
        absent={"vocab_size": 50_272, "max_position_embeddings": 2048, "hidden_size": 768}
        | {"activation_function": "relu"},
    ),
    values={"position_offset": 2},
    table=lambda config: TABLE,
    joints=(_WIDTHS,),
)
