"""Conversations in a *.jsonl file -> tokens, with a mask over those that the model is to answer.

A line is {"messages": [{"role": ..., "content": ...}, ...]}, as OpenAI's and TRL's fine-tuning data. The model's own
template spells it, so training reads exactly what a chat will. Every line is checked before training starts: the first
bad one is named with its file and number; nothing is cut or left out.
Rows of like length share a batch, since what pads the shorter ones is computed too. Left out: packing several
conversations into a row, tools, and pictures.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from qkv.errors import InputError, shorten
from qkv.text.chat import ChatTemplate, Message
from qkv.text.language import LanguageTokenizer
from qkv.textfiles import json_lines

IGNORED = -100  # the target of what is not to be learnt
_NEIGHBOURS = 16  # batches among which rows are sorted by length

# What a template spells beside the messages.
_UNREAD = ("tools", "functions", "documents", "images", "chat_template_kwargs")

T = TypeVar("T")


class Example(NamedTuple):
    """A conversation's tokens, and for each of them whether it belongs to an answer."""

    ids: list[int]
    answered: list[bool]


class Rows(NamedTuple):
    """Examples side by side: ids (B, T), and targets (B, T), the next token where that is part of an answer."""

    ids: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Speaker:
    """How one model reads conversations; `context`: the most tokens that one may have."""

    tokenizer: LanguageTokenizer
    template: ChatTemplate
    context: int

    def example(self, messages: Sequence[Message]) -> Example:
        """All answers in `messages` are to be learnt, each with the token that ends it. InputError."""
        ids = self.template.encode(messages, self.tokenizer, answer=False)
        answered = [False] * len(ids)
        for i, message in enumerate(messages):
            if message.role == "assistant":
                start = self._prefix(ids, messages[:i], answer=True)
                stop = self._prefix(ids, messages[: i + 1], answer=False)
                ends = [k for k in range(start, stop) if ids[k] in self.tokenizer.stops]
                stop = ends[-1] + 1 if ends else stop  # a template's line break after it is not the model's to write
                answered[start:stop] = [True] * (stop - start)
        if not any(answered):
            raise InputError("it has no answer to learn; a message of the role 'assistant' is needed")
        if len(ids) > self.context:
            raise InputError(f"it has {len(ids)} tokens, but context={self.context}; shorten it or raise context")
        return Example(ids, answered)

    def _prefix(self, ids: list[int], messages: Sequence[Message], *, answer: bool) -> int:
        """How many of `ids` spell the first messages."""
        start = self.template.encode(messages, self.tokenizer, answer=answer) if messages else []
        if ids[: len(start)] != start:
            raise InputError("the model's template spells its beginning otherwise once it goes on; give single answers")
        return len(start)


def messages(value: object, key: str = "messages") -> list[Message]:
    """A list of messages as JSON has it. InputError."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{key} is not a list of messages")
    found = []
    for entry in value:
        match entry:
            case {"role": str(role), "content": str(content), **rest} if not rest:
                found.append(Message(role, content))
            case _:
                raise InputError(f"{shorten(repr(entry))} in {key} is not a message of role and content")
    return found


def read_conversations(path: Path, read: Callable[[list[Message]], T]) -> list[T]:
    """`read` of every conversation of a file. InputError that names the file and the line."""

    def row(value: Mapping[str, Any]) -> T:
        check_row(value)
        return read(messages(value.get("messages")))

    return json_lines(path, row)


def check_row(value: Mapping[str, Any]) -> None:
    """InputError for what a template would spell, and this one's is not given. Other keys are a user's notes."""
    if given := [key for key in _UNREAD if value.get(key)]:
        raise InputError(f"it has {' and '.join(given)}, which training does not read; take them out of every row")


def digest(path: Path) -> str:
    """The hash of the data, which a resumed run must find again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(examples: Sequence[Example]) -> Rows:
    """Padded at the end, which causal attention never looks back from."""
    T = max(len(example.ids) for example in examples) - 1
    ids = torch.zeros(len(examples), T, dtype=torch.long)
    targets = torch.full((len(examples), T), IGNORED)
    for row, (tokens, answered) in enumerate(examples):
        length = len(tokens) - 1
        ids[row, :length] = torch.tensor(tokens[:-1])
        following, learnt = torch.tensor(tokens[1:]), torch.tensor(answered[1:])
        targets[row, :length] = torch.where(learnt, following, IGNORED)
    return Rows(ids, targets)


@dataclass(frozen=True)
class Order:
    """Which examples a step reads: all of them once an epoch, in an order that depends on (seed, epoch) alone."""

    lengths: Sequence[int]
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Of an epoch; the last few examples make a smaller batch."""
        return -(-len(self.lengths) // self.batch)

    def at(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.steps)
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.lengths))
        size = self.batch * _NEIGHBOURS
        near = [sorted(shuffled[i : i + size], key=self._length) for i in range(0, len(shuffled), size)]
        batches = [part[i : i + self.batch] for part in near for i in range(0, len(part), self.batch)]
        return [int(row) for row in batches[rng.permutation(len(batches))[place]]]

    def _length(self, row: int) -> int:
        return self.lengths[row]
