"""What a language tokenizer is made of, how it is read from the metadata of a GGUF file, and how it is written.

Published folders are read in `language_files`. Of any file only data is taken: vocabulary, merges, added tokens, and
rules that `words` knows. Files are bounded before they are read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from qkv.atomic import write_file
from qkv.errors import CheckpointError, shorten
from qkv.text.gguf_pieces import piece_merges, piece_rules
from qkv.text.words import Rules, gguf_rules
from qkv.untrusted import read_json, read_text

MAX_ID = 1 << 24

# The bytes of a byte-level vocabulary, by how they are spelled: as themselves where that is printable, the others as
# letters from U+0100 on.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_OF = dict(zip(_ALPHABET, sorted(range(256), key=lambda byte: (chr(byte) not in _ALPHABET, byte))))
_NEEDED_BYTES = {9, 10, 13, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)}

_CONTROL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_NORMAL, _UNKNOWN, _CONTROLS, _USER, _UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
_ENDS = {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"}


@dataclass(frozen=True, kw_only=True)
class Added:
    """A token beside the merged ones. `lstrip` and `rstrip`: it swallows the space before or after it."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def control(self) -> bool:
        return self.special or _CONTROL.fullmatch(self.content) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Token -> id, the merges in their order, the rules of cutting, and the tokens that are not merged.

    `stops`: ids that end an answer. `adds_bos`: every text that the model has seen began with `bos`. `named`: all
    special tokens that have a name, such as pad_token. Raises CheckpointError where the parts do not fit together.
    """

    ids: dict[str, int]
    merges: Sequence[tuple[str, str]]
    rules: Rules
    added: Sequence[Added] = ()
    bos: str | None = None
    eos: str | None = None
    stops: frozenset[int] = field(default_factory=frozenset)
    adds_bos: bool = False
    named: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for token, id in self.ids.items():
            if type(id) is not int or not 0 <= id < MAX_ID:
                raise CheckpointError(f"the id of {shorten(repr(token))} is {shorten(repr(id))}; ids count from 0")
        if len(set(self.ids.values())) != len(self.ids):
            raise CheckpointError("two tokens of the vocabulary have the same id; get the tokenizer again")
        if self.rules.spelling == "bytes":
            needed = [symbol for symbol, byte in BYTE_OF.items() if byte in _NEEDED_BYTES]
        else:
            needed = [f"<0x{byte:02X}>" for byte in range(256)]
        if missing := [symbol for symbol in needed if symbol not in self.ids]:
            some = ", ".join(map(repr, missing[:10]))
            raise CheckpointError(f"the vocabulary has no token for {len(missing)} bytes: {some}; get it again")

    def byte_pairs(self, ids: dict[str, int]) -> models.BPE:
        """The merging model over some of the tokens. CheckpointError for a merge that is not among them."""
        pieces = {"byte_fallback": True, "fuse_unk": True} if self.rules.spelling == "pieces" else {}
        try:
            return models.BPE(vocab=ids, merges=self.merges, ignore_merges=self.rules.ignore_merges, **pieces)
        except Exception as error:  # the library raises no narrower one
            raise CheckpointError(f"vocabulary and merges do not fit together: {shorten(str(error))}") from error


def assemble(ids: dict[str, int], added: Iterable[Added], **parts: Any) -> Vocabulary:
    """A Vocabulary whose added tokens are among `ids`, and whose bos, eos and ends of turns count as such even where
    a file forgets to say so."""
    found = {token.content: token for token in added}
    for name in (parts.get("bos"), parts.get("eos")):
        if name in ids and name not in found:
            found[name] = Added(id=ids[name], content=name, special=True)
    ids |= {token.content: token.id for token in found.values()}
    ends = {token.id for token in found.values() if token.content in _ENDS or token.content == parts.get("eos")}
    stops = frozenset(ends | set(parts.pop("stops", ())) & set(ids.values()))
    named = {key: name if name in ids else None for key, name in parts.items() if key in ("bos", "eos")}
    return Vocabulary(ids=ids, added=tuple(found.values()), stops=stops, **parts | named)


def read_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """From the keys `tokenizer.ggml.*`. CheckpointError for what is missing, broken or not known."""
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    if (model := given.get("model")) not in ("gpt2", "llama"):
        known = "'gpt2' (byte-level) and 'llama' (sentencepiece) are read"
        raise CheckpointError(f"tokenizer.ggml.model is {shorten(repr(model))}; {known}")
    pieces = model == "llama"
    needed = "scores" if pieces else "merges"
    tokens, order, kinds = (given.get(key) for key in ("tokens", needed, "token_type"))
    if not isinstance(tokens, list) or not isinstance(order, np.ndarray if pieces else list):
        raise CheckpointError(f"tokenizer.ggml has no tokens and {needed}; get the file again")
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise CheckpointError("tokenizer.ggml.tokens has a token twice; get the file again")
    kinds = [_NORMAL] * len(tokens) if kinds is None else np.ravel(kinds).tolist()
    if len(kinds) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml has {len(tokens)} tokens, but {len(kinds)} of their types")
    if pieces:
        if len(order) != len(tokens):
            raise CheckpointError(f"tokenizer.ggml has {len(tokens)} tokens, but {len(order)} of their scores")
        rules = piece_rules(leads=given.get("add_space_prefix", True) is True)
        merges = piece_merges({name: float(order[id]) for name, id in ids.items() if kinds[id] == _NORMAL})
    else:
        rules, merges = gguf_rules(str(given.get("pre"))), pairs(list(order))
    names = [tokens[id] for id, kind in enumerate(kinds) if kind in (_UNKNOWN, _CONTROLS, _USER)]
    added = [Added(id=ids[name], content=name, special=kinds[ids[name]] != _USER) for name in names]

    def token(key: str) -> str | None:
        id = given.get(f"{key}_token_id")
        if id is None:
            return None
        if not isinstance(id, int) or not 0 <= id < len(tokens):
            raise CheckpointError(f"tokenizer.ggml.{key}_token_id={shorten(repr(id))} is no token's id")
        return str(tokens[id])

    return assemble(
        {name: id for name, id in ids.items() if kinds[id] != _UNUSED},
        added,
        merges=merges,
        rules=rules,
        bos=token("bos"),
        eos=token("eos"),
        named={f"{ours}_token": name for ours, key in _NAMED.items() if (name := token(key)) is not None},
        stops=[given[key] for key in ("eot_token_id", "eom_token_id") if isinstance(given.get(key), int)],
        # As llama.cpp takes it where the key is absent.
        adds_bos=bool(given.get("add_bos_token", pieces or given.get("pre") in ("llama-bpe", "tekken"))),
    )


def write_folder(vocabulary: Vocabulary, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json, as transformers reads them. OutputError."""
    rules = vocabulary.rules
    backend = tokenizers.Tokenizer(vocabulary.byte_pairs(vocabulary.ids))
    if rules.normalizer is not None:
        backend.normalizer = rules.normalizer
    if rules.words is not None:
        backend.pre_tokenizer = rules.words
    backend.decoder = rules.decoder
    for token in sorted(vocabulary.added, key=lambda token: token.id):
        backend.add_tokens([backend_token(token)])
    if vocabulary.adds_bos and vocabulary.bos is not None:
        begin = (vocabulary.bos, vocabulary.ids[vocabulary.bos])
        single = f"{vocabulary.bos} $A"
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[begin])
    others = vocabulary.named.items()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        **{key: name for key, name in others if key.endswith("_token") and key not in ("bos_token", "eos_token")},
        "add_bos_token": vocabulary.adds_bos,
        "clean_up_tokenization_spaces": False,
    }
    texts = {
        "tokenizer.json": backend.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        "generation_config.json": json.dumps({"eos_token_id": sorted(vocabulary.stops)}, indent=2),
    }
    for name, text in texts.items():
        write_file(folder / name, f"{text}\n".encode())


def backend_token(token: Added) -> tokenizers.AddedToken:
    """As Hugging Face's library has it."""
    return tokenizers.AddedToken(
        token.content,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


def read_vocab(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """vocab.json and the merges of merges.txt. CheckpointError."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for file in (vocab, merges):
        if not file.is_file():
            raise CheckpointError(f"{file} is not there; a tokenizer has tokenizer.json, or vocab.json and merges.txt")
    lines = (line.removesuffix("\r") for line in read_text(merges).split("\n"))
    return read_json(vocab), [line for line in lines if line and not line.startswith("#version")]


def pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges are "left right", or in newer files two texts; symbols hold no space."""
    pairs: list[Any] = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else ())
        for merge in merges
    ]
    for pair, merge in zip(pairs, merges):
        if len(pair) != 2:
            raise CheckpointError(f"the merge {shorten(repr(merge))} is not two symbols; get the tokenizer again")
    return pairs
