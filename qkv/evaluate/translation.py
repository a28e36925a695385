"""`qkv eval translation`: BLEU and chrF of a translator on held-out pairs, by sacrebleu with its signatures.

Where a training part lies beside, the sentences whose source also occurs in it are counted apart: a help page repeats
what others say. Models of lower-case Moses tokens get the tokenised lower-case BLEU too, which is what papers on
Multi30k print; detokenised scores then do not count case.
"""

import time
from pathlib import Path
from typing import Any

from qkv.data.parallel import Pair, read_pairs
from qkv.errors import InputError, NotFoundError
from qkv.loaded.translator import LoadedTranslator, load_ready
from qkv.tasks.translate import translating
from qkv.text.bleu import score
from qkv.text.moses import to_moses


def run(
    model: str | Path,
    data: Path,
    *,
    part: str = "test",
    beams: int | None = None,
    length_penalty: float | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """The scores of `model` on a part of the folder `data`, or on its first `limit` pairs.

    Raises what `translating` and `read_pairs` raise, and InputError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} is out of range; it must be 1 or more")
    ready = load_ready(model)
    source, target = ready.source or "en", ready.target or "de"
    pairs = read_pairs(data, part, source, target)[:limit]
    began = time.monotonic()
    lines = translating((pair.source for pair in pairs), model=model, beams=beams, length_penalty=length_penalty)
    said = [line.text for line in lines]
    seconds = time.monotonic() - began
    scores: dict[str, Any] = {"model": ready.name, "part": part, "seconds": round(seconds, 1)}
    scores["all"] = _scores(ready, pairs, said, target)
    known = _known(data, source, target)
    unseen = [i for i, pair in enumerate(pairs) if pair.source not in known]
    if 0 < len(unseen) < len(pairs):
        scores["unseen"] = _scores(ready, [pairs[i] for i in unseen], [said[i] for i in unseen], target)
    return scores


def _scores(ready: LoadedTranslator, pairs: list[Pair], said: list[str], target: str) -> dict[str, Any]:
    references, lower = [pair.target for pair in pairs], ready.text == "moses-lower"
    found = score(said, references, lowercase=lower)
    values = {"pairs": len(pairs), **found._asdict()}
    if lower:
        tokens = [[to_moses(text, target) for text in texts] for texts in (said, references)]
        values["bleu_tokenised"] = score(*tokens, tokenised=True).bleu
    return values


def _known(data: Path, source: str, target: str) -> set[str]:
    try:
        return {pair.source for pair in read_pairs(data, "train", source, target)}
    except NotFoundError:
        return set()


def table(scores: dict[str, Any]) -> str:
    """For people."""
    rows = []
    for name in ("all", "unseen"):
        if name in scores:
            row = scores[name]
            tokenised = f"  tokenised BLEU {row['bleu_tokenised']:.2f}" if "bleu_tokenised" in row else ""
            text = f"{name:7} {row['pairs']:6} pairs  BLEU {row['bleu']:.2f}  chrF {row['chrf']:.2f}{tokenised}"
            rows.append(text)
    return "\n".join([*rows, scores["all"]["bleu_signature"], scores["all"]["chrf_signature"]])
