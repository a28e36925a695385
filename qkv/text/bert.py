r"""The tokenizers of BERT's kin: a text as the ids of its pieces, between a first and a last control token.

WordPiece (Wu et al. 1609.08144, section 4.1, as BERT has it), byte-level BPE (RoBERTa's, as GPT-2's), and the symbols
of SMILES, the line notation of molecules (Schwaller et al. 1811.02633), for models of chemical reactions. The cutting
is Hugging Face's `tokenizers`; of a folder's files only data is taken, and they are bounded before they are read.

Control tokens are not known to the encoder: a text that spells [SEP] is plain text, whoever wrote it. Only `masks`
makes the mask's spelling count. Left out: sentencepiece's Unigram (ALBERT's own, XLM-RoBERTa), and pairs of texts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from qkv.atomic import write_file
from qkv.errors import CheckpointError, InputError, shorten
from qkv.text.language import MAX_TEXT
from qkv.text.language_files import Told, complete, read_folder, read_told, tokens_of
from qkv.text.vocabulary import MAX_ID, Added, backend_token
from qkv.text.words import valid_text
from qkv.untrusted import read_json, read_text

FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
# Atoms in brackets hold no other bracket; the published pattern would look for their end to the end of the text.
SMILES = r"\[[^\[\]]{1,64}\]|Br?|Cl?|[NOSPFIbcnops().=#+\\/:~@?*$-]|>>?|%[0-9]{2}|[0-9]"
# Classes that clean a text as tokenizer_config.json says, whatever tokenizer.json does.
_BERTS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer", "MobileBertTokenizer")
MAX_WORD = 1000  # characters of a word; longer ones are unknown


@dataclass(frozen=True)
class Control:
    """How the control tokens are spelled: those of padding, of what is unknown, at both ends, and the mask."""

    pad: str = "[PAD]"
    unknown: str = "[UNK]"
    first: str = "[CLS]"
    last: str = "[SEP]"
    mask: str = "[MASK]"


ROBERTA = Control("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_KEYS = {"pad_token": "pad", "unk_token": "unknown", "cls_token": "first", "sep_token": "last", "mask_token": "mask"}


class BertTokenizer:
    """`load` reads one, `learn_wordpiece` makes one.

    `vocab`: the size that an embedding needs. `first`, `last`: the ids around every text; `pad`: what stands where
    there is none; `mask`: the id of what is to be filled in, None if there is none, and `control.mask` its spelling.
    `swallows`: the space before a mask belongs to what was masked. `warnings` name what the folder says in vain.
    """

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        encoder: tokenizers.Tokenizer,
        ids: Mapping[str, int],
        control: Control,
        files: Mapping[str, str],
        *,
        swallows: bool = True,
    ) -> None:
        for name in (control.first, control.last):
            if name not in ids:
                raise CheckpointError(f"the vocabulary has no token {shorten(name)!r}, which begins or ends a text")
        self.control, self.files = control, files
        self.vocab = max(ids.values()) + 1
        self.first, self.last, self.pad = ids[control.first], ids[control.last], ids.get(control.pad, 0)
        self.mask = ids.get(control.mask)
        self._encoder, self._swallows = encoder, swallows

    @classmethod
    def load(cls, folder: str | Path) -> "BertTokenizer":
        """From a published folder: tokenizer.json, or vocab.txt, or vocab.json and merges.txt. CheckpointError."""
        folder = Path(folder)
        files = {name: read_text(folder / name) for name in FILES if (folder / name).exists()}
        try:
            told = read_told(folder)
            found = cls._read(folder, told, files)
        except CheckpointError as error:
            raise CheckpointError(f"the tokenizer in {folder}: {error}") from error
        found.warnings = told.warnings
        return found

    @classmethod
    def _read(cls, folder: Path, told: Told, files: Mapping[str, str]) -> "BertTokenizer":
        whole = read_json(folder / "tokenizer.json", optional=True)
        names = {ours: token.content for key, ours in _KEYS.items() if (token := told.named.get(key))}
        match whole.get("model"):
            case {"type": "WordPiece", "vocab": dict(ids), **model}:
                options = _json_options(whole) | (_config_options(told.config) if told.kind in _BERTS else {})
                longest = model.get("max_input_chars_per_word")
                added = complete(ids, [*tokens_of(whole), *told.added], told.named)
                return cls._wordpiece(ids, Control(**names), files, longest, options, added)
            case {"type": "BPE"}:
                return cls._byte_level(folder, Control(**vars(ROBERTA) | names), files)
            case dict(other):
                raise CheckpointError(f"a {shorten(str(other.get('type')))} model; WordPiece and BPE are read")
        if "vocab.txt" not in files:
            return cls._byte_level(folder, Control(**vars(ROBERTA) | names), files)
        lines = files["vocab.txt"].replace("\r\n", "\n").removesuffix("\n").split("\n")
        ids = {token: id for id, token in enumerate(lines)}
        if ">>" in ids and not any(token.startswith("##") for token in ids):
            return cls._smiles(ids, Control(**names), files)
        added = complete(ids, told.added, told.named)
        return cls._wordpiece(ids, Control(**names), files, None, _config_options(told.config), added)

    @classmethod
    def _wordpiece(
        cls,
        ids: dict[str, int],
        control: Control,
        files: Mapping[str, str],
        longest: object,
        options: dict[str, Any],
        added: Iterable[Added] = (),
    ) -> "BertTokenizer":
        words = [token for token in added if not token.control and token.content not in vars(control).values()]
        ids = ids | {token.content: token.id for token in words}
        plain = _plain(ids, control)
        longest = longest if type(longest) is int and 0 < longest <= MAX_WORD else 100
        encoder = tokenizers.Tokenizer(
            models.WordPiece(vocab=plain, unk_token=control.unknown, max_input_chars_per_word=longest)
        )
        encoder.normalizer = normalizers.BertNormalizer(**options)
        encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        encoder.decoder = decoders.WordPiece()
        encoder.add_tokens([backend_token(token) for token in words])
        return cls(encoder, ids, control, files)

    @classmethod
    def _smiles(cls, ids: dict[str, int], control: Control, files: Mapping[str, str]) -> "BertTokenizer":
        encoder = tokenizers.Tokenizer(models.WordLevel(vocab=_plain(ids, control), unk_token=control.unknown))
        encoder.normalizer = normalizers.Strip()
        encoder.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(SMILES), "isolated")
        encoder.decoder = decoders.Fuse()
        return cls(encoder, ids, control, files)

    @classmethod
    def _byte_level(cls, folder: Path, control: Control, files: Mapping[str, str]) -> "BertTokenizer":
        vocabulary = read_folder(folder)
        special = {token.content for token in vocabulary.added} | set(vars(control).values())
        encoder = tokenizers.Tokenizer(
            vocabulary.byte_pairs({token: id for token, id in vocabulary.ids.items() if token not in special})
        )
        if vocabulary.rules.normalizer is not None:
            encoder.normalizer = vocabulary.rules.normalizer
        if vocabulary.rules.words is not None:
            encoder.pre_tokenizer = vocabulary.rules.words
        encoder.decoder = vocabulary.rules.decoder
        swallows = all(token.lstrip for token in vocabulary.added if token.content == control.mask)
        return cls(encoder, vocabulary.ids, control, files, swallows=swallows)

    def save(self, folder: str | Path) -> None:
        """The files that it was read from, as they were. OutputError."""
        for name, text in self.files.items():
            write_file(Path(folder) / name, text.encode())

    def encode(self, text: str, *, masks: bool = False) -> list[int]:
        """The ids of a text, with both ends. With `masks` its spellings of the mask are masks.

        Half a surrogate pair becomes U+FFFD. InputError beyond 4,000,000 characters.
        """
        if not masks or self.mask is None:
            return self.encode_batch([text])[0]
        *before, end = text.split(self.control.mask)
        plain = self.encode_batch([*(part.rstrip() if self._swallows else part for part in before), end])
        ids = [self.first, *plain[0][1:-1]]
        for part in plain[1:]:
            ids += [self.mask, *part[1:-1]]
        return [*ids, self.last]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on all of the processor's cores."""
        encoded = self._encoder.encode_batch_fast([_valid(text) for text in texts], add_special_tokens=False)
        return [[self.first, *text.ids, self.last] for text in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens are left out."""
        return self._encoder.decode(list(ids))

    def spell(self, id: int) -> str:
        """One token as text; a piece that goes on within a word begins with ##. Empty for a control token."""
        return self._encoder.decode([id])


def learn_wordpiece(texts: Sequence[str], vocab: int, *, lowercase: bool = True, alphabet: int = 500) -> BertTokenizer:
    """A WordPiece vocabulary of `vocab` tokens out of texts, with their `alphabet` most frequent characters.

    InputError if the texts are too short to give as many.
    """
    options = _config_options({"do_lower_case": lowercase})
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=Control.unknown))
    learner.normalizer = normalizers.BertNormalizer(**options)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    count = Counter[str]()
    for text in texts:
        count.update(learner.normalizer.normalize_str(_valid(text)))
    letters = sorted(letter for letter, _ in count.most_common(alphabet) if not letter.isspace())
    # The trainer breaks ties by id and would number the characters in a hash map's order, so it gets them in ours.
    known = [*vars(Control()).values(), *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=known, limit_alphabet=len(letters), show_progress=False
    )
    learner.train_from_iterator(map(_valid, texts), trainer)
    ids = learner.get_vocab()
    if len(ids) != vocab:
        raise InputError(f"the texts give {len(ids)} tokens; set vocab={vocab} to that, or fewer if they are too many")
    tokens = sorted(ids, key=lambda token: ids[token])
    config = f'{{"do_lower_case": {str(lowercase).lower()}, "tokenizer_class": "BertTokenizer"}}\n'
    files = {"vocab.txt": "\n".join(tokens) + "\n", "tokenizer_config.json": config}
    return BertTokenizer._wordpiece(ids, Control(), files, None, options)


