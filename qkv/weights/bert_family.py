"""BERT's kin as transformers publishes them: BERT (MiniLM too), RoBERTa, DistilBERT and ALBERT.

One body under four namings, and three heads with names of their own, each a row of `Family`. A published body stands
bare (`BertModel`), or under the family's name beside a head; both spellings are read, wherever they are met.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from qkv.config import convert
from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models.bert import BertConfig
from qkv.published import Keys
from qkv.weights.configs import LAYERS
from qkv.weights.family import Family, Published, drop_copies
from qkv.weights.tables import Row, Table

# Copies of the embeddings are told by the tensors; what other heads, older libraries and the sines at the start say.
_HARMLESS = frozenset(
    {
        *("tie_word_embeddings", "tie_weights_", "sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout"),
        *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"),
        *("pooler_type", "directionality", "bos_token_id", "eos_token_id", "net_structure_type", "down_scale_factor"),
        *("gap_size", "num_memory_blocks"),
    }
)
Kind = Literal["body", "masked", "classifier", "tagger"]
CLASSES: dict[Kind, str] = {
    "body": "Model",
    "masked": "ForMaskedLM",
    "classifier": "ForSequenceClassification",
    "tagger": "ForTokenClassification",
}


@dataclass(frozen=True, kw_only=True)
class Names:
    """One naming of a body and its heads.

    `body`, `pooler` and `heads` are rows of a table (ours, published), the body's without prefix; kinds of heads that
    have a pooler of their own name it there. `tied`: published copies of the embeddings and of the head's bias.
    `pooling`: what follows the pooler; `unread`: published names that nothing here uses.
    """

    name: str  # the model_type
    stem: str  # of transformers' classes
    body: tuple[tuple[str, str], ...]
    pooler: str | None
    heads: Mapping[Kind, tuple[tuple[str, str], ...]]
    tied: tuple[str, ...]
    pooling: Literal["tanh", "relu"] = "tanh"
    unread: tuple[str, ...] = ()

    def table(self, kind: Kind) -> Table:
        """Published names <-> those of a module of that kind; names of other heads are dropped."""
        ours, prefix = ("", "") if kind == "body" else ("body.", f"{self.name}.")
        other = f"{self.name}." if kind == "body" else ""
        head = self.heads.get(kind, ())
        rows = [Row((ours + a,), prefix + b, (other + b,)) for a, b in self._body(head)]
        rows += [Row((a,), b) for a, b in head]
        if kind == "masked":
            rows += [Row((f"tied.{name.rpartition('.')[2]}",), name) for name in self.tied]
        known = {row.published for row in rows}
        unread = {*self.unread, *self.tied, *(b for rows in self.heads.values() for _, b in rows)} - known
        if "body.pooler.{}" in dict(head) and self.pooler:
            unread |= {self.pooler, f"{self.name}.{self.pooler}"}
        return Table(rows, [*unread, "embeddings.position_ids", f"{self.name}.embeddings.position_ids"])

    def _body(self, head: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        has_own = self.pooler is None or "body.pooler.{}" in dict(head)
        return [*self.body, *([] if has_own else [("pooler.{}", str(self.pooler))])]

    def settle(self, kind: Kind, config: BertConfig, tensors: dict[str, Tensor]) -> BertConfig:
        """Without copies of what a head shares, and with the pooler that is there."""
        if kind != "body" and not any(not name.startswith(("body.", "tied.")) for name in tensors):
            raise CheckpointError(f"it is no {self.stem}{CLASSES[kind]}: it has no such head")
        why = "the head's output is not the embedding; only heads that share it are read"
        drop_copies(tensors, {"tied.weight": "body.token.weight", "tied.bias": "bias"}, why)
        pooled = kind == "classifier" or any("pooler." in name for name in tensors)
        return replace(config, pooler=self.pooling if pooled else None)


def _family(
    names: Names,
    *,
    fields: Mapping[str, str],
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    values: Published | None = None,
    absent: Published | None = None,
) -> Family[BertConfig]:
    """The row of a body, with those of its heads."""

    def row(kind: Kind, heads: Mapping[str, Family[BertConfig]]) -> Family[BertConfig]:
        return Family(
            kind=BertConfig,
            architecture=names.stem + CLASSES[kind],
            keys=Keys(
                fields=fields,
                harmless=_HARMLESS,
                fixed={"model_type": (names.name,), **(fixed or {})},
                absent=absent or {},
            ),
            values=values or {},
            table=lambda config: names.table(kind),
            read=_read,
            write=_write if "pad_token_id" in (absent or {}) else lambda config: {},
            settle=partial(names.settle, kind),
            unsaid=lambda config: {"pooler": names.pooling if config.pooler else None},
            modern=_modern,
            heads=heads,
        )

    return row("body", {kind: row(kind, {}) for kind in names.heads})


def _read(published: Published) -> dict[str, Any]:
    """In RoBERTa positions begin behind the row of the padding; only it says what that is."""
    name = published.get("model_type")
    if published.get("type_vocab_size") == 0 and name != "distilbert":
        raise ConfigError(f"type_vocab_size=0 is out of range; {name} models have one or more")
    if name != "roberta":
        return {}
    pad: int = convert(int, published["pad_token_id"], "pad_token_id")
    if pad < 0:
        raise ConfigError(f"pad_token_id={pad} is out of range; it must be 0 or more")
    rows: int = convert(int, published["max_position_embeddings"], "max_position_embeddings")
    return {"offset": pad + 1, "context": rows - pad - 1}


def _write(config: BertConfig) -> Published:
    return {"pad_token_id": config.offset - 1, "max_position_embeddings": config.context + config.offset}


def _modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's spelling of a norm, which the first checkpoints still have, as it is spelled now."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for ending, new in old.items():
            name = name.removesuffix(ending) + new if name.endswith(ending) else name
        if name in found:
            raise CheckpointError(f"tensor {shorten(name)!r} is there twice, under another spelling")
        found[name] = tensor
    return found


_EMBEDDINGS = (
    ("token.weight", "embeddings.word_embeddings.weight"),
    ("segment.weight", "embeddings.token_type_embeddings.weight"),
    ("position.weight", "embeddings.position_embeddings.weight"),
    ("norm.{}", "embeddings.LayerNorm.{}"),
)
_BODY = (
    *_EMBEDDINGS,
    ("stack.blocks.{}.attention.q.{}", "encoder.layer.{}.attention.self.query.{}"),
    ("stack.blocks.{}.attention.k.{}", "encoder.layer.{}.attention.self.key.{}"),
    ("stack.blocks.{}.attention.v.{}", "encoder.layer.{}.attention.self.value.{}"),
    ("stack.blocks.{}.attention.out.{}", "encoder.layer.{}.attention.output.dense.{}"),
    ("stack.blocks.{}.attention_norm.{}", "encoder.layer.{}.attention.output.LayerNorm.{}"),
    ("stack.blocks.{}.ffn.up.{}", "encoder.layer.{}.intermediate.dense.{}"),
    ("stack.blocks.{}.ffn.down.{}", "encoder.layer.{}.output.dense.{}"),
    ("stack.blocks.{}.ffn_norm.{}", "encoder.layer.{}.output.LayerNorm.{}"),
)
_LABELS = (("out.{}", "classifier.{}"),)
_FIELDS = LAYERS | {
    "vocab_size": "vocab",
    "max_position_embeddings": "context",
    "type_vocab_size": "segments",
}
_NO = {"is_decoder": (False,), "position_embedding_type": ("absolute",)}

BERT = _family(
    Names(
        name="bert",
        stem="Bert",
        body=_BODY,
        pooler="pooler.dense.{}",
        heads={
            "masked": (
                ("dense.{}", "cls.predictions.transform.dense.{}"),
                ("norm.{}", "cls.predictions.transform.LayerNorm.{}"),
                ("bias", "cls.predictions.bias"),
            ),
            "classifier": _LABELS,
            "tagger": _LABELS,
        },
        tied=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
        unread=("cls.seq_relationship.{}",),
    ),
    fields=_FIELDS,
    fixed={**_NO},
)
ROBERTA = _family(
    Names(
        name="roberta",
        stem="Roberta",
        body=_BODY,
        pooler="pooler.dense.{}",
        heads={
            "masked": (
                ("dense.{}", "lm_head.dense.{}"),
                ("norm.{}", "lm_head.layer_norm.{}"),
                ("bias", "lm_head.bias"),
            ),
            "classifier": (("body.pooler.{}", "classifier.dense.{}"), ("out.{}", "classifier.out_proj.{}")),
            "tagger": _LABELS,
        },
        tied=("lm_head.decoder.weight", "lm_head.decoder.bias"),
    ),
    fields=_FIELDS,
    fixed={"hidden_act": ("gelu",), **_NO},  # its head has no other
    absent={"vocab_size": 50_265, "max_position_embeddings": 512, "pad_token_id": 1},
)
DISTILBERT = _family(
    Names(
        name="distilbert",
        stem="DistilBert",
        body=(
            *(row for row in _EMBEDDINGS if row[0] != "segment.weight"),
            ("stack.blocks.{}.attention.q.{}", "transformer.layer.{}.attention.q_lin.{}"),
            ("stack.blocks.{}.attention.k.{}", "transformer.layer.{}.attention.k_lin.{}"),
            ("stack.blocks.{}.attention.v.{}", "transformer.layer.{}.attention.v_lin.{}"),
            ("stack.blocks.{}.attention.out.{}", "transformer.layer.{}.attention.out_lin.{}"),
            ("stack.blocks.{}.attention_norm.{}", "transformer.layer.{}.sa_layer_norm.{}"),
            ("stack.blocks.{}.ffn.up.{}", "transformer.layer.{}.ffn.lin1.{}"),
            ("stack.blocks.{}.ffn.down.{}", "transformer.layer.{}.ffn.lin2.{}"),
            ("stack.blocks.{}.ffn_norm.{}", "transformer.layer.{}.output_layer_norm.{}"),
        ),
        pooler=None,
        pooling="relu",
        heads={
            "masked": (
                ("dense.{}", "vocab_transform.{}"),
                ("norm.{}", "vocab_layer_norm.{}"),
                ("bias", "vocab_projector.bias"),
            ),
            "classifier": (("body.pooler.{}", "pre_classifier.{}"), *_LABELS),
            "tagger": _LABELS,
        },
        tied=("vocab_projector.weight",),
    ),
    fields={
        "dim": "dim",
        "n_layers": "layers",
        "n_heads": "heads",
        "hidden_dim": "ffn_dim",
        "activation": "activation",
        "vocab_size": "vocab",
        "max_position_embeddings": "context",
    },
    absent={"n_layers": 6},
    values={"segments": 0},
)
_ONE = "encoder.albert_layer_groups.{}.albert_layers.0"  # of each group there is one layer
ALBERT = _family(
    Names(
        name="albert",
        stem="Albert",
        body=(
            *_EMBEDDINGS,
            ("widen.{}", "encoder.embedding_hidden_mapping_in.{}"),
            ("stack.blocks.{}.attention.q.{}", f"{_ONE}.attention.query.{{}}"),
            ("stack.blocks.{}.attention.k.{}", f"{_ONE}.attention.key.{{}}"),
            ("stack.blocks.{}.attention.v.{}", f"{_ONE}.attention.value.{{}}"),
            ("stack.blocks.{}.attention.out.{}", f"{_ONE}.attention.dense.{{}}"),
            ("stack.blocks.{}.attention_norm.{}", f"{_ONE}.attention.LayerNorm.{{}}"),
            ("stack.blocks.{}.ffn.up.{}", f"{_ONE}.ffn.{{}}"),
            ("stack.blocks.{}.ffn.down.{}", f"{_ONE}.ffn_output.{{}}"),
            ("stack.blocks.{}.ffn_norm.{}", f"{_ONE}.full_layer_layer_norm.{{}}"),
        ),
        pooler="pooler.{}",
        heads={
            "masked": (
                ("dense.{}", "predictions.dense.{}"),
                ("norm.{}", "predictions.LayerNorm.{}"),
                ("bias", "predictions.bias"),
            ),
            "classifier": _LABELS,
            "tagger": _LABELS,
        },
        tied=("predictions.decoder.weight", "predictions.decoder.bias"),
        unread=("sop_classifier.classifier.{}",),
    ),
    fields=_FIELDS | {"embedding_size": "embed_dim"},
    fixed={"num_hidden_groups": (1,), "inner_group_num": (1,), **_NO},
    absent={
        "vocab_size": 30_000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16_384,
        "hidden_act": "gelu_new",
    },
    values={"shared": True},
)
