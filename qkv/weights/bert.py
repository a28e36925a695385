"""BERT and its kin as transformers publishes them: a folder of config.json and safetensors <-> `Bert` and its heads.

Which family a folder holds is its `model_type`; the tables stand in `bert_family`. A body is read out of any folder,
whatever head it was published with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, shorten, unknown
from qkv.models.bert import Bert, BertClassifier, BertConfig, BertTagger, MaskedBert
from qkv.weights.bert_family import ALBERT, BERT, CLASSES, DISTILBERT, ROBERTA, BertFamily, Kind
from qkv.weights.configs import write_json
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_module

FAMILIES = {family.name: family for family in (DISTILBERT, ALBERT, BERT, ROBERTA)}
MAX_LABELS = 100_000

Model = TypeVar("Model", bound=nn.Module)


def find_family(published: Mapping[str, Any]) -> BertFamily:
    """By a config.json's model_type. ConfigError if it is not here."""
    name = published.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(unknown("model_type", str(name), FAMILIES))
    return FAMILIES[name]


def load_bert(folder: Folder, *, dtype: torch.dtype | None = None) -> Bert:
    """The body, with its pooler if the folder has one. ConfigError, CheckpointError."""
    return _load(folder, "body", Bert, dtype)


def load_masked(folder: Folder, *, dtype: torch.dtype | None = None) -> MaskedBert:
    """The body and its head for masked tokens. ConfigError; CheckpointError, also if there is no such head."""
    return _load(folder, "masked", MaskedBert, dtype)


def load_classifier(folder: Folder, *, dtype: torch.dtype | None = None) -> BertClassifier:
    """The body and its head for whole texts. ConfigError; CheckpointError, also if there is no such head."""
    labels = read_labels(folder.json("config.json"))
    return _load(folder, "classifier", lambda config: BertClassifier(config, labels), dtype)


def load_tagger(folder: Folder, *, dtype: torch.dtype | None = None) -> BertTagger:
    """The body and its head for each token. ConfigError; CheckpointError, also if there is no such head."""
    labels = read_labels(folder.json("config.json"))
    return _load(folder, "tagger", lambda config: BertTagger(config, labels), dtype)


def read_labels(published: Mapping[str, Any]) -> list[str]:
    """What a config.json calls the classes, in their order. ConfigError."""
    names = published.get("id2label")
    if names is None:
        count = published.get("num_labels", 2)
        names = {str(i): f"LABEL_{i}" for i in range(count)} if type(count) is int and count <= MAX_LABELS else None
    match names:
        case dict() if all(names.get(str(i)).__class__ is str for i in range(len(names))) and names:
            return [names[str(i)] for i in range(len(names))]
    raise ConfigError(f"id2label={shorten(repr(names))} must hold a name for each number from 0")


def _load(folder: Folder, kind: Kind, make: Callable[[BertConfig], Model], dtype: torch.dtype | None) -> Model:
    published = folder.json("config.json")
    family = find_family(published)
    tensors = family.table(kind).ours(_modern(folder.tensors()))
    if kind != "body" and not any(not name.startswith(("body.", "tied.")) for name in tensors):
        raise CheckpointError(f"{folder.path} is no {family.stem}{CLASSES[kind]}: it has no such head")
    if kind == "masked":
        _untie(tensors)
    pooled = kind == "classifier" or any("pooler." in name for name in tensors)
    config = family.config(published, pooled=pooled)
    return load_module(lambda: make(config), tensors, dtype=dtype)


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


def _untie(tensors: dict[str, Tensor]) -> None:
    """Takes out copies of what a head shares. CheckpointError if they are no copies."""
    for copy, of in (("tied.weight", "body.token.weight"), ("tied.bias", "bias")):
        tensor = tensors.pop(copy, None)
        if tensor is not None and not torch.equal(tensor, tensors.setdefault(of, tensor)):
            raise CheckpointError("the head's output is not the embedding; only heads that share it are read")


def save_bert(
    model: Bert | MaskedBert | BertClassifier | BertTagger,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers opens: config.json and model.safetensors.

    `family` is the model_type to write (None: the first that fits), `dtype` converts, `also` are further keys of
    config.json. ConfigError if no family is published like this; OutputError.
    """
    body = model if isinstance(model, Bert) else model.body
    kind: Kind = {Bert: "body", MaskedBert: "masked", BertClassifier: "classifier", BertTagger: "tagger"}[type(model)]  # type: ignore[assignment]
    if family is not None and family not in FAMILIES:
        raise ConfigError(unknown("family", family, FAMILIES))
    found, config = _published(body.config, family)
    if isinstance(model, BertClassifier | BertTagger):
        config["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        config["label2id"] = {label: i for i, label in enumerate(model.labels)}
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in found.table(kind).published(export_weights(model)).items()
    }
    kept = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = {"architectures": [found.stem + CLASSES[kind]], **config, "dtype": kept, **(also or {})}
    write_json(Path(path) / "config.json", config)
    write_tensors(path, "model", tensors)


def _published(config: BertConfig, name: str | None) -> tuple[BertFamily, dict[str, Any]]:
    reasons = []
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            return family, family.published(config)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; ".join(reasons))
