"""GPT-2 and GPT-Neo as transformers publishes them.

GPT-2: "Language Models are Unsupervised Multitask Learners"; its projections are stored (in, out), q, k and v as one.
GPT-Neo (EleutherAI, 2021) alternates global and local layers as GPT-3 does, and has no scale on its scores. GPT-3
itself was never published; its sizes are in models/presets.py.
"""

from typing import Any

import torch

from qkv.errors import ConfigError, shorten
from qkv.models.decoder_config import DecoderConfig
from qkv.published import Keys
from qkv.weights.decoder_family import DecoderFamily, layer_windows
from qkv.weights.family import Published, whole
from qkv.weights.tables import Row, Table, Transform, fused, same, transposed


def _row(ours: str | tuple[str, ...], published: str, transform: Transform = same) -> Row:
    """With the prefix that transformers writes, and without, as OpenAI's own files have it."""
    ours = (ours,) if isinstance(ours, str) else ours
    return Row(ours, f"transformer.{published}", (published,), transform)


def _block(part: str) -> str:
    return f"stack.blocks.{{}}.{part}"


_ENDS = [
    _row("token.weight", "wte.weight"),
    _row("position.weight", "wpe.weight"),
    _row("stack.norm.{}", "ln_f.{}"),
    Row(("head.weight",), "lm_head.weight"),
    _row(_block("attention_norm.{}"), "h.{}.ln_1.{}"),
    _row(_block("ffn_norm.{}"), "h.{}.ln_2.{}"),
]
_FUSED = Transform(lambda tensor: tensor.t().chunk(3), lambda ours: torch.cat(list(ours)).t())
GPT2_TABLE = Table(
    [
        *_ENDS,
        _row(tuple(_block(f"attention.{part}.weight") for part in "qkv"), "h.{}.attn.c_attn.weight", _FUSED),
        _row(tuple(_block(f"attention.{part}.bias") for part in "qkv"), "h.{}.attn.c_attn.bias", fused(3)),
        _row(_block("attention.out.weight"), "h.{}.attn.c_proj.weight", transposed),
        _row(_block("attention.out.bias"), "h.{}.attn.c_proj.bias"),
        _row(_block("ffn.up.weight"), "h.{}.mlp.c_fc.weight", transposed),
        _row(_block("ffn.up.bias"), "h.{}.mlp.c_fc.bias"),
        _row(_block("ffn.down.weight"), "h.{}.mlp.c_proj.weight", transposed),
        _row(_block("ffn.down.bias"), "h.{}.mlp.c_proj.bias"),
    ],
    ignored=[f"{prefix}h.{{}}.attn.{mask}" for prefix in ("", "transformer.") for mask in ("bias", "masked_bias")],
)
NEO_TABLE = Table(
    [
        *_ENDS,
        *(_row(_block(f"attention.{part}.weight"), f"h.{{}}.attn.attention.{part}_proj.weight") for part in "qkv"),
        _row(_block("attention.out.{}"), "h.{}.attn.attention.out_proj.{}"),
        _row(_block("ffn.up.{}"), "h.{}.mlp.c_fc.{}"),
        _row(_block("ffn.down.{}"), "h.{}.mlp.c_proj.{}"),
    ],
    ignored=[f"transformer.h.{{}}.attn.attention.{mask}" for mask in ("bias", "masked_bias")],
)


def _read_gpt2(published: Published) -> dict[str, Any]:
    inner = published.get("n_inner")
    return {"ffn_dim": 4 * whole(published, "n_embd") if inner is None else inner}


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
    inner = published.get("intermediate_size")
    return {
        "windows": layer_windows(kinds, {"global": None, "local": window}, layers, "attention_types"),
        "ffn_dim": 4 * whole(published, "hidden_size") if inner is None else inner,
    }


def _write_neo(config: DecoderConfig) -> Published:
    width = next((window for window in config.windows if window is not None), 256)
    kinds = ["global" if window is None else "local" for window in config.stack.layer_windows]
    return {"window_size": width, "attention_types": [[kinds, 1]], "intermediate_size": config.ffn_dim}


_SUMMARY = ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
GPT2 = DecoderFamily(
    architecture="GPT2LMHeadModel",
    keys=Keys(
        fields={
            "vocab_size": "vocab",
            "n_positions": "context",
            "n_embd": "dim",
            "n_layer": "layers",
            "n_head": "heads",
            "activation_function": "activation",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tied",
        },
        read={"n_inner"},
        # What a second head would need, and in what precision scores are made.
        harmless={"reorder_and_upcast_attn", "n_ctx", *(f"summary_{name}" for name in _SUMMARY)},
        fixed={
            "model_type": ("gpt2",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        absent={"n_embd": 768},
    ),
    table=lambda config: GPT2_TABLE,
    read=_read_gpt2,
    write=lambda config: {"n_inner": config.ffn_dim},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)
GPT_NEO = DecoderFamily(
    architecture="GPTNeoForCausalLM",
    keys=Keys(
        fields={
            "vocab_size": "vocab",
            "max_position_embeddings": "context",
            "hidden_size": "dim",
            "num_layers": "layers",
            "num_heads": "heads",
            "activation_function": "activation",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tied",
        },
        read={"intermediate_size"},
        harmless={"attention_layers", *(f"summary_{name}" for name in _SUMMARY)},  # the first is attention_types again
        fixed={"model_type": ("gpt_neo",)},
        absent={"max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24, "num_heads": 16}
        | {"window_size": 256, "attention_types": [[["global", "local"], 12]]},
    ),
    values={"scale": 1.0, "attention_bias": False},
    table=lambda config: NEO_TABLE,
    read=_read_neo,
    write=_write_neo,
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
)
