"""BERT's kin as transformers publishes them: BERT (MiniLM too), RoBERTa, DistilBERT and ALBERT.

One body under four namings, and three heads with names of their own. A published body stands bare (`BertModel`), or
under the family's name beside a head; both spellings are read, wherever they are met.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qkv.config import build, convert
from qkv.errors import ConfigError
from qkv.models.bert import BertConfig
from qkv.weights.configs import LAYERS, Keys
from qkv.weights.tables import Row, Table

Kind = Literal["body", "masked", "classifier", "tagger"]
CLASSES: dict[Kind, str] = {
    "body": "Model",
    "masked": "ForMaskedLM",
    "classifier": "ForSequenceClassification",
    "tagger": "ForTokenClassification",
}
_SPELLED = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # the first is written


@dataclass(frozen=True, kw_only=True)
class BertFamily:
    """One naming.

    `body`, `pooler` and `heads` are rows of a table (ours, published), the body's without prefix; `head` kinds that
    have a pooler of their own name it there. `tied`: published copies of the embeddings and of the head's bias.
    `values`: what all members share; `unread`: published names that nothing here uses.
    """

    stem: str  # of transformers' classes
    keys: Keys
    body: tuple[tuple[str, str], ...]
    pooler: str | None
    heads: Mapping[Kind, tuple[tuple[str, str], ...]]
    tied: tuple[str, ...]
    pooling: Literal["tanh", "relu"] = "tanh"
    values: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.keys.fixed["model_type"][0]

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

    def config(self, published: Mapping[str, Any], *, pooled: bool) -> BertConfig:
        """Ours from a config.json. ConfigError names what we cannot honour."""
        values = {**self.values, **self.keys.ours(published), "pooler": self.pooling if pooled else None}
        if isinstance(activation := values.get("activation"), str):
            values["activation"] = _SPELLED.get(activation, activation)
        if "pad_token_id" in self.keys.absent:  # positions begin behind the row of the padding
            pad = published.get("pad_token_id", self.keys.absent["pad_token_id"])
            values["offset"] = convert(int, pad, "pad_token_id") + 1
            values["context"] = convert(int, values["context"], "max_position_embeddings") - values["offset"]
            if values["offset"] < 1:
                raise ConfigError(f"pad_token_id={pad} is out of range; it must be 0 or more")
        if "type_vocab_size" in self.keys.fields and values.get("segments") == 0:
            raise ConfigError(f"type_vocab_size=0 is out of range; {self.name} models have one or more")
        return build(BertConfig, values)

    def published(self, config: BertConfig) -> dict[str, Any]:
        """The config.json of `config`. ConfigError if this family cannot say all of it."""
        spelled = self.keys.published(config)
        for key, ours in self.keys.fields.items():
            if ours == "activation" and config.activation == "gelu_tanh":
                spelled[key] = "gelu_new"
        if "pad_token_id" in self.keys.absent:
            spelled |= {"pad_token_id": config.offset - 1, "max_position_embeddings": config.context + config.offset}
        again = self.config(spelled, pooled=config.pooler is not None)
        if again != config:
            here, there = dataclasses.asdict(config), dataclasses.asdict(again)
            odd = [f"{name}={here[name]}" for name in here if here[name] != there[name]]
            raise ConfigError(f"{self.name} models are not published with {', '.join(odd)}")
        return spelled


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

BERT = BertFamily(
    stem="Bert",
    keys=Keys(fields=_FIELDS, fixed={"model_type": ("bert",), **_NO}),
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
)
ROBERTA = BertFamily(
    stem="Roberta",
    keys=Keys(
        fields=_FIELDS,
        fixed={"model_type": ("roberta",), "hidden_act": ("gelu",), **_NO},  # its head has no other
        absent={"vocab_size": 50_265, "max_position_embeddings": 512, "pad_token_id": 1},
    ),
    body=_BODY,
    pooler="pooler.dense.{}",
    heads={
        "masked": (("dense.{}", "lm_head.dense.{}"), ("norm.{}", "lm_head.layer_norm.{}"), ("bias", "lm_head.bias")),
        "classifier": (("body.pooler.{}", "classifier.dense.{}"), ("out.{}", "classifier.out_proj.{}")),
        "tagger": _LABELS,
    },
    tied=("lm_head.decoder.weight", "lm_head.decoder.bias"),
)
DISTILBERT = BertFamily(
    stem="DistilBert",
    keys=Keys(
        fields={
            "dim": "dim",
            "n_layers": "layers",
            "n_heads": "heads",
            "hidden_dim": "ffn_dim",
            "activation": "activation",
            "vocab_size": "vocab",
            "max_position_embeddings": "context",
        },
        fixed={"model_type": ("distilbert",)},
        absent={"n_layers": 6},
    ),
    values={"segments": 0},
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
)
_ONE = "encoder.albert_layer_groups.{}.albert_layers.0"  # of each group there is one layer
ALBERT = BertFamily(
    stem="Albert",
    keys=Keys(
        fields=_FIELDS | {"embedding_size": "embed_dim"},
        fixed={"model_type": ("albert",), "num_hidden_groups": (1,), "inner_group_num": (1,), **_NO},
        absent={
            "vocab_size": 30_000,
            "embedding_size": 128,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "intermediate_size": 16_384,
            "hidden_act": "gelu_new",
        },
    ),
    values={"shared": True},
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
)
