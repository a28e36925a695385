"""`qkv write`: a text in, another text out, by an encoder-decoder that was trained for many tasks, such as T5.

Which task it is, the text says itself ("translate English to German: ...", "summarize: ..."), so it goes to the model
whole: nothing is cut or put before it. How the answer is searched is the folder's generation_config.json's, as
transformers reads it, where the caller asks for nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qkv.errors import InputError
from qkv.loaded.where import Where
from qkv.loaded.writer import Writer, load_writer
from qkv.sample.translation_beam import search_texts

MAX_TEXT = 1_000_000  # characters


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written for a text. `score` is its log-probability, penalised by its length; `tokens` are its own."""

    source: str
    text: str
    score: float
    tokens: int
    model: str
    warnings: tuple[str, ...] = ()


def write(text: str, **options: Any) -> Written:
    """What the model writes for `text`, which names its task; `write_all` says what may be asked and raised."""
    return write_all([text], **options)[0]


def write_all(
    texts: Iterable[str],
    *,
    model: str | Path | None = None,
    beams: int | None = None,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> list[Written]:
    """What the model writes for each text, together and in their order.

    `model` is a name, a folder, or OWNER/NAME of the hub, fetched once unless `offline` (None: one that is here);
    `max_tokens` counts the end; the others are the model's own where they are None. Raises InputError, NotFoundError,
    CheckpointError, ConfigError.
    """
    ready = load_writer(model, where=Where(device=device, dtype=dtype), offline=offline)
    asked: dict[str, Any] = {"beams": beams, "length_penalty": length_penalty, "max_tokens": max_tokens}
    search = replace(ready.search, **{name: value for name, value in asked.items() if value is not None})
    texts = list(texts)
    ids = [_read(ready, text) for text in texts]
    best = {i: found[0] for i, found in search_texts(ready.model, ids, search)}
    return [
        Written(
            source=text,
            text=ready.tokenizer.decode(best[i].ids),
            score=best[i].score,
            tokens=len(best[i].ids),
            model=ready.name,
            warnings=ready.warnings,
        )
        for i, text in enumerate(texts)
    ]


def _read(ready: Writer, text: object) -> list[int]:
    if not isinstance(text, str):
        raise InputError(f"the text is no text but {type(text).__name__}")
    if not text.strip():
        raise InputError("there is no text; give one that names its task: qkv write 'summarize: ...'")
    if len(text) > MAX_TEXT:
        raise InputError(f"the text has {len(text):,} characters; at most {MAX_TEXT:,} are read")
    ids, most = ready.tokenizer.encode(text), ready.model.config.context
    if len(ids) > most:
        raise InputError(f"the text has {len(ids)} tokens; {ready.name} reads at most {most}: give less of it")
    return ids
