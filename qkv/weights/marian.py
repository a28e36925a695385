"""Marian's translators (1804.00344) as transformers publishes them: what Helsinki-NLP's thousand opus-mt models are.

Left out: models whose two languages have vocabularies of their own. The positions' sines are computed; a file that
stores others is refused.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkv.core.position import sinusoidal
from qkv.errors import CheckpointError, ConfigError
from qkv.models.translator_config import TranslatorConfig
from qkv.published import Keys, Published, only
from qkv.weights.configs import spelled
from qkv.weights.family import REFUSED, Family, Joint, drop_copies
from qkv.weights.tables import Table, Transform, rows

_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
_ROW = Transform(lambda tensor: [tensor.squeeze(0)], lambda ours: ours[0][None])  # (1, V)
_LAYER = [
    ("attention.(q|k|v|out).{}", "self_attn.(q|k|v|out)_proj.{}"),
    ("attention_norm.{}", "self_attn_layer_norm.{}"),
    ("ffn.(up|down).{}", "(fc1|fc2).{}"),
    ("ffn_norm.{}", "final_layer_norm.{}"),
]
_MEMORY = [
    ("memory_attention.(q|k|v|out).{}", "encoder_attn.(q|k|v|out)_proj.{}"),
    ("memory_norm.{}", "encoder_attn_layer_norm.{}"),
]
TABLE = Table(
    [
        ("token.weight", "model.shared.weight"),
        ("bias", "final_logits_bias", _ROW),
        *rows(_LAYER, "encoder.blocks.{}.", "model.encoder.layers.{}."),
        *rows(_LAYER + _MEMORY, "decoder.blocks.{}.", "model.decoder.layers.{}."),
        *rows([(name, name) for name in _COPIES], "copies."),
        ("positions.(encoder|decoder)", "model.(encoder|decoder).embed_positions.weight"),
    ],
)


def _read(published: Published) -> dict[str, Any]:
    """The keys that must be equal on both sides, and in both languages."""
    for end in ("attention_heads", "ffn_dim"):
        encoder = published[f"encoder_{end}"]
        if published.get(f"decoder_{end}", encoder) != encoder:
            odd = f"decoder_{end}={published[f'decoder_{end}']} is not encoder_{end}={encoder}"
            raise ConfigError(f"{odd}; only equal ones are supported")
    if published.get("decoder_vocab_size") not in (None, published["vocab_size"]):
        odd = f"decoder_vocab_size={published['decoder_vocab_size']}"
        raise ConfigError(f"{odd} is not vocab_size={published['vocab_size']}")
    return {}


def _write(config: TranslatorConfig) -> Published:
    activation = {"activation_function": "swish"} if config.activation == "silu" else {}
    ends = {"decoder_vocab_size": config.vocab, "forced_eos_token_id": config.end, "bos_token_id": None}
    return activation | ends | {"decoder_attention_heads": config.heads, "decoder_ffn_dim": config.ffn_dim}


def _settle(config: TranslatorConfig, tensors: dict[str, Tensor]) -> TranslatorConfig:
    why = "{} is not the shared embedding; separate vocabularies are not supported"
    drop_copies(tensors, {f"copies.{name}": "token.weight" for name in _COPIES}, why)
    for side in ("encoder", "decoder"):
        if (stored := tensors.pop(f"positions.{side}", None)) is not None:
            _check_positions(f"model.{side}.embed_positions.weight", stored, config)
    tensors.setdefault("bias", torch.zeros(config.vocab))  # as transformers has it where a file has none
    return config


def _check_positions(name: str, stored: Tensor, config: TranslatorConfig) -> None:
    sines = sinusoidal(torch.arange(config.context), config.dim, interleaved=False)
    if stored.shape != sines.shape or not torch.allclose(stored.float(), sines, atol=2e-3):  # half precision
        raise CheckpointError(f"{name} does not hold the sines and cosines of positions; others are not supported")


MARIAN = Family(
    kind=TranslatorConfig,
    architecture="MarianMTModel",
    keys=Keys(
        harmless={"is_decoder", "num_hidden_layers", "classif_dropout", "extra_pos_embeddings"},
        fields=spelled(
            **{"start": "decoder_start_token_id", "end": "eos_token_id", "pad": "pad_token_id", "dim": "d_model"},
            **{"layers": "encoder_layers", "decoder_layers": "decoder_layers", "heads": "encoder_attention_heads"},
            **{"ffn_dim": "encoder_ffn_dim", "activation": "activation_function", "norm_eps": None},
            **{"scaled": "scale_embedding", "dropout": "dropout"},
        ),
        fixed={
            "model_type": ("marian",),
            **only(True, "is_encoder_decoder", "share_encoder_decoder_embeddings", "tie_word_embeddings"),
        },
        absent={
            **{"vocab_size": 58_101, "decoder_start_token_id": 58_100, "pad_token_id": 58_100, "eos_token_id": 0},
            **{"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16},
            **{"encoder_ffn_dim": 4096, "activation_function": "gelu", "scale_embedding": False},
        },
    ),
    table=lambda config: TABLE,
    joints=(Joint({"decoder_attention_heads", "decoder_ffn_dim", "decoder_vocab_size"}, _read, _write),),
    # What older converters wrote beside, and what it must say.
    refused={
        **REFUSED,
        **only(False, "normalize_before", "normalize_embedding", "add_final_layer_norm"),
        **only(True, "static_position_embeddings"),
    },
    tidy=lambda config: replace(config, decoder_layers=config.decoder.layers),
    settle=_settle,
)
