"""What scenes may hold: things with their sizes and names, and the tables of anchors, as dataclasses.

Place: read once (things.toml, anchors.toml, Unicode's names), used by everything that imagines, draws or names a
scene. A thing enters only if most styles draw it and emblem's own training may see it: the concepts, and the drawings
of a concept in one style, that emblem holds out for its tables stay unseen in scenes too.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lab.emblem import dataset, splits
from lab.emblem.concepts import Emojibase, base_of
from lab.scenes.sprites import HIDDEN, STYLES, Sprites
from qkv.config import build
from qkv.fetch.npm import fetch

LANGUAGES = ("en", "de", "fr", "zh-hant")
ENOUGH = 3  # styles that draw a concept
Where = Literal["ground", "air", "water"]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A concept in scenes; `size` is its longer side as a share of the picture's."""

    concept: str
    where: Where
    size: float
    subgroup: str
    names: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Named:
    """An entry of anchors.toml: fractions by drawing (see `drawing`), and how captions say it."""

    noto: tuple[float, ...] = ()
    fluent: tuple[float, ...] = ()
    twemoji: tuple[float, ...] = ()
    sit: str = ""  # mounts: "behind" for what one drives
    inside: bool = False  # outfits: the head goes into a helmet
    role: str = ""  # outfits: what it makes of its wearer, in English
    en: str = ""
    de: str = ""
    fr: str = ""
    zh: str = ""

    def at(self, style: str) -> tuple[float, ...]:
        """The numbers for a drawing style, () where it has none."""
        return getattr(self, drawing(style))


@dataclass(frozen=True, kw_only=True)
class Head:
    at: tuple[float, float]  # the brow, the eyes
    whole: str = ""


@dataclass(frozen=True, kw_only=True)
class Worn:
    on: Literal["hat", "eyes", "neck"]
    wide: float
    en: str
    de: str
    fr: str
    zh: str


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All of it; the keys are concepts. `drawn` holds the (style, concept) pairs that training may see."""

    things: Mapping[str, Thing]
    mounts: Mapping[str, Named]
    outfits: Mapping[str, Named]
    heads: Mapping[str, Head]
    worn: Mapping[str, Worn]
    people: Mapping[str, Named]
    roles: Mapping[str, tuple[str, ...]]
    names: Mapping[str, Mapping[str, str]] = field(repr=False)  # by language, of every concept
    drawn: frozenset[tuple[str, str]] = field(repr=False)

    def name(self, concept: str, language: str) -> str:
        """Its name; a head has that of its whole animal."""
        head = self.heads.get(concept)
        return self.names[language][head.whole if head and head.whole in self.names[language] else concept]

    def face(self, concept: str, style: str) -> tuple[float, float, float]:
        """Where a head's brow and eyes are, and where it is cut off, from its top."""
        numbers = self.people[concept].at(style) if concept in self.people else self.heads[concept].at
        return numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 1.0

    @cached_property
    def by_where(self) -> Mapping[str, tuple[str, ...]]:
        rows: dict[str, list[str]] = {"ground": [], "air": [], "water": []}
        for thing in self.things.values():
            rows[thing.where].append(thing.concept)
        return {where: tuple(sorted(concepts)) for where, concepts in rows.items()}


def drawing(style: str) -> str:
    """Whose shapes a style has: three of them colour the same ones. The hidden styles' are most like Twemoji's."""
    if style in HIDDEN:
        return "twemoji"
    return style if style in ("noto", "twemoji") else "fluent"


def of(
    names: Mapping[str, Mapping[str, str]], subgroups: Mapping[str, str], drawn: frozenset[tuple[str, str]]
) -> Vocabulary:
    """The vocabulary of concepts with these names (by language) and Unicode subgroups, as far as they are drawn."""
    table, anchors = _toml("things"), _toml("anchors")
    for named in ("mounts", "outfits"):
        for row in anchors[named].values():
            row.update({key: (row[key],) for key in ("noto", "fluent", "twemoji") if isinstance(row.get(key), float)})
    often = {key for _, key in drawn if sum((style, key) in drawn for style in STYLES) >= ENOUGH}
    known = {key for key in often if all(sayable(names[language].get(key)) for language in LANGUAGES)}

    things = {key: thing for key in sorted(known) if (thing := _thing(key, table, subgroups, names))}

    def rows(name: str, kind: type[Any]) -> dict[str, Any]:
        return {key: build(kind, row, f"{name}.{key}") for key, row in anchors[name].items() if key in known}

    return Vocabulary(
        things=things,
        mounts=rows("mounts", Named),
        outfits=rows("outfits", Named),
        heads=rows("heads", Head),
        worn=rows("worn", Worn),
        people=rows("people", Named),
        roles={name: tuple(key for key in keys if key in things) for name, keys in table["roles"].items()},
        names=names,
        drawn=drawn,
    )


def _thing(
    concept: str, table: dict[str, Any], subgroups: Mapping[str, str], names: Mapping[str, Mapping[str, str]]
) -> Thing | None:
    extra = {key: where for where in ("ground", "air") for key in table["extra"][where]}
    rule = table["subgroups"].get(subgroups.get(concept, ""))
    if concept in table["extra"]["left_out"] or (rule is None and concept not in extra):
        return None
    where, size = rule or (extra[concept], 0.3)
    return Thing(
        concept=concept,
        where=table["places"].get(concept, extra.get(concept, where)),
        size=table["sizes"].get(concept, size),
        subgroup=subgroups.get(concept, ""),
        names={language: names[language][concept] for language in LANGUAGES},
    )


def load(sprites: Sprites) -> Vocabulary:
    """The vocabulary that these sprites can draw, with Unicode's names. Raises what `npm.fetch` raises."""
    table = dataset.table()
    known = Emojibase(fetch(table.names.pin, dataset.data_folder().parent / "packages"))
    undrawn, ours = (_toml("things")[name] for name in ("undrawn", "names"))
    names = {
        language: {key: ours.get(key, {}).get(language) or tidy(row.name) for key, row in rows.items()}
        for language, rows in known.languages.items()
        if language in LANGUAGES
    }
    drawn = frozenset(
        (style, concept)
        for style, row in sprites.images.items()
        for concept in row
        if may_see(style, concept, known, table.seed) and concept not in undrawn.get(style, ())
    )
    return of(names, {key: concept.subgroup for key, concept in known.concepts.items()}, drawn)


def tidy(name: str) -> str:
    """A Unicode name without its second genders: Polizist(in), Bauer/Bäuerin."""
    return re.sub(r"\s*\([^)]*\)|/\S+", "", name).strip() or name


def sayable(name: str | None) -> bool:
    """Whether a caption can hold the name; Unicode's "Frau: rotes Haar" is none that anybody says."""
    return bool(name) and not re.search("[:：]", name or "")


def may_see(style: str, concept: str, known: Emojibase, seed: int) -> bool:
    """Whether emblem's training may see this drawing; see `splits.assign`."""
    base = known.concepts[concept].base if concept in known.concepts else base_of(concept, "")
    if base in splits.SHOWN | splits.COLLECTIVE:
        return True
    unseen = splits.fraction(seed, "base", base) < splits.TEST + splits.VALIDATION
    return not unseen and splits.fraction(seed, "cell", base, style) >= splits.CELLS


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))