def _plain(ids: Mapping[str, int], control: Control) -> dict[str, int]:
    """What the encoder may know. CheckpointError for what is no vocabulary."""
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < MAX_ID:
            raise CheckpointError(f"the id of {shorten(repr(token))} is {shorten(repr(id))}; ids count from 0")
    if len(set(ids.values())) != len(ids):
        raise CheckpointError("two tokens of the vocabulary have the same id; get it again")
    if control.unknown not in ids:
        raise CheckpointError(f"the vocabulary has no token {shorten(control.unknown)!r} for what it does not know")
    hidden = set(vars(control).values()) - {control.unknown}
    return {token: id for token, id in ids.items() if token not in hidden}


def _json_options(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Of BertNormalizer, from a tokenizer.json. CheckpointError if it cuts texts in another way."""
    match whole:
        case {"normalizer": {"type": "BertNormalizer"} as given, "pre_tokenizer": {"type": "BertPreTokenizer"}}:
            names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
            return {name: given[name] for name in names if isinstance(given.get(name), bool)}
    found = shorten(repr([whole.get("normalizer"), whole.get("pre_tokenizer")]), 120)
    raise CheckpointError(f"it prepares texts by {found}; BertNormalizer and BertPreTokenizer are read")


def _config_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of BertNormalizer, from a tokenizer_config.json."""
    strip = config.get("strip_accents")
    return {
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True) is True,
        "strip_accents": strip if isinstance(strip, bool) else None,
        "lowercase": config.get("do_lower_case", True) is True,
    }


def _valid(text: str) -> str:
    """`text` as Unicode: surrogate pairs are joined, half ones become U+FFFD. InputError if it is too long."""
    if len(text) > MAX_TEXT:
        raise InputError(f"the text has {len(text):,} characters; at most {MAX_TEXT:,} are read at once: shorten it")
    return valid_text(text)
