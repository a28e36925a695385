"""T5 (1910.10683) as transformers publishes it: the first release, 1.1, and flan's (2210.11416).

1.1 and flan have gated layers and a head of their own. Which head a file has, its tensors say: transformers 5 writes
that all are tied, and keeps in `scale_decoder_outputs` what `tie_word_embeddings` once said.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from qkv.config import convert
from qkv.models.translator_config import TranslatorConfig
from qkv.published import Keys, Published
from qkv.weights.configs import spelled
from qkv.weights.family import Family, Joint, drop_copies, same_numbers
from qkv.weights.tables import Table, rows

_ATTENTION = [
    ("attention.(q|k|v|out).weight", "SelfAttention.(q|k|v|o).weight"),
    ("attention_norm.weight", "layer_norm.weight"),
]
_MEMORY = [
    ("memory_attention.(q|k|v|out).weight", "EncDecAttention.(q|k|v|o).weight"),
    ("memory_norm.weight", "layer_norm.weight"),
]
_FFN = [("ffn.down.weight", "DenseReluDense.wo.weight"), ("ffn_norm.weight", "layer_norm.weight")]
_SIDES = [
    ("copies.(encoder|decoder)", "(encoder|decoder).embed_tokens.weight"),
    ("(encoder|decoder).norm.weight", "(encoder|decoder).final_layer_norm.weight"),
]


def _table(config: TranslatorConfig) -> Table:
    up = ("ffn.(gate|up).weight", "(wi_0|wi_1).weight") if config.gated else ("ffn.up.weight", "wi.weight")
    found = [*rows([("(token|head).weight", "(shared|lm_head).weight"), *_SIDES])]
    for side, sublayers in (("encoder", (_ATTENTION, _FFN)), ("decoder", (_ATTENTION, _MEMORY, _FFN))):
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += rows([("position.weight", bias)], f"{side}.", f"{side}.")
        for place, pairs in enumerate(sublayers):
            layer = f"{side}.block.{{}}.layer.{place}."
            found += rows(pairs, f"{side}.blocks.{{}}.", layer)
            found += rows([up], f"{side}.blocks.{{}}.", f"{layer}DenseReluDense.") if pairs is _FFN else []
    return Table(found, ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"])


def _read(published: Published) -> dict[str, Any]:
    spelled: str = convert(str, published["feed_forward_proj"], "feed_forward_proj")
    gated, activation = spelled.startswith("gated-"), spelled.removeprefix("gated-")
    scaled = published.get("scale_decoder_outputs", published.get("tie_word_embeddings") is not False)
    return {
        "gated": gated,
        "activation": "gelu_tanh" if spelled == "gated-gelu" else activation,
        **dict.fromkeys(("tied", "head_scaled"), scaled),
    }


def _write(config: TranslatorConfig) -> Published:
    activation = {"gelu_tanh": "gelu" if config.gated else "gelu_new"}.get(config.activation, config.activation)
    return {
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
        **dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), config.head_scaled),
    }


def _settle(config: TranslatorConfig, tensors: dict[str, Tensor]) -> TranslatorConfig:
    why = "{} is not the shared embedding; separate vocabularies are not supported"
    drop_copies(tensors, {f"copies.{side}": "token.weight" for side in ("encoder", "decoder")}, why)
    head = tensors.get("head.weight")
    tied = head is None or same_numbers(head, tensors.setdefault("token.weight", head))
    if tied:
        tensors.pop("head.weight", None)
    return replace(config, tied=tied)


T5 = Family(
    kind=TranslatorConfig,
    architecture="T5ForConditionalGeneration",
    keys=Keys(
        fields=spelled(
            **{"context": "n_positions", "dim": "d_model", "layers": "num_layers", "heads": "num_heads"},
            **{"ffn_dim": "d_ff", "activation": None, "norm_eps": "layer_norm_epsilon", "dropout": "dropout_rate"},
            **{"start": "decoder_start_token_id", "end": "eos_token_id", "pad": "pad_token_id", "head_dim": "d_kv"},
            **{"decoder_layers": "num_decoder_layers", "relative_buckets": "relative_attention_num_buckets"},
            relative_farthest="relative_attention_max_distance",
        ),
        harmless={"is_decoder", "dense_act_fn", "is_gated_act"},  # the last two are feed_forward_proj again
        fixed={"model_type": ("t5",), "is_encoder_decoder": (True,)},
        absent={
            **{"vocab_size": 32_128, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
            **{"n_positions": 512, "d_kv": 64, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu"},
        },
    ),
    values={
        **{"norm": "rms", "norm_first": True, "scale": 1.0, "position": "relative"},
        **dict.fromkeys(("scaled", "head_bias", "bias", "attention_bias", "out_bias"), False),
    },
    table=_table,
    joints=(Joint({"scale_decoder_outputs", "tie_word_embeddings"}, _read, _write),),
    tidy=lambda config: replace(config, decoder_layers=config.decoder.layers),
    settle=_settle,
    unsaid=lambda config: {"tied": config.tied},
)
