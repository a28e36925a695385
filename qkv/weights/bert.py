"""BERT and its kin as transformers publishes them: a folder of config.json and safetensors <-> `Bert` and its heads.

The tables stand in `bert_family`. A body is read out of any folder, whatever head it was published with.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qkv.errors import ConfigError, shorten
from qkv.models.bert import Bert, BertClassifier, BertConfig, BertTagger, MaskedBert
from qkv.weights.families import load_model, save_model
from qkv.weights.folder import Folder

MAX_LABELS = 100_000
_HEADS = {Bert: "", MaskedBert: "masked", BertClassifier: "classifier", BertTagger: "tagger"}


def load_bert(folder: Folder, **options: Any) -> Bert:
    """The body, with its pooler if the folder has one; options and errors here as `load_model`."""
    return load_model(folder, BertConfig, Bert, **options)


def load_masked(folder: Folder, **options: Any) -> MaskedBert:
    """The body and its head for masked tokens. CheckpointError, as below, also if there is no such head."""
    return load_model(folder, BertConfig, MaskedBert, head="masked", **options)


def load_classifier(folder: Folder, **options: Any) -> BertClassifier:
    """The body and its head for whole texts."""
    make = partial(BertClassifier, labels=read_labels(folder.json("config.json")))
    return load_model(folder, BertConfig, make, head="classifier", **options)


def load_tagger(folder: Folder, **options: Any) -> BertTagger:
    """The body and its head for each token."""
    make = partial(BertTagger, labels=read_labels(folder.json("config.json")))
    return load_model(folder, BertConfig, make, head="tagger", **options)


def read_labels(published: Mapping[str, Any]) -> list[str]:
    """The names of the classes in a config.json, in their order. ConfigError."""
    names = published.get("id2label")
    if names is None:
        count = published.get("num_labels", 2)
        names = {str(i): f"LABEL_{i}" for i in range(count)} if type(count) is int and count <= MAX_LABELS else None
    match names:
        case dict() if all(names.get(str(i)).__class__ is str for i in range(len(names))) and names:
            return [names[str(i)] for i in range(len(names))]
    raise ConfigError(f"id2label={shorten(repr(names))} must hold a name for each number from 0")


def save_bert(model: Bert | MaskedBert | BertClassifier | BertTagger, path: str | Path, **options: Any) -> None:
    """Writes a folder that transformers opens; options as `save_model`."""
    body = model if isinstance(model, Bert) else model.body
    labels: dict[str, Any] = {}
    if isinstance(model, BertClassifier | BertTagger):
        labels["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        labels["label2id"] = {label: i for i, label in enumerate(model.labels)}
    also = labels | dict(options.pop("also", None) or {})
    save_model(model, body.config, path, head=_HEADS[type(model)], also=also, **options)
