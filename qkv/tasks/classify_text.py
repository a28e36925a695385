"""What a trained model says that a text is, or each of its words: `qkv classify TEXT --model FOLDER`.

BERT (1810.04805), section 4 and figure 4: a linear layer over the pooled first token for a text (b), over the state of
every token for its words (d). `qkv train` makes such classifiers; published ones are read as they are. The
probabilities are shares among the labels that the model was trained on.
Left out: several labels a text, regression, and averages over a word's pieces: its first piece speaks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from qkv import device as devices
from qkv.errors import CheckpointError, InputError
from qkv.fetch.pull import find
from qkv.loaded import models
from qkv.loaded.encoder import read_encoder
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.models.bert import BertClassifier, BertTagger
from qkv.tasks.classify import Classified, Label
from qkv.text.bert import BertTokenizer
from qkv.weights.bert import load_classifier, load_tagger
from qkv.weights.folder import Folder

Head = Literal["classifier", "tagger"]
HEADS: dict[str, Head] = {"ForSequenceClassification": "classifier", "ForTokenClassification": "tagger"}


@dataclass(frozen=True)
class Tag:
    """A word as the tokenizer spells it, its likeliest label, and how likely that is."""

    word: str
    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """The words of a text in their order; the model's name, and what was bent."""

    words: tuple[Tag, ...]
    model: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TextReader:
    """A classifier or tagger that is ready, with its tokenizer."""

    name: str
    model: BertClassifier | BertTagger
    tokenizer: BertTokenizer
    warnings: tuple[str, ...] = ()  # what its files say that is not known here

    @property
    def bytes(self) -> int:
        return module_bytes(self.model)

    def read(self, text: str) -> tuple[list[int], tuple[str, ...]]:
        """The tokens, both ends among them, and what was cut. InputError for an empty text."""
        if not isinstance(text, str) or not text.strip():
            raise InputError("the text is empty; give one with words in it")
        ids, context = self.tokenizer.encode_batch([text])[0], self.model.body.config.context
        if len(ids) <= context:
            return ids, self.warnings
        cut = f"the text has {len(ids)} tokens; only the first {context} were read"
        return [*ids[: context - 1], self.tokenizer.last], (*self.warnings, cut)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(labels,) of a classifier, (T, labels) of a tagger, in float64 on the CPU."""
        device = self.model.body.token.weight.device
        return self.model(torch.tensor([ids], device=device))[0].double().cpu()


def load_text_reader(
    model: str | Path, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> TextReader:
    """The classifier or tagger of that name or in that folder. It stays in memory for the next call.

    CheckpointError if it is neither; NotFoundError, ConfigError, InputError.
    """
    path, torch_device = find(model, offline=offline).absolute(), devices.find_device(device)
    if (head := trained_head(path)) is None:
        raise CheckpointError(f"{path} is no classifier; give a folder with a {' or '.join(HEADS)} in its config.json")
    precision = devices.find_dtype(dtype, torch_device)
    what = What(head, path)
    return models.get(what, Where.of(torch_device, precision), lambda: _load(what, torch_device, precision))


def _load(what: What, device: torch.device, dtype: torch.dtype) -> TextReader:
    load: Callable[..., BertClassifier | BertTagger] = load_classifier if what.kind == "classifier" else load_tagger
    return TextReader(what.path.name, *read_encoder(what.path, load, device, dtype))


def trained_head(path: Path) -> Head | None:
    """What the model in a folder was trained for, by the architecture in its config.json; None for neither."""
    if not path.is_dir() or not Folder(path).has("config.json"):
        return None
    names = Folder(path).json("config.json").get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return next((head for ending, head in HEADS.items() if name.endswith(ending)), None)


def classify_text(
    text: str,
    *,
    model: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Classified:
    """The labels of a trained classifier with their probabilities, the likeliest first; a label's score is its logit.

    A text that is longer than the model reads is cut, with a warning. InputError for an empty text or a tagger;
    NotFoundError, CheckpointError, ConfigError.
    """
    reader = load_text_reader(model, device=device, dtype=dtype, offline=offline)
    if not isinstance(reader.model, BertClassifier):
        raise InputError(f"{reader.name} labels words, not texts; use tag_text")
    ids, warnings = reader.read(text)
    with devices.threads(threads):
        logits = reader.logits(ids)
    likely = logits.log_softmax(-1).exp()
    order = torch.argsort(-likely, stable=True).tolist()
    labels = tuple(Label(reader.model.labels[i], float(likely[i]), float(logits[i])) for i in order)
    return Classified(labels=labels, model=reader.name, warnings=warnings)


def tag_text(
    text: str,
    *,
    model: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Tagged:
    """The words of a text, each with what a trained tagger says that it is. Errors as in `classify_text`."""
    reader = load_text_reader(model, device=device, dtype=dtype, offline=offline)
    if not isinstance(reader.model, BertTagger):
        raise InputError(f"{reader.name} labels texts, not words; use classify_text")
    ids, warnings = reader.read(text)
    with devices.threads(threads):
        likely, numbers = reader.logits(ids).log_softmax(-1).exp().max(-1)  # (T,)
    words = list[Tag]()
    for id, share, number in list(zip(ids, likely.tolist(), numbers.tolist()))[1:-1]:
        piece = reader.tokenizer.spell(id)
        if piece.startswith("##") and words:
            words[-1] = Tag(words[-1].word + piece[2:], words[-1].label, words[-1].probability)
        else:
            words.append(Tag(piece.strip(), reader.model.labels[number], share))
    return Tagged(words=tuple(words), model=reader.name, warnings=warnings)
