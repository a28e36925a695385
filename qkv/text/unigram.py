"""T5's tokens: the likeliest pieces of a text by a Unigram model, the end token, and the marks of what is left out.

Kudo (1804.10959); the published files are tokenizer.json or spiece.model. Of tokenizer.json only data is taken: pieces
with their scores, and the characters' replacements; how words are cut is compared with what T5 does. A text may spell
the marks <extra_id_0> and on, which stand for spans to be filled in; other control tokens in it are plain text.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from qkv.errors import CheckpointError, shorten
from qkv.text.pieces import open_sentencepiece
from qkv.text.vocabulary import MAX_ID
from qkv.text.words import valid_text
from qkv.untrusted import MAX_BYTES, read_bytes, read_json

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MARK = re.compile(r"(<extra_id_\d{1,3}>)")
MARKS = 100  # that come after the pieces of a spiece.model, the last one first
HIDDEN = "\uffff"  # before control tokens, which no text shall spell: this is no character
_CUTS = ("WhitespaceSplit", "Metaspace")  # of tokenizer.json's pre_tokenizer


class Unigram:
    """`vocab`: the size that an embedding needs; `end` closes every text, `pad` fills up a batch."""

    def __init__(
        self, pieces: Sequence[str], read: Callable[[str], list[int]], write: Callable[[list[int]], str]
    ) -> None:
        self._ids = {piece: id for id, piece in enumerate(pieces)}
        for name in (PAD, END, UNKNOWN):
            if name not in self._ids:
                raise CheckpointError(f"the vocabulary has no {name}")
        self._pieces, self._read, self._write = list(pieces), read, write
        self._control = {self._ids[name] for name in (PAD, END, UNKNOWN)}
        self.vocab, self.end, self.pad = len(pieces), self._ids[END], self._ids[PAD]

    @classmethod
    def load(cls, folder: str | Path) -> "Unigram":
        """From a published folder. CheckpointError; MissingDependencyError for a spiece.model without sentencepiece."""
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return _from_json(folder / "tokenizer.json")
        if (folder / "spiece.model").is_file():
            return _from_sentencepiece(folder / "spiece.model")
        raise CheckpointError(f"{folder} has no tokenizer: neither tokenizer.json nor spiece.model")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the end."""
        ids: list[int] = []
        for part in MARK.split(valid_text(text)):
            ids += [self._ids[part]] if MARK.fullmatch(part) and part in self._ids else self._read(part)
        return [*ids, self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with marks, without other control tokens."""
        found, run = [], list[int]()
        for id in [*ids, self.end]:
            if id < self.vocab and id not in self._control and not MARK.fullmatch(self._pieces[id]):
                run.append(id)
                continue
            found += [self._write(run)] if run else []
            found += [self._pieces[id]] if id < self.vocab and id not in self._control else []
            run = []
        return " ".join(part.strip() for part in found if part.strip())


def _from_json(file: Path) -> Unigram:
    values = read_json(file)
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type", "Unigram") != "Unigram" or "vocab" not in model:
        raise CheckpointError(f"{file} holds no Unigram model, the only one that is read for such a model")
    match model["vocab"]:
        case [*rows] if 0 < len(rows) < MAX_ID and all(_is_row(row) for row in rows):
            scored = [(str(piece), float(score)) for piece, score in rows]
        case _:
            raise CheckpointError(f"{file}: the vocabulary is no list of pieces with their scores")
    added = values.get("added_tokens") or []
    try:
        more = {token["id"]: token["content"] for token in added}
        pieces = [piece for piece, _ in scored]
        pieces += [more[id] for id in range(len(scored), max([*more, -1]) + 1)]
        if not all(isinstance(piece, str) for piece in pieces) or len(pieces) > MAX_ID:
            raise TypeError
        spelled = [(HIDDEN + piece if _is_control(piece) else piece, score) for piece, score in scored]
        encoder = tokenizers.Tokenizer(models.Unigram(spelled, unk_id=model.get("unk_id"), byte_fallback=False))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file} cannot be read: {shorten(str(error))}") from error
    if (rewritten := _normalizer(values.get("normalizer"), file)) is not None:
        encoder.normalizer = rewritten
    _check_cuts(values.get("pre_tokenizer"), file)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    encoder.decoder = decoders.Metaspace(prepend_scheme="always")
    return Unigram(
        pieces,
        lambda text: list(encoder.encode(text, add_special_tokens=False).ids),
        lambda ids: str(encoder.decode(ids, skip_special_tokens=False)),
    )


def _is_control(piece: str) -> bool:
    return piece in (PAD, END, UNKNOWN) or MARK.fullmatch(piece) is not None


def _is_row(row: Any) -> bool:
    match row:
        case [str(), float() | int()]:
            return True
    return False


def _normalizer(node: Any, file: Path) -> normalizers.Normalizer | None:
    """The characters' replacements, if there are any; nothing else is read."""
    if isinstance(node, dict) and node.get("type") == "Sequence" and len(node.get("normalizers") or ()) == 1:
        node = node["normalizers"][0]
    match node:
        case None:
            return None
        case {"type": "Precompiled", "precompiled_charsmap": None | ""}:
            return None
        case {"type": "Precompiled", "precompiled_charsmap": str(table)} if len(table) <= MAX_BYTES:
            try:
                return normalizers.Precompiled(base64.b64decode(table, validate=True))
            except (binascii.Error, ValueError) as error:
                raise CheckpointError(f"{file}: the normalizer's table is broken: {shorten(str(error))}") from error
    raise CheckpointError(f"{file}: the normalizer {shorten(repr(node), 100)} is not T5's")


def _check_cuts(node: Any, file: Path) -> None:
    nodes = node.get("pretokenizers", [node]) if isinstance(node, dict) else []
    kinds = [each.get("type") for each in nodes if isinstance(each, dict)] if isinstance(nodes, list) else []
    if tuple(kinds) not in (_CUTS, _CUTS[1:]):
        raise CheckpointError(f"{file}: the pre_tokenizer {shorten(repr(node), 100)} is not T5's")


def _from_sentencepiece(file: Path) -> Unigram:
    try:
        model = open_sentencepiece(read_bytes(file, MAX_BYTES))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    pieces = [model.id_to_piece(id) for id in range(model.get_piece_size())]
    return Unigram(
        pieces + [f"<extra_id_{i}>" for i in reversed(range(MARKS))],
        lambda text: list(model.encode(text)),
        lambda ids: str(model.decode(ids)),
    )
