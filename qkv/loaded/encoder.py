"""A network of BERT's kin with its tokenizer, where it computes; and what configurations say that is not known here."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from qkv.errors import CheckpointError
from qkv.loaded import generation
from qkv.models.bert import Bert, BertClassifier, BertTagger, MaskedBert
from qkv.models.packed import place
from qkv.text.bert import BertTokenizer
from qkv.weights import families
from qkv.weights.folder import Folder

Network = TypeVar("Network", bound=Bert | MaskedBert | BertClassifier | BertTagger)


def read_encoder(
    path: Path, load: Callable[..., Network], device: torch.device, dtype: torch.dtype
) -> tuple[Network, BertTokenizer, tuple[str, ...]]:
    """What `load` makes of the folder, its tokenizer, and warnings. CheckpointError, ConfigError."""
    folder, tokenizer = Folder(path), BertTokenizer.load(path)
    network = place(load(folder, dtype=dtype), device, dtype)
    vocab = (network if isinstance(network, Bert) else network.body).config.vocab
    if tokenizer.vocab > vocab:
        raise CheckpointError(f"the tokenizer in {path} has {tokenizer.vocab} tokens, the model {vocab}")
    return network, tokenizer, (*unknown_keys(folder), *tokenizer.warnings)


def unknown_keys(folder: Folder) -> list[str]:
    """A warning that names what config.json says and nobody here knows; older ones say how to write, too."""
    return families.unknown_keys(folder.json("config.json"), generation.KEYS.names)
