"""Decoders as transformers publishes them: a folder of config.json and safetensors <-> `Decoder`."""

from pathlib import Path
from typing import Any

import torch

from qkv.errors import ConfigError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.families import load_model, save_model
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights
from qkv.weights.quantised import Blocks


def load_decoder(folder: Folder, **options: Any) -> Decoder:
    """The decoder in a folder; options as `load_model`."""
    return load_model(folder, DecoderConfig, Decoder, **options)


def save_decoder(decoder: Decoder, path: str | Path, **options: Any) -> None:
    """Writes a folder that transformers opens; options as `save_model`."""
    save_model(decoder, decoder.config, path, **options)


_KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def as_blocks(decoder: Decoder) -> tuple[DecoderConfig, dict[str, Blocks]]:
    """Configuration and weights as the compiled kernels take them, not copied. ConfigError for another precision."""
    found = {}
    for name, tensor in export_weights(decoder).items():
        if tensor.dtype not in _KINDS:
            raise ConfigError(f"{name} is {tensor.dtype}; the compiled kernels read float32, bfloat16 and float16")
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        found[name] = Blocks(_KINDS[tensor.dtype], tuple(tensor.shape), data)
    return decoder.config, found
