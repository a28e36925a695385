"""What will be done with one model: what was asked, with the defaults of the model's publisher, checked against it."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qkv.errors import InputError
from qkv.loaded.language import Language
from qkv.sample.tokens import Sampling
from qkv.writing.options import Options

_DRAWN_ONLY = ("top_k", "top_p", "min_p")  # what does nothing at temperature 0


class Cutter(Protocol):
    """Where a stream of text ends: `Stops`, or an end of a block of code."""

    hit: str | None

    def push(self, text: str, /) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything is settled and checked: `ids` are what the model reads."""

    language: Language
    ids: Sequence[int]
    options: Options
    sampling: Sampling
    max_tokens: int
    warnings: tuple[str, ...] = ()
    prefix: str = ""  # what stands before each text (echo)
    scored: bool = False  # the prompt's tokens are reported too, with log-probabilities
    heal: bool = False  # take the prompt's last token back (sample/constrain.py)
    continues: bool = True  # the text goes on from the prompt's, so a space that it begins with counts
    cutters: Callable[[], list[Cutter]] = list
    ends: frozenset[int] = frozenset()  # tokens that end a text, beside the model's own
    beams: int = 1


def settle(
    language: Language,
    ids: Sequence[int],
    options: Options,
    *,
    room: int,
    temperature: float = 0.0,
    warnings: Sequence[str] = (),
    **more: Any,
) -> Task:
    """What will be done with this model: its defaults filled in, a seed chosen, the length checked against its context.

    `room` is how many tokens are written if nobody says how many, `temperature` how if nobody says how.
    Raises InputError.
    """
    found = [*language.warnings, *warnings]
    wanted = _length(language, len(ids), options, room, found)
    beams = _beams(language, options, more, found)
    sampling = options.sampling({"temperature": temperature, **language.generation.sampling})
    sampling.check_vocab(language.vocab)
    if beams > 1:
        sampling = dataclasses.replace(sampling, temperature=0.0)
    elif sampling.temperature and sampling.seed is None:
        sampling = dataclasses.replace(sampling, seed=secrets.randbelow(2**32))
    if sampling.temperature == 0:
        idle = [name for name in _DRAWN_ONLY if getattr(options, name) is not None]
        if idle:
            found.append(f"greedy: at temperature 0 {' and '.join(idle)} does nothing; set temperature")
        if options.answers > 1 and beams == 1:
            found.append(f"greedy: at temperature 0 all {options.answers} texts are the same; set temperature")
    return Task(
        language=language,
        ids=ids,
        options=options,
        sampling=sampling,
        max_tokens=wanted,
        warnings=tuple(found),
        beams=beams,
        **more,
    )


def _length(language: Language, read: int, options: Options, room: int, warnings: list[str]) -> int:
    """How many tokens may be written after `read`: as asked, else as the model's publisher says, else `room`."""
    left, told = language.context - read, language.generation
    if options.max_tokens is None:
        wanted = min(told.max_tokens or room, left)
        if told.max_tokens is None and told.max_length is not None and told.max_length - read < wanted:
            wanted = max(1, told.max_length - read)
            warnings.append(f"short: the model's max_length={told.max_length} ends the text; set max_tokens")
    else:
        wanted = options.max_tokens
    if wanted > left or left < 1:
        asked = f" and max_tokens={wanted} to write" if options.max_tokens else ""
        most = f"{language.name} takes {language.context:,} in all"
        if language.context < language.engine.runner.context:
            most += f" in the memory for keys and values, {language.engine.runner.context:,} with more (--memory)"
        raise InputError(f"the prompt has {read:,} tokens{asked}; {most}")
    return wanted


def _beams(language: Language, options: Options, more: Mapping[str, Any], warnings: list[str]) -> int:
    """How many beams are searched: as asked, else the model's own, if nothing speaks against them."""
    if options.beams is not None:
        return options.beams
    beams = language.generation.beams or 1
    also = {"echo": more.get("prefix") or more.get("scored"), "heal": more.get("heal")}
    if found := [*options.against(beams), *(name for name, given in also.items() if given and beams > 1)]:
        warnings.append(f"beams: the model's own num_beams={beams} is left out for {' and '.join(found)}")
        return 1
    return beams
