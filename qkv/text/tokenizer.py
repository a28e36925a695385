r"""CLIP's tokenizer: prompts to token ids. Its files are read and written in `tokenizer_files`.

Byte-level byte-pair encoding (Sennrich et al. 2016, section 3.2; Radford et al. 2021, section 2.4):
NFC, runs of whitespace to one space, lower case; letters, single digits and runs of other characters
are words; a word's UTF-8 bytes are merged pair by pair, and its last symbol carries `</w>`.

The merging is Hugging Face's `tokenizers`. Tokens that were added behind the vocabulary are found first and
never cut. Where one stands for several vectors (textual inversion, 2208.01618: `<toy>`, `<toy>_1`, ...), its
first name in a prompt means all of them.

Control tokens are not registered with the encoder, so a prompt that spells `<|endoftext|>` is plain
text and can't end the sequence. The same holds for Stable Diffusion 2's padding token `!`, which
transformers cuts out of prompts as a special token and CLIP's own tokenizer does not.

Left out: decoding.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from qkv.errors import CheckpointError, InputError, shorten
from qkv.text.tokenizer_files import BOS, CONTEXT, END, EOS, Files, read_files, write_files
from qkv.text.vocabulary import backend_token
from qkv.text.weighting import Segment, check_length
from qkv.text.words import valid_text

MAX_CHUNKS = 32  # a prompt

_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # in CLIP's order: "!" is the first
_ALPHABET = [*_BYTES, *(symbol + END for symbol in _BYTES)]
_COMMA_REACH = 20  # how many tokens back a full chunk may be cut at a comma, as in the web UI


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as N chunks, each BOS, up to `context` - 2 tokens, EOS and padding."""

    ids: npt.NDArray[np.int64]  # (N, context)
    weights: npt.NDArray[np.float32]  # (N, context), 1 at BOS, EOS and padding
    words: tuple[str, ...]  # as written in the prompt, in order
    word_of: npt.NDArray[np.int64]  # (N, context), index into words, -1 at BOS, EOS and padding


class _Token(NamedTuple):
    id: int
    weight: float
    word: int


