"""GPT-2 and GPT-Neo as transformers publishes them.

GPT-2: "Language Models are Unsupervised Multitask Learners"; its projections are stored (in, out), q, k and v as one.
GPT-Neo (EleutherAI, 2021) alternates global and local layers as GPT-3 does, and has no scale on its scores. GPT-3
itself was never published; its sizes are in models/presets.py.
"""

from typing import Any

import torch

from qkv.errors import ConfigError, shorten
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys, Published
from qkv.weights.decoder_family import DecoderFamily, fields, layer_windows, widened
from qkv.weights.family import Joint, whole
from qkv.weights.tables import Pair, Table, Transform, fused, rows, transposed

_ENDS: list[Pair] = [
    ("(token|position).weight", "(wte|wpe).weight"),
    ("stack.norm.{}", "ln_f.{}"),
    ("stack.blocks.{}.(attention_norm|ffn_norm).{}", "h.{}.(ln_1|ln_2).{}"),
]
_FUSED = Transform(lambda tensor: tensor.t().chunk(3), lambda ours: torch.cat(list(ours)).t())
_GPT2_LAYER: list[Pair] = [
    ("attention.(q|k|v).weight", "attn.c_attn.weight", _FUSED),
    ("attention.(q|k|v).bias", "attn.c_attn.bias", fused(3)),
    *(
        row
        for ours, published in (("attention.out", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj"))
        for row in ((f"{ours}.weight", f"{published}.weight", transposed), (f"{ours}.bias", f"{published}.bias"))
    ),
]
_NEO_LAYER: list[Pair] = [
    ("attention.(q|k|v).weight", "attn.attention.(q|k|v)_proj.weight"),
    ("attention.out.{}", "attn.attention.out_proj.{}"),
    ("ffn.(up|down).{}", "mlp.(c_fc|c_proj).{}"),
]


def _table(layer: list[Pair], masked: str) -> Table:
    """With the prefix that transformers writes, and without, as OpenAI's own files have it; their masks dropped."""
    named = rows(_ENDS, "", "transformer.", "") + rows(layer, "stack.blocks.{}.", "transformer.h.{}.", "h.{}.")
    masks = [f"{prefix}h.{{}}.{masked}.{mask}" for prefix in ("", "transformer.") for mask in ("bias", "masked_bias")]
    return Table([*named, ("head.weight", "lm_head.weight")], masks)


GPT2_TABLE, NEO_TABLE = _table(_GPT2_LAYER, "attn"), _table(_NEO_LAYER, "attn.attention")


def _read_neo(published: Published) -> dict[str, Any]:
    """attention_types, such as [[["global", "local"], 12]], layer by layer."""
    layers = whole(published, "num_layers", most=1000)
    types = published["attention_types"]
    kinds: list[str] = []
    for entry in types if isinstance(types, list) else [types]:
        match entry:
            case [[*names], int(times)] if len(kinds) + len(names) * times <= layers:
                kinds += names * times
            case _:
                raise ConfigError(f"attention_types={shorten(repr(types))} does not fit num_layers={layers}")
    window = whole(published, "window_size", most=1_000_000_000)
    return {"windows": layer_windows(kinds, {"global": None, "local": window}, layers, "attention_types")}


def _write_neo(config: DecoderConfig) -> Published:
    width = next(filter(None, config.windows), 256)
    kinds = ["global" if window is None else "local" for window in config.stack.layer_windows]
    return {"window_size": width, "attention_types": [[kinds, 1]]}


_ENDINGS = {"activation": "activation_function", "norm_eps": "layer_norm_epsilon"}
# What a second head would need.
_SUMMARY = {f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}
GPT2 = DecoderFamily(
    architecture="GPT2LMHeadModel",
    keys=Keys(
        fields=fields(context="n_positions", dim="n_embd", layers="n_layer", heads="n_head", ffn_dim=None, **_ENDINGS),
        harmless={"reorder_and_upcast_attn", "n_ctx", *_SUMMARY},  # the first: in what precision scores are made
        fixed={"model_type": ("gpt2",)} | {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
        absent={"n_embd": 768},
    ),
    table=lambda config: GPT2_TABLE,
    joints=(widened("n_inner", "n_embd"),),
    aliases={
        **{"hidden_size": "n_embd", "max_position_embeddings": "n_positions"},
        **{"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    },
)
GPT_NEO = DecoderFamily(
    architecture="GPTNeoForCausalLM",
    keys=Keys(
        fields=fields(layers="num_layers", heads="num_heads", ffn_dim=None, **_ENDINGS),
        harmless={"attention_layers", *_SUMMARY},  # the first is attention_types again
        fixed={"model_type": ("gpt_neo",)},
        absent={"max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24, "num_heads": 16}
        | {"window_size": 256, "attention_types": [[["global", "local"], 12]]},
    ),
    values={"scale": 1.0, "attention_bias": False},
    table=lambda config: NEO_TABLE,
    joints=(widened("intermediate_size"), Joint({"window_size", "attention_types"}, _read_neo, _write_neo)),
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
)
