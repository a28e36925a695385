"""What was masked: `qkv fill "The capital of France is [MASK]."`

    text ─ tokens, a mask among them ─ BERT ─ a distribution over the vocabulary at each mask

Several masks are guessed each for itself, the others unseen, as the model was trained; a joint guess is left out.
It computes in float32 unless asked otherwise: one text is not worth the rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qkv import device as devices
from qkv import registry
from qkv.errors import CheckpointError, InputError, shorten
from qkv.fetch.pull import find
from qkv.loaded import models
from qkv.loaded.encoder import read_encoder
from qkv.loaded.files import as_folder
from qkv.loaded.memory import module_bytes
from qkv.loaded.models import What
from qkv.loaded.where import Where
from qkv.models.bert import MaskedBert
from qkv.text.bert import ROBERTA, BertTokenizer, Control
from qkv.weights.bert import load_masked


@dataclass(frozen=True)
class Guess:
    """One token for a mask; `text` is the whole text with it there, and the other masks as they were."""

    token: str
    id: int
    probability: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Filled:
    """For each mask, in the order of the text, its likeliest tokens; `text` has the likeliest in every mask, `warnings`
    says what the model could not read."""

    masks: tuple[tuple[Guess, ...], ...]
    text: str
    model: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Filler:
    """A model that is ready."""

    name: str
    tokenizer: BertTokenizer
    bert: MaskedBert
    warnings: tuple[str, ...] = ()  # what its files say that is not known here

    @property
    def bytes(self) -> int:
        return module_bytes(self.bert)

    def read(self, text: str) -> list[int]:
        """The tokens of a text with masks. InputError without a mask, or for more than the model reads."""
        mask, other = self.tokenizer.control.mask, {Control.mask, ROBERTA.mask} - {self.tokenizer.control.mask}
        if not isinstance(text, str) or mask not in text:
            wrong = next((f" instead of {name}" for name in other if isinstance(text, str) and name in text), "")
            raise InputError(f"the text has no mask; write {mask}{wrong} where {self.name} is to fill something in")
        ids, context = self.tokenizer.encode(text, masks=True), self.bert.body.config.context
        if len(ids) > context:
            raise InputError(f"the text has {len(ids)} tokens with both ends; {self.name} reads at most {context}")
        return ids

    @torch.inference_mode()
    def fill(self, text: str, top: int = 5) -> Filled:
        """The `top` likeliest tokens of each mask. InputError."""
        if type(top) is not int or not 1 <= top <= self.tokenizer.vocab:
            raise InputError(f"top={shorten(repr(top))} is out of range; it must be 1 to {self.tokenizer.vocab}")
        ids = self.read(text)
        places = [i for i, id in enumerate(ids) if id == self.tokenizer.mask]
        device = self.bert.bias.device
        states = self.bert.body(torch.tensor([ids], device=device))[0, places]  # (masks, D)
        logits = self.bert.logits(states).float()[:, : self.tokenizer.vocab]  # (masks, V)
        found = (logits.log_softmax(-1).exp()).topk(top)
        masks = tuple(
            tuple(
                Guess(self.tokenizer.spell(id), id, share, self._filled(text, {number: id}))
                for share, id in zip(shares, chosen)
            )
            for number, (shares, chosen) in enumerate(zip(found.values.tolist(), found.indices.tolist()))
        )
        whole = self._filled(text, {number: guesses[0].id for number, guesses in enumerate(masks)})
        return Filled(masks=masks, text=whole, model=self.name, warnings=self._warnings(ids))

    def _warnings(self, ids: Sequence[int]) -> tuple[str, ...]:
        strange = sum(self.tokenizer.spell(id) == self.tokenizer.control.unknown for id in ids)
        if not strange:
            return self.warnings
        read = self.tokenizer.control.unknown
        told = f"{strange} of {len(ids) - 2} tokens are unknown to {self.name} and were read as {read}"
        return (*self.warnings, told)

    def _filled(self, text: str, chosen: dict[int, int]) -> str:
        """The text as it was written, with tokens in place of some masks."""
        first, *rest = text.split(self.tokenizer.control.mask)
        for number, part in enumerate(rest):
            token = self.tokenizer.spell(chosen[number]) if number in chosen else self.tokenizer.control.mask
            if token.startswith("##"):  # goes on within a word
                first, token = first.rstrip(), token[2:]
            if token.startswith(" "):  # brings the space that stands before the mask
                first = first.rstrip()
            first += token + part
        return first


def fill(
    text: str,
    *,
    top: int = 5,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Filled:
    """What may stand in the masks of `text`, spelled as the model spells them ([MASK], <mask>), with probabilities.

    `model` is what `qkv fill --model` takes: a checkpoint with a head for masked tokens. InputError without a mask;
    NotFoundError, CheckpointError, ConfigError.
    """
    filler = load_filler(model, device=device, dtype=dtype, offline=offline)
    with devices.threads(threads):
        return filler.fill(text, top)


def load_filler(
    model: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> Filler:
    """The model of that name or in that folder; None is the default one. It stays in memory for the next call.

    NotFoundError, CheckpointError (also if it has no head for masked tokens), ConfigError, InputError.
    """
    torch_device = devices.find_device(device)
    path = as_folder(
        find(model if model is not None else registry.DEFAULTS["fill"], "fill", offline=offline)
    ).absolute()
    precision = find_precision(dtype, torch_device)
    return models.get(
        What("fill", path), Where.of(torch_device, precision), lambda: _load(path, torch_device, precision)
    )


def find_precision(dtype: str, device: torch.device) -> torch.dtype:
    """That of a dtype's name; auto is float32 on every device. InputError."""
    return devices.find_dtype("float32" if dtype == "auto" else dtype, device)


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Filler:
    bert, tokenizer, warnings = read_encoder(path, load_masked, device, dtype)
    if tokenizer.mask is None:
        raise CheckpointError(f"the tokenizer in {path} has no token for a mask; choose a model with one")
    return Filler(name=path.name, tokenizer=tokenizer, bert=bert, warnings=warnings)
