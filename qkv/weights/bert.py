"""BERT's published names and configuration: transformers' `BertModel` folders."""

import torch

from qkv.config import build
from qkv.models.bert import Bert, BertConfig
from qkv.weights.configs import LAYERS, Keys
from qkv.weights.folder import Folder
from qkv.weights.load import load_module
from qkv.weights.tables import Row, Table

KEYS = Keys(
    fields=LAYERS
    | {
        "vocab_size": "vocab",
        "max_position_embeddings": "context",
        "type_vocab_size": "segments",
    },
    fixed={"model_type": ("bert",), "position_embedding_type": ("absolute",), "is_decoder": (False,)},
)

_ROWS = [
    ("token.weight", "embeddings.word_embeddings.weight"),
    ("segment.weight", "embeddings.token_type_embeddings.weight"),
    ("position.weight", "embeddings.position_embeddings.weight"),
    ("norm.{}", "embeddings.LayerNorm.{}"),
    ("stack.blocks.{}.attention.q.{}", "encoder.layer.{}.attention.self.query.{}"),
    ("stack.blocks.{}.attention.k.{}", "encoder.layer.{}.attention.self.key.{}"),
    ("stack.blocks.{}.attention.v.{}", "encoder.layer.{}.attention.self.value.{}"),
    ("stack.blocks.{}.attention.out.{}", "encoder.layer.{}.attention.output.dense.{}"),
    ("stack.blocks.{}.attention_norm.{}", "encoder.layer.{}.attention.output.LayerNorm.{}"),
    ("stack.blocks.{}.ffn.up.{}", "encoder.layer.{}.intermediate.dense.{}"),
    ("stack.blocks.{}.ffn.down.{}", "encoder.layer.{}.output.dense.{}"),
    ("stack.blocks.{}.ffn_norm.{}", "encoder.layer.{}.output.LayerNorm.{}"),
]
TABLE = Table(
    [Row((ours,), published, (f"bert.{published}",)) for ours, published in _ROWS],
    ignored=["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"],
)


def load_bert(folder: Folder, *, dtype: torch.dtype | None = None) -> Bert:
    """The body of a BertModel folder; its pooler, which sentence vectors do not use, is left out."""
    config = build(BertConfig, KEYS.ours(folder.json("config.json")))
    return load_module(lambda: Bert(config), TABLE.ours(folder.tensors()), dtype=dtype)
