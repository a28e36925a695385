r"""CLIP's tokenizer: prompts to token ids and back to the folder layout that Stable Diffusion publishes.

Byte-level byte-pair encoding (Sennrich et al. 2016, section 3.2; Radford et al. 2021, section 2.4):
NFC, runs of whitespace to one space, lower case; letters, single digits and runs of other characters
are words; a word's UTF-8 bytes are merged pair by pair, and its last symbol carries `</w>`.

The merging is Hugging Face's `tokenizers`. Only the vocabulary and the merges are read from a folder,
never its patterns or processors: the rules above are CLIP's, and a hostile pattern is never run.
Control tokens are not registered with the encoder, so a prompt that spells `<|endoftext|>` is plain
text and can't end the sequence. The same holds for Stable Diffusion 2's padding token `!`, which
transformers cuts out of prompts as a special token and CLIP's own tokenizer does not.

Left out: tokens added behind the vocabulary (textual inversion), and decoding.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from qkv.errors import CheckpointError, InputError, OutputError, shorten
from qkv.text.weighting import Segment, check_length
from qkv.text.words import valid_text

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77  # positions of every published CLIP text encoder
MAX_BYTES = 16 << 20  # a file of the folder; the published ones have 1 to 4 MB
MAX_CHUNKS = 32  # a prompt

_END = "</w>"
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # in CLIP's order: "!" is the first
_ALPHABET = [*_BYTES, *(symbol + _END for symbol in _BYTES)]
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
    """CLIP's rules over one vocabulary and its merges.

    Raises CheckpointError where they do not fit together: an id that is no number or twice there, a
    merge of unknown symbols, a missing byte (whose text would be lost) or control token.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        bos: str = BOS,
        eos: str = EOS,
        pad: str = EOS,
    ) -> None:
        _check(vocab, merges, (bos, eos, pad))
        self.bos, self.eos, self.pad = bos, eos, pad
        self._ids, self._merges = dict(vocab), list(merges)
        self._encoder = _encoder(models.BPE(vocab=self._ids, merges=self._merges, end_of_word_suffix=_END))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From a published folder: tokenizer.json, or vocab.json and merges.txt; raises CheckpointError."""
        file = folder / "tokenizer.json"
        if file.is_file():
            vocab, merges = _read_tokenizer_json(file)
        else:
            file = folder / "vocab.json"
            vocab, merges = _read_json(file), _read_merges(folder / "merges.txt")
        try:
            return cls(vocab, merges, **_read_control_tokens(folder))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes vocab.json, merges.txt and their configuration, as transformers' CLIPTokenizer reads them."""
        control = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.eos, "pad_token": self.pad}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, **control}
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        texts = {
            "vocab.json": json.dumps(self._ids, ensure_ascii=False),
            "merges.txt": f"#version: 0.2\n{merges}",
            "tokenizer_config.json": json.dumps(config, indent=2),
            "special_tokens_map.json": json.dumps(control, indent=2),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}") from error

    @property
    def vocab(self) -> int:
        """The size that a text encoder's embedding needs."""
        return max(self._ids.values()) + 1

    @property
    def start(self) -> int:
        """The id that begins every chunk."""
        return self._ids[self.bos]

    @property
    def end(self) -> int:
        """The id that ends every chunk's text."""
        return self._ids[self.eos]

    @property
    def padding(self) -> int:
        """The id that fills a chunk up."""
        return self._ids[self.pad]

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
            yield from (_Token(token, segment.weight, len(words) - 1) for token in ids)

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
        end_of_word_suffix=_END,
        show_progress=False,
    )
    learner = _encoder(models.BPE(end_of_word_suffix=_END))
    learner.train_from_iterator(map(valid_text, texts), trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    tokens, merges = dict.fromkeys(_ALPHABET), []
    for left, right in learnt:
        if len(tokens) == vocab - 2:
            break
        tokens[left + right] = None
        merges.append((left, right))
    return Tokenizer({token: index for index, token in enumerate([*tokens, BOS, EOS])}, merges)


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


def _read(path: Path) -> str:
    """A text file of bounded size; raises CheckpointError."""
    if not path.is_file():  # a pipe or a device would never end
        raise CheckpointError(f"{path} is not there; a CLIP tokenizer has tokenizer.json, or vocab.json and merges.txt")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES >> 20} MiB; that is no CLIP tokenizer")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text; get it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {shorten(str(error))}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; get it again")
    return values


def _read_tokenizer_json(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    model = _read_json(path).get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != _END:
        raise CheckpointError(f"{path} is not a CLIP tokenizer: its model is not BPE with {_END!r}")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} has no vocab and merges; get it again")
    return vocab, [_merge(pair.split(" ") if isinstance(pair, str) else pair, path) for pair in merges]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read(path).removesuffix("\n").split("\n")
    pairs = (line.removesuffix("\r").split(" ") for line in lines if not line.startswith("#version"))
    return [_merge(pair, path) for pair in pairs]


def _merge(pair: object, path: Path) -> tuple[str, str]:
    if isinstance(pair, list) and len(pair) == 2:  # a `match` takes three times as long, of 12,000
        left, right = pair
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise CheckpointError(f"{path} has a merge that is not two symbols: {shorten(repr(pair))}")


def _read_control_tokens(folder: Path) -> dict[str, str]:
    """BOS, EOS and padding; special_tokens_map.json wins over a configuration of the older kind."""
    config_file, map_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = _read_json(config_file) if config_file.is_file() else {}
    if "added_tokens_decoder" not in config and map_file.is_file():
        config |= _read_json(map_file)
    control = {}
    for name in ("bos", "eos", "pad"):
        match config.get(f"{name}_token"):
            case str(token) | {"content": str(token)}:
                control[name] = token
            case None:
                pass  # CLIP's own
            case other:
                raise CheckpointError(f"{config_file}: {name}_token={shorten(repr(other))} is not a token")
    return control
