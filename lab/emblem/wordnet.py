"""WordNet's glosses: short English definitions that teach a text tower a broad vocabulary.

Place: the text side of `qkv data`. Source: Princeton WordNet 3.0 as Debian's `wordnet-base` installs it; its
file format is wndb(5WN). Left out: relations between the words, verb frames, counts.
"""

import random
from pathlib import Path

from qkv.errors import CheckpointError, NotFoundError

FOLDER = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")


def wordnet_glosses(folder: Path = FOLDER) -> list[tuple[str, str]]:
    """(first lemma, gloss) of every synset of all four parts of speech; examples stay in the gloss.

    Raises NotFoundError if the files are not there and CheckpointError if a line is not WordNet's.
    """
    return [pair for part in PARTS for pair in _read(folder / f"data.{part}")]


def wordnet_texts(synsets: int) -> list[str]:
    """The lemmas of so many synsets, and the first part of their glosses, each text once."""
    glosses = wordnet_glosses()
    random.Random(0).shuffle(glosses)
    found: dict[str, None] = {}
    for lemma, gloss in glosses[:synsets]:
        found |= {lemma: None, gloss.split(";")[0][:160]: None}
    return list(found)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise NotFoundError(f"no WordNet in {path.parent}; run: apt-get install wordnet-base") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("  "):  # the licence, at the head of each file
            continue
        head, bar, gloss = line.partition(" | ")
        fields = head.split()  # offset, file, kind, word count, first lemma, ...
        if not bar or len(fields) < 5:
            raise CheckpointError(f"{path} is not WordNet's: line {number} has no gloss")
        lemma = fields[4].split("(")[0].replace("_", " ")  # adjectives carry a marker: "galore(ip)"
        pairs.append((lemma, gloss.strip()))
    return pairs
