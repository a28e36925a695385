"""Captions: what a person might have typed to get this picture.

Place: between the data set and every model that reads text; drawn anew for each training step. Names, keywords,
kinds, colours and style come in random subsets, because captions are the largest lever on a text-to-image model
(Betker et al. 2023, "Improving image generation with better captions", section 3). Left out: captions written
by a model, grammar beyond English articles.
"""

import random
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab.emblem.items import Item, Words
from qkv.errors import ConfigError, NotFoundError, unknown

LONGEST = 200  # characters
KEYWORDS = 3  # at most, in one caption

# Groups whose names are things that one counts: they may take an article.
_THINGS = {"animals & nature", "food & drink", "travel & places", "activities", "objects", "people & body"}
_AND = {"en": "and", "de": "und", "fr": "et"}
_COMMA = {"zh": "，", "zh-hant": "，", "ja": "、"}


def languages() -> list[str]:
    """The codes of the languages that captions can be drawn in."""
    return list(_table()["languages"])


def check_languages(codes: Iterable[str]) -> None:
    """Raises ConfigError for a code that captions cannot be drawn in."""
    for code in codes:
        if code not in languages():
            raise ConfigError(unknown("language", code, languages()))


def caption(item: Item, rng: random.Random, *, language: str = "en", styled: bool = True) -> str:
    """A random caption of at most 200 characters, such as "a dog, animal, brown and white, 3d style".

    It always holds the name or, now and then, keywords instead; the skin tone if there is one; and the style,
    where the language has words for it (en, de, fr, zh-hant), unless `styled` is off. An icon that has no name
    in `language` is captioned in English. Raises NotFoundError for an unknown language.
    """
    language, words = _words(item, language)
    keywords = [word for word in words.keywords if word.casefold() != words.name.casefold()]
    by_keywords = len(keywords) >= 2 and rng.random() < 0.15
    if by_keywords:
        subject = _join(rng.sample(keywords, min(len(keywords), rng.randint(2, KEYWORDS))), language)
        subject = f"{item.gender}, {subject}" if item.gender and language == "en" else subject
    else:
        subject = _noun_phrase(item, rng) if language == "en" else words.name
    tone = _tone(item, language)
    extras = _extras(item, words, [] if by_keywords else keywords, language, rng)
    style = _style(item, language) if styled else ""
    if language == "en" and not by_keywords and style and rng.random() < 0.2:
        head, style = f"{style} {rng.choice(('emoji', 'picture', 'drawing', 'icon'))} of {subject}", ""
    else:
        head = subject
    while True:
        text = _join([part for part in (head, tone, *extras, style) if part], language)
        if len(text) <= LONGEST or not extras:
            return text
        extras.pop()


def plain_caption(item: Item, *, language: str = "en", styled: bool = True) -> str:
    """The caption without chance: name, skin tone if any, and style."""
    language, words = _words(item, language)
    style = _style(item, language) if styled else ""
    return _join([part for part in (words.name, _tone(item, language), style) if part], language)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The captions of a training: shares of them that are empty (for guidance), in one of `languages`, the bare name in
    place of one full of chance, and silent about the drawing's style, where that is one of `house` if any are named.
    Raises ConfigError for an unknown language."""

    empty: float = 0.0
    foreign: float = 0.15
    languages: tuple[str, ...] = ("zh-hant", "de", "fr")
    plain: float = 0.6
    unstyled: float = 0.15
    house: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_languages(self.languages)

    def __call__(self, item: Item, rng: random.Random) -> str:
        if rng.random() < self.empty:
            return ""
        language = rng.choice(self.languages) if rng.random() < self.foreign else "en"
        styled = rng.random() >= self.unstyled or bool(self.house and item.style not in self.house)
        if rng.random() < self.plain:
            return plain_caption(item, language=language, styled=styled)
        return caption(item, rng, language=language, styled=styled)


def texts(items: Sequence[Item]) -> Iterator[tuple[str, str]]:
    """(language, text) of all that captions are made of, each text once a language: for a tokenizer to learn from."""
    concepts = {item.concept: item for item in items}.values()
    tones = {item.tone: item for item in items}.values()
    styles = {item.style: item for item in items}.values()
    for language in languages():
        found: dict[str, None] = {}
        for item in concepts:
            if language == "en" or language in item.words:
                _, words = _words(item, language)
                found |= dict.fromkeys((words.name, *words.keywords, words.group))
        found |= dict.fromkeys(_tone(item, language) for item in tones)
        found |= dict.fromkeys(_style(item, language) for item in styles)
        yield from ((language, text) for text in found if text)


def _words(item: Item, language: str) -> tuple[str, Words]:
    """The language that the item can be captioned in, and its words."""
    if language not in languages():
        raise NotFoundError(unknown("language", language, languages()))
    if language in item.words:
        return language, item.words[language]
    return "en", Words(item.name, item.keywords, item.group)


def _noun_phrase(item: Item, rng: random.Random) -> str:
    """The English name, with an article and a colour where these sound right."""
    name = item.name
    last = name.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    clock = item.base == "clock"  # whose names are times of day
    if item.group not in _THINGS or plural or clock or not name[0].islower() or rng.random() < 0.5:
        return name
    # Whatever is drawn with skin is "yellow" or "brown" all over; of other things people do say their colour.
    coloured = item.group != "people & body" and not any(word in _colour_words() for word in name.split())
    if coloured and item.colours and rng.random() < 0.25:
        name = f"{' and '.join(item.colours[:2])} {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _extras(item: Item, words: Words, keywords: Sequence[str], language: str, rng: random.Random) -> list[str]:
    """A random subset of keywords, kind and colours, in random order."""
    extras = []
    if keywords and rng.random() < 0.4:
        extras += rng.sample(keywords, min(len(keywords), rng.randint(1, KEYWORDS)))
    kinds = _table()["categories"].get(item.subgroup, ()) if language == "en" else [words.group] if words.group else []
    if kinds and rng.random() < 0.4:
        extras.append(rng.choice(kinds))
    colours = _colours(item, language)
    if colours and rng.random() < 0.4:
        extras.append(colours)
    extras = list(dict.fromkeys(extras))
    rng.shuffle(extras)
    return extras


def _colours(item: Item, language: str) -> str:
    """The dominant colours as one phrase, "" where the language has no words for them."""
    named = [_colour(word, language) for word in item.colours]
    if not all(named) or not named:
        return ""
    if language not in _AND:
        return "、".join(named)
    *first, last = named
    return f"{', '.join(first)} {_AND[language]} {last}" if first else last


def _colour(word: str, language: str) -> str:
    return word if language == "en" else str(_table()["colours"].get(language, {}).get(word, ""))


def words_for_colour(colour: str) -> dict[str, Words]:
    """A colour's name in the languages that have one here, English aside."""
    return {code: Words(names[colour], (), "") for code, names in _table()["colours"].items()}


def _colour_words() -> set[str]:
    return {"golden", "gold", "gray", "violet", *_table()["colours"]["de"]}


def _tone(item: Item, language: str) -> str:
    if not item.tone:
        return ""
    return f"{item.tone} skin tone" if language == "en" else item.tones.get(language, "")


def _style(item: Item, language: str) -> str:
    return style_words(item.style, language)


def style_words(style: str, language: str) -> str:
    """What a drawing style is called, "" where the language has no words for it."""
    return str(_table()["styles"].get(language, {}).get(style, ""))


def _join(parts: Sequence[str], language: str) -> str:
    return _COMMA.get(language, ", ").join(parts)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("captions.toml").read_text(encoding="utf-8"))
