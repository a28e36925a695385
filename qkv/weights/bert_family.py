"""BERT's kin as transformers publishes them: BERT (MiniLM too), RoBERTa, DistilBERT and ALBERT.

One body under four namings, and three heads with names of their own, each a row of `Family`. A published body stands
bare (`BertModel`), or under the family's name beside a head; both spellings are read, wherever they are met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from qkv.config import convert
from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models.bert import BertConfig
from qkv.published import Fixed, Keys, Published
from qkv.weights.configs import spelled
from qkv.weights.family import Family, Joint, drop_copies
from qkv.weights.tables import Table, rows

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


_LABELS = (("out.{}", "classifier.{}"),)


@dataclass(frozen=True, kw_only=True)
class Names:
    """One naming of a body and its heads.

    `body`, `pooler`, `masked` and `classifier` are rows of a table (ours, published), the body's without prefix; heads
    that have a pooler of their own name it there. `tied`: published copies of the embeddings and of the head's bias.
    `pooling`: what follows the pooler; `unread`: published names that nothing here uses.
    """

    name: str  # the model_type
    stem: str  # of transformers' classes
    body: tuple[tuple[str, str], ...]
    pooler: str | None
    masked: tuple[tuple[str, str], ...]
    tied: tuple[str, ...]
    classifier: tuple[tuple[str, str], ...] = _LABELS
    pooling: Literal["tanh", "relu"] = "tanh"
    unread: tuple[str, ...] = ()

    @property
    def heads(self) -> Mapping[Kind, tuple[tuple[str, str], ...]]:
        return {"masked": self.masked, "classifier": self.classifier, "tagger": _LABELS}

    def table(self, kind: Kind) -> Table:
        """Published names <-> those of a module of that kind; names of other heads are dropped."""
        ours, prefix = ("", "") if kind == "body" else ("body.", f"{self.name}.")
        other = f"{self.name}." if kind == "body" else ""
        head = self.heads.get(kind, ())
        own_pooler = "body.pooler.{}" in dict(head)
        pooler = [("pooler.{}", self.pooler)] if self.pooler else []
        found = rows([*self.body, *([] if own_pooler else pooler)], ours, prefix, other) + rows(head)
        if kind == "masked":
            found += rows([(f"tied.{name.rpartition('.')[2]}", name) for name in self.tied])
        unread = {row.published for pairs in self.heads.values() for row in rows(pairs)} | {*self.unread, *self.tied}
        unread -= {row.published for row in found}
        if own_pooler and self.pooler:
            unread |= {self.pooler, f"{self.name}.{self.pooler}"}
        return Table(found, [*unread, "embeddings.position_ids", f"{self.name}.embeddings.position_ids"])

    def settle(self, kind: Kind, config: BertConfig, tensors: dict[str, Tensor]) -> BertConfig:
        """Without copies of what a head shares, and with the pooler that is there."""
        if kind != "body" and not any(not name.startswith(("body.", "tied.")) for name in tensors):
            raise CheckpointError(f"it is no {self.stem}{CLASSES[kind]}: it has no such head")
        why = "the head's output is not the embedding; only heads that share it are read"
        drop_copies(tensors, {"tied.weight": "body.token.weight", "tied.bias": "bias"}, why)
        pooled = kind == "classifier" or any("pooler." in name for name in tensors)
        return replace(config, pooler=self.pooling if pooled else None)


def _check_segments(published: Published) -> dict[str, Any]:
    if published.get("type_vocab_size") == 0:
        name = published.get("model_type")
        raise ConfigError(f"type_vocab_size=0 is out of range; {name} models have one or more")
    return {}


def _read_padding(published: Published) -> dict[str, Any]:
    """Positions begin behind the row of the padding."""
    pad: int = convert(int, published["pad_token_id"], "pad_token_id")
    if pad < 0:
        raise ConfigError(f"pad_token_id={pad} is out of range; it must be 0 or more")
    rows: int = convert(int, published["max_position_embeddings"], "max_position_embeddings")
    return {"offset": pad + 1, "context": rows - pad - 1}


def _write_padding(config: BertConfig) -> Published:
    return {"pad_token_id": config.offset - 1, "max_position_embeddings": config.context + config.offset}


_SEGMENTS = Joint[BertConfig]((), _check_segments)
_PADDING = Joint({"pad_token_id"}, _read_padding, _write_padding)


def _keys(name: str, fixed: Fixed, absent: Published, **words: str | None) -> Keys:
    return Keys(fields=spelled(**words), harmless=_HARMLESS, fixed={"model_type": (name,), **fixed}, absent=absent)


def _family(names: Names, keys: Keys, joints: Sequence[Joint[BertConfig]], **values: Any) -> Family[BertConfig]:
    """The row of a body, with those of its heads; `values` as all of its members have them."""

    def row(kind: Kind, heads: Mapping[str, Family[BertConfig]]) -> Family[BertConfig]:
        return Family(
            kind=BertConfig,
            architecture=names.stem + CLASSES[kind],
            keys=keys,
            values=values,
            table=lambda config: names.table(kind),
            joints=joints,
            settle=partial(names.settle, kind),
            unsaid=lambda config: {"pooler": names.pooling if config.pooler else None},
            modern=_modern,
            heads=heads,
        )

    return row("body", {kind: row(kind, {}) for kind in names.heads})


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


_NORM = ("norm.{}", "embeddings.LayerNorm.{}")
_EMBEDDINGS = (("(token|segment|position).weight", "embeddings.(word|token_type|position)_embeddings.weight"), _NORM)


def _layers(published: str, *names: str) -> tuple[tuple[str, str], ...]:
    """Rows of the layers, whose parts are called `names` behind `published`."""
    ours = ("attention.(q|k|v)", "attention.out", "attention_norm", "ffn.up", "ffn.down", "ffn_norm")
    return tuple((f"stack.blocks.{{}}.{a}.{{}}", f"{published}.{b}.{{}}") for a, b in zip(ours, names, strict=True))


_BODY = _EMBEDDINGS + _layers(
    "encoder.layer.{}",
    *("attention.self.(query|key|value)", "attention.output.dense", "attention.output.LayerNorm"),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
)
_NO = {"is_decoder": (False,), "position_embedding_type": ("absolute",)}

BERT = _family(
    Names(
        name="bert",
        stem="Bert",
        body=_BODY,
        pooler="pooler.dense.{}",
        masked=(
            ("(dense|norm).{}", "cls.predictions.transform.(dense|LayerNorm).{}"),
            ("bias", "cls.predictions.bias"),
        ),
        tied=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
        unread=("cls.seq_relationship.{}",),
    ),
    _keys("bert", _NO, {}, segments="type_vocab_size"),
    [_SEGMENTS],
)
ROBERTA = _family(
    Names(
        name="roberta",
        stem="Roberta",
        body=_BODY,
        pooler="pooler.dense.{}",
        masked=(("(dense|norm).{}", "lm_head.(dense|layer_norm).{}"), ("bias", "lm_head.bias")),
        classifier=(("body.pooler.{}", "classifier.dense.{}"), ("out.{}", "classifier.out_proj.{}")),
        tied=("lm_head.decoder.weight", "lm_head.decoder.bias"),
    ),
    _keys(
        "roberta",
        {"hidden_act": ("gelu",), **_NO},  # its head has no other
        {"vocab_size": 50_265, "max_position_embeddings": 512, "pad_token_id": 1},
        segments="type_vocab_size",
    ),
    [_SEGMENTS, _PADDING],
)
DISTILBERT = _family(
    Names(
        name="distilbert",
        stem="DistilBert",
        body=(
            ("(token|position).weight", "embeddings.(word|position)_embeddings.weight"),
            _NORM,
            *_layers(
                "transformer.layer.{}",
                *("attention.(q|k|v)_lin", "attention.out_lin", "sa_layer_norm"),
                *("ffn.lin1", "ffn.lin2", "output_layer_norm"),
            ),
        ),
        pooler=None,
        pooling="relu",
        masked=(("(dense|norm).{}", "vocab_(transform|layer_norm).{}"), ("bias", "vocab_projector.bias")),
        classifier=(("body.pooler.{}", "pre_classifier.{}"), *_LABELS),
        tied=("vocab_projector.weight",),
    ),
    _keys(
        "distilbert",
        {},
        {"n_layers": 6},
        **{"dim": "dim", "layers": "n_layers", "heads": "n_heads", "ffn_dim": "hidden_dim"},
        **{"activation": "activation", "norm_eps": None},
    ),
    [],
    segments=0,
)
ALBERT = _family(
    Names(
        name="albert",
        stem="Albert",
        body=(
            *_EMBEDDINGS,
            ("widen.{}", "encoder.embedding_hidden_mapping_in.{}"),
            *_layers(
                "encoder.albert_layer_groups.{}.albert_layers.0",  # of each group there is one layer
                *("attention.(query|key|value)", "attention.dense", "attention.LayerNorm"),
                *("ffn", "ffn_output", "full_layer_layer_norm"),
            ),
        ),
        pooler="pooler.{}",
        masked=(("(dense|norm).{}", "predictions.(dense|LayerNorm).{}"), ("bias", "predictions.bias")),
        tied=("predictions.decoder.weight", "predictions.decoder.bias"),
        unread=("sop_classifier.classifier.{}",),
    ),
    _keys(
        "albert",
        {"num_hidden_groups": (1,), "inner_group_num": (1,), **_NO},
        {"vocab_size": 30_000, "embedding_size": 128, "hidden_size": 4096, "num_attention_heads": 64}
        | {"intermediate_size": 16_384, "hidden_act": "gelu_new"},
        **{"segments": "type_vocab_size", "embed_dim": "embedding_size"},
    ),
    [_SEGMENTS],
    shared=True,
)