class Tokenizer:
    """CLIP's rules over one vocabulary, its merges and its added tokens.

    Raises CheckpointError where they do not fit together: an id that is no number or twice there, a
    merge of unknown symbols, a missing byte (whose text would be lost) or control token.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._ids = {**{token.content: token.id for token in files.added}, **files.vocab}
        _check(self._ids, files.merges, (files.bos, files.eos, files.pad))
        # The added ones stand in the vocabulary too, for there the encoder finds their ids.
        self._encoder = _encoder(models.BPE(vocab=self._ids, merges=list(files.merges), end_of_word_suffix=END))
        self._encoder.add_tokens([backend_token(token) for token in files.added])
        self._following = {self._ids[token.content]: self._parts(token.content) for token in files.added}

    def _parts(self, name: str) -> list[int]:
        """The further vectors of an added token."""
        names = takewhile(self._ids.__contains__, (f"{name}_{i}" for i in count(1)))
        return [self._ids[part] for part in names]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From a published folder: tokenizer.json, or vocab.json and merges.txt. CheckpointError, ConfigError."""
        files = read_files(folder)
        try:
            return cls(files)
        except CheckpointError as error:
            whole = folder / "tokenizer.json"
            raise CheckpointError(f"{whole if whole.is_file() else folder / 'vocab.json'}: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes the files that transformers' CLIPTokenizer reads. OutputError."""
        write_files(self._files, folder)

    @property
    def context(self) -> int | None:
        """How many tokens a text has at most, if its files say it."""
        return self._files.context

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its files say that is not known here."""
        return self._files.warnings

    @property
    def vocab(self) -> int:
        """The size that a text encoder's embedding needs."""
        return max(self._ids.values()) + 1

    @property
    def start(self) -> int:
        """The id that begins every chunk."""
        return self._ids[self._files.bos]

    @property
    def end(self) -> int:
        """The id that ends every chunk's text."""
        return self._ids[self._files.eos]

    @property
    def padding(self) -> int:
        """The id that fills a chunk up."""
        return self._ids[self._files.pad]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS; raises InputError beyond 100,000 characters."""
        check_length(text)
        ids: list[int] = self._encoder.encode(valid_text(text), add_special_tokens=False).ids
        return ids

    def rows(self, texts: Iterable[Sequence[int]], longest: int) -> npt.NDArray[np.int64]:
        """Each text's tokens between start and end, at most `longest` in all, padded to the longest of them (B, T).

        For causal towers that are read at the end token: what follows it does not matter.
        """
        ids = [[self.start, *text[: longest - 2], self.end] for text in texts]
        width = max(map(len, ids))
        return np.array([row + [self.padding] * (width - len(row)) for row in ids])

    def chunks(self, segments: Iterable[Segment], context: int = CONTEXT) -> Prompt:
        """A weighted prompt as chunks of `context` positions; nothing of it is dropped.

        Segments are encoded one by one. What is too long for a chunk is cut after a comma among the
        chunk's last 20 tokens, else between words, else inside a word. Raises InputError beyond 32 chunks.
        """
        room = context - 2  # beside BOS and EOS
        if room < 1:
            raise InputError(f"context={context} leaves no room for a token; give at least 3")
        words: list[str] = []
        runs: list[list[_Token]] = [[]]
        for segment in segments:
            if segment.starts_chunk:
                runs.append([])
            runs[-1].extend(self._tokens(segment, words))
        if len(runs) > 1 and not runs[-1]:
            runs.pop()  # a BREAK at the very end opens nothing
        chunks = [chunk for run in runs for chunk in _cut(run, words, room)]
        if len(chunks) > MAX_CHUNKS:
            tokens = sum(map(len, chunks))
            raise InputError(
                f"the prompt has {tokens:,} tokens and needs {len(chunks):,} chunks of {room}; "
                f"at most {MAX_CHUNKS} chunks: shorten it"
            )
        return self._lay_out(chunks, words, context)

    def _tokens(self, segment: Segment, words: list[str]) -> Iterator[_Token]:
        """The tokens of a segment; its words, as they are written, go to the end of `words`."""
        check_length(segment.text)
        text = valid_text(segment.text)
        encoding = self._encoder.encode(text, add_special_tokens=False)
        pieces = zip(encoding.word_ids, encoding.offsets, encoding.ids)
        for _, word in groupby(pieces, key=itemgetter(0)):
            _, spans, ids = zip(*word)
            words.append(text[spans[0][0] : spans[-1][1]])
            whole = (part for token in ids for part in (token, *self._following.get(token, ())))
            yield from (_Token(token, segment.weight, len(words) - 1) for token in whole)

    def _lay_out(self, chunks: list[list[_Token]], words: list[str], context: int) -> Prompt:
        shape = len(chunks), context
        ids = np.full(shape, self.padding, np.int64)
        weights = np.ones(shape, np.float32)
        word_of = np.full(shape, -1, np.int64)
        ids[:, 0] = self.start
        for row, chunk in enumerate(chunks):
            end = len(chunk) + 1
            ids[row, end] = self.end
            if chunk:
                ids[row, 1:end], weights[row, 1:end], word_of[row, 1:end] = zip(*chunk)
        return Prompt(ids, weights, tuple(words), word_of)


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A tokenizer of at most `vocab` tokens learnt from `texts`; the same texts give the same tokenizer.

    Laid out like CLIP's: 256 byte symbols, the same with `</w>`, one token a merge, BOS, EOS; so every
    text in every language can be encoded. It is smaller than `vocab` if no pair is left that occurs
    twice. Raises InputError if `vocab` has no room for the bytes and control tokens.
    """
    smallest = len(_ALPHABET) + 2
    if vocab < smallest:
        raise InputError(f"vocab={vocab} is too small; the bytes and control tokens need {smallest}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        # The trainer breaks ties by id, and would number the symbols in a hash map's order.
        special_tokens=_ALPHABET,
        end_of_word_suffix=END,
        show_progress=False,
    )
    learner = _encoder(models.BPE(end_of_word_suffix=END))
    learner.train_from_iterator(map(valid_text, texts), trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    tokens, merges = dict.fromkeys(_ALPHABET), []
    for left, right in learnt:
        if len(tokens) == vocab - 2:
            break
        tokens[left + right] = None
        merges.append((left, right))
    return Tokenizer(Files(vocab={token: index for index, token in enumerate([*tokens, BOS, EOS])}, merges=merges))


def _encoder(model: models.BPE) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer(model)
    whitespace = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    encoder.normalizer = normalizers.Sequence([normalizers.NFC(), whitespace, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return encoder


def _cut(tokens: list[_Token], words: list[str], room: int) -> Iterator[list[_Token]]:
    """`tokens` in pieces of at most `room`, at least one."""
    start = 0
    while len(tokens) - start > room:
        end = start + room
        commas = (i for i in range(end, end - min(_COMMA_REACH, room), -1) if words[tokens[i - 1].word] == ",")
        starts = (i for i in range(end, start, -1) if tokens[i - 1].word != tokens[i].word)
        end = next(commas, None) or next(starts, end)
        yield tokens[start:end]
        start = end
    yield tokens[start:]


def _check(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], control: Iterable[str]) -> None:
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < 2**31:
            raise CheckpointError(f"the id of {shorten(token)!r} is {shorten(repr(index))}; ids count from 0")
        if token != valid_text(token):
            raise CheckpointError(f"the token {shorten(repr(token))} is not Unicode; get the file again")
    if len(set(vocab.values())) != len(vocab):
        raise CheckpointError("two tokens have the same id; get the file again")
    for symbol in [*_ALPHABET, *control]:
        if symbol not in vocab:
            raise CheckpointError(f"the vocabulary has no {shorten(symbol)!r}; a CLIP tokenizer needs it")
    for left, right in merges:
        if not (left in vocab and right in vocab and left + right in vocab):
            raise CheckpointError(f"the merge {shorten(left + ' ' + right)!r} is not in the vocabulary")
