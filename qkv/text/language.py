"""The tokenizer of a language model: texts to ids and back, whole or piece by piece as they are generated.

Byte-pair encoding (Sennrich et al. 2016, section 3.2) over bytes (Radford et al. 2019, section 2.2) or over
sentencepiece's pieces; the merging is Hugging Face's `tokenizers`, the rules before it are those of `words`.

Control tokens (ends of turns and texts, and whatever else is flagged special or spelled <|...|>) are not known to the
encoder. So a text that spells one is plain text, whoever wrote it, unless it is encoded with `control=True`. Tokens
that were added without being special, such as NeoX's runs of spaces, are taken out of every text, as published.

A byte that the vocabulary has no token for is lost, as with the publishers' own tokenizers; a vocabulary that lacks
more than control characters and bytes of unassigned planes is refused. Left out: sentencepiece and Unigram models
(tokenizer.model), whose published folders hold a tokenizer.json too, and a maximum length, which is the model's.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from qkv.errors import CheckpointError, InputError, shorten
from qkv.text.language_files import read_folder
from qkv.text.vocabulary import BYTE_OF, MAX_ID, Vocabulary, backend_token, read_gguf, write_folder
from qkv.text.words import SPACE, valid_text

MAX_TEXT = 4_000_000  # characters; tokenising takes about a second a million


class LanguageTokenizer:
    """One vocabulary under one set of rules; `load` and `from_gguf` read them.

    `vocab`: the size that an embedding needs. `bos`, `eos`: the ids that begin and end a text, if there are any;
    `adds_bos`: the model has seen every text begin with bos, so a prompt should. `stops`: the ids that end an answer.
    `control`: how the control tokens are spelled, the longest first.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = v = vocabulary
        self.bos, self.eos = (None if name is None else v.ids[name] for name in (v.bos, v.eos))
        self.stops, self.adds_bos = v.stops, v.adds_bos and v.bos is not None
        self._tokens = {id: token for token, id in v.ids.items()}
        self.vocab = max(self._tokens) + 1
        self._control = {token.content: token for token in v.added if token.control}
        self._control_ids = frozenset(token.id for token in self._control.values())
        self._verbatim = frozenset(token.id for token in v.added)
        self.control = tuple(sorted(self._control, key=len, reverse=True))
        self._spelled = re.compile(f"({'|'.join(map(re.escape, self.control))})") if self.control else None
        self._first, self._later = self._encoders()

    @classmethod
    def load(cls, folder: str | Path) -> "LanguageTokenizer":
        """From a published folder (see `language_files`). CheckpointError."""
        vocabulary = read_folder(Path(folder))
        try:
            return cls(vocabulary)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "LanguageTokenizer":
        """From the metadata of a GGUF file. CheckpointError."""
        return cls(read_gguf(metadata))

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` and transformers' AutoTokenizer read. OutputError."""
        write_folder(self.vocabulary, Path(folder))

    def _encoders(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Of a text's beginning, and of what follows a control token; they share the vocabulary."""
        rules = self.vocabulary.rules
        plain = {token: id for token, id in self.vocabulary.ids.items() if token not in self._control}
        model = self.vocabulary.byte_pairs(plain)
        encoders = []
        for words in (rules.words, rules.later):
            encoder = tokenizers.Tokenizer(model)
            if rules.normalizer is not None:
                encoder.normalizer = rules.normalizer
            if words is not None:
                encoder.pre_tokenizer = words
            encoder.add_tokens([backend_token(token) for token in self.vocabulary.added if not token.control])
            encoders.append(encoder)
        return encoders[0], encoders[1]

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """The ids of a text, without bos. Only with `control` do control tokens that it spells count as such.

        Half a surrogate pair becomes U+FFFD. InputError beyond 4,000,000 characters.
        """
        return self.encode_parts(self.split(text) if control else [text])

    def split(self, text: str) -> list[str | int]:
        """A text as runs of plain text and the ids of the control tokens that it spells between them."""
        if self._spelled is None:
            return [text]
        _check_length(text)
        parts: list[str | int] = []
        swallow = False
        for i, part in enumerate(self._spelled.split(text)):
            if i % 2 == 0:  # plain and control alternate
                parts.append(part.lstrip() if swallow else part)
                continue
            token = self._control[part]
            if token.lstrip:
                parts[-1] = str(parts[-1]).rstrip()
            parts.append(token.id)
            swallow = token.rstrip
        return [part for part in parts if part != ""]

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """The ids of runs of plain text with ids between them, as `split` gives them."""
        ids: list[int] = []
        encoder = self._first
        for part in parts:
            if isinstance(part, str):
                _check_length(part)
                ids += encoder.encode(valid_text(part), add_special_tokens=False).ids
            else:
                ids.append(part)
            encoder = self._later
        return ids

    def decode(self, ids: Iterable[int], *, control: bool = False) -> str:
        """The text of ids; `control` spells control tokens out, else they are left out. Bytes that are no UTF-8
        become U+FFFD."""
        stream = self.stream(control=control)
        return stream.push(*ids) + stream.finish()

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 of one token, which may begin or end within a character; nothing for an id without a token, as
        embeddings are padded. InputError for what cannot be an id."""
        token = self._tokens.get(id)
        if token is None:
            if not 0 <= id < MAX_ID:
                raise InputError(f"token id {shorten(str(id))} is out of range; ids go from 0 to {self.vocab - 1}")
            return b""
        if id in self._verbatim:
            return token.encode()
        if self.vocabulary.rules.spelling == "pieces":
            return _piece_bytes(token)
        try:
            return bytes([BYTE_OF[symbol] for symbol in token])
        except KeyError:  # no spelling of bytes: a word that was put into the vocabulary as it is
            return token.encode()

    def stream(self, *, control: bool = False, continues: bool = False) -> "Stream":
        """A text that arrives id by id. `continues`: it goes on from a text, so a space that it begins with counts."""
        return Stream(self, control=control, leads=self.vocabulary.rules.leads and not continues)

    def is_control(self, id: int) -> bool:
        """Whether it is a control token's id."""
        return id in self._control_ids


class Stream:
    """Ids to text as they come: whole characters only. All that `push` and `finish` give is what `decode` gives."""

    def __init__(self, tokenizer: LanguageTokenizer, *, control: bool, leads: bool) -> None:
        self._tokenizer, self._control, self._leads = tokenizer, control, leads
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """The characters that these ids complete."""
        tokenizer = self._tokenizer
        return self._text(b"".join(map(tokenizer.token_bytes, filter(self._shown, ids))))

    def finish(self) -> str:
        """What is left: U+FFFD if the text ended within a character."""
        return self._text(b"", final=True)

    def _shown(self, id: int) -> bool:
        return self._control or not self._tokenizer.is_control(id)

    def _text(self, data: bytes, final: bool = False) -> str:
        text = self._characters.decode(data, final)
        if self._leads and text:
            self._leads = False
            return text.removeprefix(" ")
        return text


def _piece_bytes(piece: str) -> bytes:
    """The bytes of a sentencepiece token: <0x0A> is the byte 10, ▁ a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace(SPACE, " ").encode()


def _check_length(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise InputError(f"the text has {len(text):,} characters; at most {MAX_TEXT:,} are read at once: shorten it")
