"""Moses tokens in lower case, in which scores on Multi30k and IWSLT are usually reported, and the way back.

Koehn et al. 2007, by way of sacremoses. Lower-casing loses what cannot be restored: this is for measuring beside
others, not for a translator that is used.
"""

from functools import lru_cache
from typing import Any

from qkv.errors import MissingDependencyError


def to_moses(text: str, language: str) -> str:
    """Lower-case tokens with spaces between them."""
    return str(_moses("MosesTokenizer", language).tokenize(text, return_str=True, escape=False)).lower()


def from_moses(text: str, language: str) -> str:
    """Spaces as they are usually written; the case stays low."""
    return str(_moses("MosesDetokenizer", language).detokenize(text.split(), unescape=False))


@lru_cache(maxsize=8)
def _moses(kind: str, language: str) -> Any:
    try:
        import sacremoses
    except ImportError as error:
        raise MissingDependencyError.needs("sacremoses", "train") from error
    return getattr(sacremoses, kind)(lang=language)
