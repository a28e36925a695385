"""Captions of scenes: their facts in words, in four languages and many phrasings, and never more than the facts.

Place: between a scene and whoever reads text. The phrases stand in words.toml, names come from Unicode. English gets
articles and plurals; the others do without articles, as people type prompts, since gender is not known of most names.
Left out: colours and sizes of what is not said to have one.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lab.emblem.captions import style_words
from lab.scenes.scene import SHIRT, Actor, Scene
from lab.scenes.vocabulary import LANGUAGES, Vocabulary
from qkv.errors import NotFoundError, unknown

HOUSE = ("noto", "gradient")  # drawn where no style is named: only their captions may name none, and mostly do
MASS = re.compile(r"^(bacon|bread|butter|cooked rice|curry rice|popcorn|ice|salt|spaghetti|sushi|french fries|fog)$")
KEY = {"zh-hant": "zh"}  # anchors.toml's name of a language


def caption(
    scene: Scene,
    vocabulary: Vocabulary,
    rng: Random,
    *,
    language: str = "en",
    share: float | Mapping[str, float] | None = None,
) -> str:
    """A random caption, such as "a photo of an astronaut riding a horse on mars". `share` is how likely each part that
    may be left out (place, condition, painting, style) is said; by default most often all but the time is. Raises
    NotFoundError for a language that is not in LANGUAGES."""
    if language not in LANGUAGES:
        raise NotFoundError(unknown("language", language, LANGUAGES))
    words = _Words(vocabulary, language, rng)
    said = {"place": 0.85, "condition": 0.5, "painting": 0.9, "style": 0.15 if scene.style in HOUSE else 1.0}
    if share is not None:
        said |= share if isinstance(share, Mapping) else dict.fromkeys(said, share)
    text = words.event(scene)
    parts = []
    if scene.event != "scenery" and rng.random() < said["place"]:
        parts.append(words.place(scene))
    if scene.place != "plain" and scene.condition and rng.random() < said["condition"] * (scene.condition != "day"):
        parts.append(rng.choice(words.table["condition"][scene.condition]))
    text = words.join(text, parts, rng)
    if not scene.painting:
        text = words.begin(text)
    if scene.painting and rng.random() < said["painting"]:
        text = rng.choice(words.table["painting"][scene.painting]).format(text)
    if rng.random() < said["style"]:
        text += ("，" if language == "zh-hant" else ", ") + style_words(scene.style, language)
    return text


class _Words:
    """The phrases of one language, chosen by one chance."""

    def __init__(self, vocabulary: Vocabulary, language: str, rng: Random) -> None:
        self.vocabulary, self.language, self.rng = vocabulary, language, rng
        self.table = _table()[language]
        self.said = self.table["said"]

    def event(self, scene: Scene) -> str:
        """What happens, without where."""
        if scene.event == "scenery":
            return str(self.rng.choice(self.table["scenery"][scene.place]))
        if scene.event in ("alone", "count"):
            (actor,) = scene.actors
            return self.counted(actor, scene.count) if scene.event == "count" else self.thing(actor)
        key = {"beside": "three" if len(scene.actors) == 3 else "beside"}.get(scene.event, scene.event)
        mount = self.vocabulary.mounts.get(scene.actors[1].concept) if scene.event == "ride" else None
        if mount:
            wheels = self.vocabulary.things[scene.actors[1].concept].subgroup.startswith("transport")
            key = "drive" if mount.sit else "cycle" if wheels else "ride"
        phrase = self.rng.choice(self.table["events"][key])
        filled = {letter: self.thing(actor) for letter, actor in zip("abc", scene.actors)}
        if scene.event in ("cards", "chess"):
            filled["as"] = self.players(scene)
        if len(scene.actors) > 1:
            filled["bs"] = self.plural(scene.actors[1].concept)
            filled["the b"] = f"the {self.name(scene.actors[1].concept)}"
        if mount:
            filled["mount"] = getattr(mount, KEY.get(self.language, self.language)) or filled["b"]
        return phrase.format(**filled)

    def name(self, concept: str) -> str:
        return self.vocabulary.name(concept, self.language)

    def thing(self, actor: Actor) -> str:
        """One thing with all that is said of it."""
        shirt = actor.outfit == SHIRT
        text = self.plain(actor, "" if shirt else actor.colour)
        if actor.outfit and not shirt:
            return self.dressed(text, actor.outfit)
        if actor.worn:
            text = self.wearing(text, actor.worn, first=shirt)
        # A shirt that was only added as a body is mostly left unsaid.
        return self.shirted(text, actor.colour) if shirt and self.rng.random() < (0.85 if actor.worn else 0.5) else text

    def wearing(self, text: str, worn: str, *, first: bool) -> str:
        row = self.vocabulary.worn[worn]
        if self.language == "en":
            return f"{text} with {row.en}" if first else self.rng.choice(self.said["worn"]).format(text, row.en)
        return str(self.said["dressed"][0]).format(text, getattr(row, KEY.get(self.language, self.language)))

    def plain(self, actor: Actor, colour: str) -> str:
        """The name with size and colour."""
        name = self.name(actor.concept)
        if self.language == "en":
            return article(" ".join(part for part in (self.said.get(actor.size, ""), colour, name) if part))
        if colour:
            name = self.said["coloured"].format(name, colour=self.table["colours"][colour])
        return self.said["sized"].format(name, size=self.said[actor.size]) if actor.size else name

    def shirted(self, text: str, colour: str) -> str:
        word = self.adjective(colour)
        return str(self.rng.choice(self.said["shirt"])).format_map(
            {"a": text, "colour": word, "a colour": article(word)}
        )

    def adjective(self, colour: str) -> str:
        return str(self.table.get("adjectives", self.table.get("colours", {})).get(colour, colour))

    def dressed(self, text: str, outfit: str) -> str:
        row = self.vocabulary.outfits[outfit]
        if self.language != "en":
            return self.said["dressed"][0].format(text, getattr(row, KEY.get(self.language, self.language)))
        return self.rng.choice(self.said["as" if row.role else "dressed"]).format(
            text, article(row.role) if row.role else row.en
        )

    def counted(self, actor: Actor, count: int) -> str:
        """ "three blue bananas"; where a plural is not known, the number stands behind."""
        number = self.said["count"][count - 2]
        shirt = actor.outfit == SHIRT
        if self.language == "en":
            many = plural(" ".join(part for part in ("" if shirt else actor.colour, self.name(actor.concept)) if part))
            text = f"{number} {many}"
            return f"{text} in {actor.colour} shirts" if shirt and self.rng.random() < 0.4 else text
        many = self.plural(actor.concept)
        coloured = "" if shirt else actor.colour
        if self.language == "de" and (coloured or many == self.name(actor.concept)):
            return self.said["counted"].format(a=self.plain(actor, coloured), count=number)
        if self.language == "de":
            return f"{number} {many}"
        text = self.said["counted"].format(a=self.name(actor.concept), count=number, **{"as": many})
        return self.said["coloured"].format(text, colour=self.table["colours"][coloured]) if coloured else text

    def players(self, scene: Scene) -> str:
        """Who plays: "three dogs", now and then without the number, or "a dog and a cat"."""
        if len(scene.actors) == 2:
            return str(self.table["events"]["beside"][0]).format(*(), **dict(zip("ab", map(self.thing, scene.actors))))
        (actor,) = scene.actors
        return self.counted(actor, scene.count) if self.rng.random() < 0.6 else self.plural(actor.concept)

    def plural(self, concept: str) -> str:
        """More than one of it: by rule in English and French, from a table in German, the name itself in Chinese."""
        name = self.name(concept)
        if self.language == "en":
            return plural(name)
        if self.language == "fr":
            return french_plural(name)
        return str(_table()["plurals"].get(self.language, {}).get(name, name))

    def place(self, scene: Scene) -> str:
        phrase = str(self.rng.choice(self.table["place"][scene.place]))
        if scene.place != "plain":
            return phrase
        colour = self.adjective(scene.condition)
        return phrase.format_map({"colour": colour, "a colour": article(colour)})

    def join(self, text: str, parts: list[str], rng: Random) -> str:
        """The event and its circumstances; in Chinese these may come first."""
        if self.language == "zh-hant":
            front = bool(parts) and rng.random() < 0.4 and not parts[0].endswith("背景")
            return "，".join([*parts, text] if front else [text, *parts])
        for part in parts:
            text += ("" if part.split()[0] not in _BARE else ",") + " " + part
        return text

    def begin(self, text: str) -> str:
        """Now and then a longer beginning, or none: "dog in a suit"."""
        chance = self.rng.random()
        if chance < 0.1:
            return str(self.rng.choice(self.said["long"])).format(text)
        return re.sub("^an? ", "", text) if chance < 0.3 and self.language == "en" else text


_BARE = {"white", "black", "grey", "blue", "pink", "yellow", "green", "purple", "orange", "red", "teal", "brown"}


def article(phrase: str) -> str:
    """An English phrase with "a" or "an", or without where it is a plural or a mass."""
    last = _head(phrase).split()[-1]
    many = last.endswith("s") and not last.endswith(("ss", "us", "nnis", "os", "ens", "vas"))
    if many or MASS.match(phrase):
        return phrase
    sound = phrase.lower()
    vowel = sound[0] in "aeiou" and not sound.startswith(("uni", "eu", "one-", "ufo"))
    return f"{'an' if vowel or sound.startswith(('hour', 'x-ray')) else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """The plural of an English noun phrase: of its head, before "of", "with", "in" and the like."""
    head, rest = _head(phrase), phrase[len(_head(phrase)) :]
    *before, last = head.split(" ")
    known = _table()["plurals"]["en"]
    if before and before[0] in ("man", "woman"):
        before[0] = known[before[0]]
    if last in known:
        last = known[last]
    elif last.endswith("s") and not last.endswith(("ss", "us", "ros", "ens", "vas")):
        pass
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif last.endswith(("man", "woman")) and last != "human":
        last = last[:-2] + "en"
    else:
        last += "s"
    return " ".join([*before, last]) + rest


def _head(phrase: str) -> str:
    """The phrase up to what follows its noun."""
    if re.match(r"(wo)?man |person |people ", phrase):
        phrase = re.split(r" (?:mountain )?\w+ing\b", phrase)[0]
    return re.split(r" (?:of|with|in|on|and|without|behind|wearing|holding|playing|for|from|to|at|facing)\b", phrase)[0]


def french_plural(name: str) -> str:
    """Of a French noun phrase: its first word and the adjectives that follow directly."""
    first, *rest = name.split(" ")
    if first.endswith(("s", "x", "z")):
        many = first
    elif first.endswith(("eau", "eu", "au")):
        many = first + "x"
    elif first.endswith("al"):
        many = first[:-1] + "ux"
    else:
        many = first + "s"
    return " ".join([many, *rest])


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
