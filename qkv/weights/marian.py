"""Translators as transformers publishes them: `MarianMTModel` folders <-> `Translator`.

Marian (Junczys-Dowmunt et al. 2018, 1804.00344) is what Helsinki-NLP's thousand opus-mt models were trained with. Left
out: models whose two languages have vocabularies of their own. The positions' sines are computed; a file that stores
others is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.config import build
from qkv.core.position import sinusoidal
from qkv.errors import CheckpointError, ConfigError
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.weights.configs import Keys, write_json
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_module
from qkv.weights.tables import Row, Table, Transform

KEYS = Keys(
    fields={
        "vocab_size": "vocab",
        "decoder_start_token_id": "start",
        "eos_token_id": "end",
        "pad_token_id": "pad",
        "max_position_embeddings": "context",
        "d_model": "dim",
        "encoder_layers": "layers",
        "decoder_layers": "decoder_layers",
        "encoder_attention_heads": "heads",
        "encoder_ffn_dim": "ffn_dim",
        "activation_function": "activation",
        "scale_embedding": "scaled",
        "dropout": "dropout",
    },
    fixed={
        "model_type": ("marian",),
        "is_encoder_decoder": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "tie_word_embeddings": (True,),
    },
    absent={
        **{"vocab_size": 58_101, "decoder_start_token_id": 58_100, "pad_token_id": 58_100, "eos_token_id": 0},
        **{"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16},
        **{"encoder_ffn_dim": 4096, "activation_function": "gelu", "scale_embedding": False},
    },
)
# What older converters wrote beside, and what it must say.
_REFUSED = {
    "normalize_before": (False,),
    "normalize_embedding": (False,),
    "add_final_layer_norm": (False,),
    "static_position_embeddings": (True,),
    "quantization_config": (None,),
}
_ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_tanh"}  # published -> ours; the other names are the same


def _attention(side: str, ours: str, published: str) -> list[tuple[str, str]]:
    block, layer = f"{side}.blocks.{{}}.{ours}", f"model.{side}.layers.{{}}.{published}"
    parts = [*((part, f"{part}_proj") for part in "qkv"), ("out", "out_proj")]
    rows = [(f"{block}attention.{part}.{{}}", f"{layer}attn.{name}.{{}}") for part, name in parts]
    return [*rows, (f"{block}attention_norm.{{}}", f"{layer}attn_layer_norm.{{}}")]


def _ffn(side: str) -> list[tuple[str, str]]:
    parts = {"ffn.up": "fc1", "ffn.down": "fc2", "ffn_norm": "final_layer_norm"}
    return [(f"{side}.blocks.{{}}.{o}.{{}}", f"model.{side}.layers.{{}}.{p}.{{}}") for o, p in parts.items()]


_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_ROW = Transform(lambda tensor: [tensor.squeeze(0)], lambda ours: ours[0][None])  # (1, V)
_NAMES = [
    *_attention("encoder", "", "self_"),
    *_ffn("encoder"),
    *_attention("decoder", "", "self_"),
    *_attention("decoder", "memory_", "encoder_"),
    *_ffn("decoder"),
]
TABLE = Table(
    [
        ("token.weight", "model.shared.weight"),
        Row(("bias",), "final_logits_bias", transform=_ROW),
        *((ours.replace("memory_attention_norm", "memory_norm"), published) for ours, published in _NAMES),
    ],
    ignored=[*_COPIES, *_POSITIONS],
)


def read_config(published: Mapping[str, Any]) -> TranslatorConfig:
    """Ours from a config.json. ConfigError names what we cannot honour."""
    Keys(fields={}, fixed=_REFUSED).ours(published)
    values = KEYS.ours(published)
    for end, of in (("decoder_attention_heads", "encoder_attention_heads"), ("decoder_ffn_dim", "encoder_ffn_dim")):
        given = {**KEYS.absent, end: KEYS.absent[of], **published}
        if given[end] != given[of]:
            raise ConfigError(f"{end}={given[end]} is not {of}={given[of]}; only equal ones are supported")
    if published.get("decoder_vocab_size") not in (None, values["vocab"]):
        raise ConfigError(f"decoder_vocab_size={published['decoder_vocab_size']} is not vocab_size={values['vocab']}")
    values["activation"] = _ACTIVATIONS.get(values["activation"], values["activation"])
    return build(TranslatorConfig, values)


def published_config(config: TranslatorConfig) -> dict[str, Any]:
    """config.json as transformers reads it. ConfigError if a `MarianMTModel` cannot be like this."""
    published = {"architectures": ["MarianMTModel"], **KEYS.published(config)}
    published["activation_function"] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}.get(
        config.activation, config.activation
    )
    layers = config.decoder.layers
    published |= {"decoder_layers": layers, "decoder_vocab_size": config.vocab, "forced_eos_token_id": config.end}
    published |= {"decoder_attention_heads": config.heads, "decoder_ffn_dim": config.ffn_dim, "bos_token_id": None}
    again = read_config(published)
    odd = [
        f"{name}={value}"
        for name, value in vars(config).items()
        if value != getattr(again, name) and not (name == "decoder_layers" and value is None)
    ]
    if odd:
        raise ConfigError(f"marian models are not published with {', '.join(odd)}")
    return published


def load_translator(folder: Folder, *, dtype: torch.dtype | None = None, check_finite: bool = False) -> Translator:
    """The translator in a folder, memory-mapped where `dtype` is None or the file's own.

    ConfigError or CheckpointError if it is of a kind that is not supported, or broken.
    """
    config = read_config(folder.json("config.json"))
    tensors = folder.tensors()
    shared = tensors.get("model.shared.weight")
    for name in _COPIES:
        if shared is not None and name in tensors and not torch.equal(tensors[name], shared):
            raise CheckpointError(f"{name} is not the shared embedding; separate vocabularies are not supported")
    for name in _POSITIONS:
        if name in tensors:
            _check_positions(name, tensors[name], config)
    ours = TABLE.ours(tensors)
    ours.setdefault("bias", torch.zeros(config.vocab))  # as transformers has it where a file has none
    return load_module(lambda: Translator(config), ours, dtype=dtype, check_finite=check_finite)


def _check_positions(name: str, stored: Tensor, config: TranslatorConfig) -> None:
    sines = sinusoidal(torch.arange(config.context), config.dim, interleaved=False)
    if stored.shape != sines.shape or not torch.allclose(stored.float(), sines, atol=2e-3):  # half precision
        raise CheckpointError(f"{name} does not hold the sines and cosines of positions; others are not supported")


def save_translator(
    translator: Translator, path: str | Path, *, dtype: torch.dtype | None = None, also: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json, generation_config.json and model.safetensors, which transformers opens.

    `dtype` converts, `also` are further keys of generation_config.json, such as num_beams. ConfigError if Marian cannot
    say it; OutputError.
    """
    config = published_config(translator.config)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in TABLE.published(export_weights(translator)).items()
    }
    kept = str(tensors["model.shared.weight"].dtype).removeprefix("torch.")
    write_json(Path(path) / "config.json", config | {"dtype": kept})
    tokens = {"decoder_start_token_id": "start", "eos_token_id": "end", "forced_eos_token_id": "end"}
    ids = {key: getattr(translator.config, ours) for key, ours in (tokens | {"pad_token_id": "pad"}).items()}
    search = {"bad_words_ids": [[translator.config.pad]], "max_length": min(512, translator.config.context)}
    write_json(Path(path) / "generation_config.json", ids | search | dict(also or {}))
    write_tensors(path, "model", tensors)
