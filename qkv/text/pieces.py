"""A translator's tokens: SentencePiece for each language, and the ids that a joint vocabulary gives the pieces.

Kudo and Richardson (1808.06226); Marian's published files: `source.spm`, `target.spm` and `vocab.json`. What is learnt
here is one BPE (Sennrich et al. 2016, 1508.07909) over both languages, which falls back to bytes, so that it spells any
text; it serves as both files. Case and characters stay as they are: what a text is made of is the business of the data.
Left out: vocabularies that are separate for the two languages.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qkv.atomic import write_file
from qkv.errors import CheckpointError, InputError, MissingDependencyError, shorten
from qkv.untrusted import parse_json

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"
SPACE = "▁"  # how SentencePiece writes the space before a word
FILES = ("source.spm", "target.spm", "vocab.json")
MAX_FILE = 64 << 20  # published ones are below 2 MB


class Pieces:
    """`source` and `target` are SentencePiece models as bytes; `ids` numbers all pieces, `</s>`, `<unk>` and `<pad>`.

    Raises CheckpointError if these are not what they should be.
    """

    def __init__(self, source: bytes, target: bytes, ids: Mapping[str, int]) -> None:
        for name in (END, UNKNOWN, PAD):
            if name not in ids:
                raise CheckpointError(f"the vocabulary has no {name}")
        numbers = set(ids.values())
        if len(numbers) != len(ids) or numbers != set(range(len(ids))):
            raise CheckpointError("the vocabulary's numbers are not 0, 1, 2 ..., each once")
        self.ids = dict(ids)
        self.models = source, target
        self._source, self._target = open_sentencepiece(source), open_sentencepiece(target)
        self._pieces = [piece for piece, _ in sorted(ids.items(), key=lambda pair: pair[1])]
        self.vocab, self.end, self.pad = len(ids), ids[END], ids[PAD]

    def encode(self, text: str, *, target: bool = False) -> list[int]:
        """The ids of a text in the source (or target) language, with the end. A language's mark, such as `>>de<<`,
        that stands before the text and in the vocabulary is one token."""
        mark, rest = text[: text.find("<<") + 2], text[text.find("<<") + 2 :]
        marked = not target and mark.startswith(">>") and mark in self.ids
        model = self._target if target else self._source
        pieces = [mark, *model.encode(rest, out_type=str)] if marked else model.encode(text, out_type=str)
        return [*(self.ids.get(piece, self.ids[UNKNOWN]) for piece in pieces), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids in the target language; control tokens are left out."""
        control = {self.end, self.pad}
        return str(self._target.decode([self._pieces[id] for id in ids if id not in control]))

    def words(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The words that ids spell, each with the places of its pieces; control tokens stand in no word."""
        words: list[tuple[str, list[int]]] = []
        for place, id in enumerate(ids):
            piece = self._pieces[id]
            if id in (self.end, self.pad):
                continue
            if piece.startswith(SPACE) or not words:
                words.append(("", []))
            words[-1][1].append(place)
        return [(self.decode([ids[place] for place in places]), places) for _, places in words]

    def save(self, folder: Path) -> None:
        """Writes `source.spm`, `target.spm` and `vocab.json`. Raises OutputError."""
        vocabulary = json.dumps(self.ids, ensure_ascii=False, indent=0).encode()
        for name, data in zip(FILES, (*self.models, vocabulary)):
            write_file(folder / name, data)


def read_pieces(source: bytes, target: bytes, vocabulary: bytes) -> Pieces:
    """From the contents of the three files. Raises CheckpointError."""
    ids = parse_json(vocabulary, "vocab.json")
    if not all(type(number) is int for number in ids.values()):
        raise CheckpointError("vocab.json is no table from pieces to numbers")
    return Pieces(source, target, ids)


def learn_pieces(texts: Iterable[str], vocab: int, *, byte_fallback: bool = True) -> Pieces:
    """A BPE of `vocab` tokens over `texts` in both languages. InputError if they give no such vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab - 1,  # and the padding
            character_coverage=0.9999 if byte_fallback else 1.0,
            byte_fallback=byte_fallback,
            normalization_rule_name="identity",
            eos_id=0,  # as Marian numbers them
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"the texts give no vocabulary of vocab={vocab}: {shorten(str(error), 200)}") from error
    learnt = open_sentencepiece(model.getvalue())
    ids = {learnt.id_to_piece(id): id for id in range(learnt.get_piece_size())}
    return Pieces(model.getvalue(), model.getvalue(), ids | {PAD: len(ids)})


def open_sentencepiece(model: bytes) -> "SentencePieceProcessor":
    """A published model. CheckpointError for a broken one, MissingDependencyError without the library."""
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingDependencyError.needs("sentencepiece", "translate") from error
    if not 0 < len(model) <= MAX_FILE:
        raise CheckpointError(f"the SentencePiece model has {len(model)} bytes; it must be 1 to {MAX_FILE}")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise CheckpointError(f"the SentencePiece model cannot be read: {shorten(str(error))}") from error
