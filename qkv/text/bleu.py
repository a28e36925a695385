"""How near translations come to a person's: BLEU (Papineni et al. 2002) and chrF (Popovic 2015), by sacrebleu.

Post (1804.08771) says why there is a signature: a score without its tokenisation means nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qkv.errors import InputError, MissingDependencyError


class Scores(NamedTuple):
    """Both from 0 to 100, with sacrebleu's signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score(
    translations: Sequence[str], references: Sequence[str], *, tokenised: bool = False, lowercase: bool = False
) -> Scores:
    """Of a whole corpus. `tokenised`: spaces stand between tokens already; `lowercase`: the case does not count."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingDependencyError.needs("sacrebleu", "train") from error
    if not translations or len(translations) != len(references):
        raise InputError(f"{len(translations)} translations cannot be held against {len(references)} references")
    bleu = BLEU(lowercase=lowercase, tokenize="none" if tokenised else "13a", force=True)
    chrf = CHRF(lowercase=lowercase)
    said, true = list(translations), [list(references)]
    return Scores(
        bleu=bleu.corpus_score(said, true).score,
        chrf=chrf.corpus_score(said, true).score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )
