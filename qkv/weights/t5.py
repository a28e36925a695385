"""T5 (1910.10683) as transformers publishes it: the first release, 1.1, and flan's (2210.11416).

1.1 and flan have gated layers and a head of their own. Which head a file has, its tensors say: transformers 5 writes
that all are tied, and keeps in `scale_decoder_outputs` what `tie_word_embeddings` once said.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from qkv.config import convert
from qkv.models.translator_config import TranslatorConfig
from qkv.published import Keys
from qkv.weights.family import Family, Published, drop_copies, same_numbers
from qkv.weights.tables import Table


def _layer(side: str, place: int, kind: str, names: dict[str, str], norm: str) -> list[tuple[str, str]]:
    """Rows of one sublayer, and of the norm before it."""
    block, layer = f"{side}.blocks.{{}}", f"{side}.block.{{}}.layer.{place}"
    rows = [(f"{block}.{ours}.weight", f"{layer}.{kind}.{theirs}.weight") for ours, theirs in names.items()]
    return [*rows, (f"{block}.{norm}.weight", f"{layer}.layer_norm.weight")]


def _attention(name: str) -> dict[str, str]:
    return {f"{name}.{ours}": theirs for ours, theirs in {"q": "q", "k": "k", "v": "v", "out": "o"}.items()}


def _table(config: TranslatorConfig) -> Table:
    up = {"ffn.gate": "wi_0", "ffn.up": "wi_1"} if config.gated else {"ffn.up": "wi"}
    rows = [("token.weight", "shared.weight"), ("head.weight", "lm_head.weight")]
    rows += _layer("decoder", 1, "EncDecAttention", _attention("memory_attention"), "memory_norm")
    for side, place in (("encoder", 1), ("decoder", 2)):
        attention = f"{side}.block.0.layer.0.SelfAttention"
        rows += [
            (f"copies.{side}", f"{side}.embed_tokens.weight"),
            (f"{side}.position.weight", f"{attention}.relative_attention_bias.weight"),
            (f"{side}.norm.weight", f"{side}.final_layer_norm.weight"),
            *_layer(side, 0, "SelfAttention", _attention("attention"), "attention_norm"),
            *_layer(side, place, "DenseReluDense", up | {"ffn.down": "wo"}, "ffn_norm"),
        ]
    return Table(rows, ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"])


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
        fields={
            **{"vocab_size": "vocab", "decoder_start_token_id": "start", "eos_token_id": "end", "pad_token_id": "pad"},
            **{"n_positions": "context", "d_model": "dim", "d_kv": "head_dim", "d_ff": "ffn_dim", "num_heads": "heads"},
            **{"num_layers": "layers", "num_decoder_layers": "decoder_layers", "layer_norm_epsilon": "norm_eps"},
            **{"relative_attention_num_buckets": "relative_buckets", "dropout_rate": "dropout"},
            "relative_attention_max_distance": "relative_farthest",
        },
        read={"scale_decoder_outputs", "tie_word_embeddings"},
        harmless={"is_decoder", "dense_act_fn", "is_gated_act"},  # the last two are feed_forward_proj again
        fixed={"model_type": ("t5",), "is_encoder_decoder": (True,)},
        absent={
            **{"vocab_size": 32_128, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
            **{"n_positions": 512, "d_kv": 64, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu"},
        },
    ),
    values={
        **{
            "norm": "rms",
            "norm_first": True,
            "scale": 1.0,
            "position": "relative",
            "scaled": False,
            "head_bias": False,
        },
        **dict.fromkeys(("bias", "attention_bias", "out_bias"), False),
    },
    table=_table,
    read=_read,
    write=_write,
    tidy=lambda config: replace(config, decoder_layers=config.decoder.layers),
    settle=_settle,
    unsaid=lambda config: {"tied": config.tied},
)
