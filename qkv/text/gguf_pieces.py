"""A sentencepiece vocabulary as GGUF files hold it (tokenizer.ggml.model = "llama"): pieces with scores, no merges.

sentencepiece (1808.06226) with byte pairs joins, of all neighbours that are a piece together, those with the highest
score first. A list of merges says the same: every way to cut a piece into two others, in the order of the scores. A
piece that ends up in no token is spelled in bytes, <0x0A>; a text has one more space before it, and so has what follows
a control token, as llama.cpp has it. Left out: pieces that are marked unused, and Unigram models ("t5").
"""

import math
from collections.abc import Mapping

from tokenizers import normalizers

from qkv.errors import CheckpointError, shorten
from qkv.text.words import SPACE, Rules

MAX_PIECE = 256  # characters; Llama's longest piece has 16, Gemma's 31
MAX_CHARACTERS = 4 << 20  # of all pieces; Gemma's 256,000 have 2 million


def piece_rules(*, leads: bool) -> Rules:
    """How such a text is spelled; `leads`: with a space before it (tokenizer.ggml.add_space_prefix)."""
    spaces = normalizers.Replace(" ", SPACE)
    spell = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if leads else spaces
    return Rules("pieces", spell, None, None, leads=leads)


def piece_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of pieces with these scores, the first to be done first. CheckpointError for hostile ones."""
    longest, characters = max(map(len, scores), default=0), sum(map(len, scores))
    if longest > MAX_PIECE or characters > MAX_CHARACTERS:
        raise CheckpointError(
            f"tokenizer.ggml has a piece of {longest} characters, {characters:,} in all; at most {MAX_PIECE} and "
            f"{MAX_CHARACTERS:,} are read"
        )
    for piece, score in scores.items():
        if not math.isfinite(score):
            raise CheckpointError(f"the score of {shorten(repr(piece))} is {score}; get the file again")
    merges = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[:2])  # of one piece's ways, the longest left half first
    return [(left, right) for *_, left, right in merges]
