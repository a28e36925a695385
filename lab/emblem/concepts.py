"""What an icon shows: from a set's code points and slugs to one concept, named by Unicode.

Place: `python -m lab data emblem`, between the packages and the items. A *concept* is an emoji without its skin tone
(`1F9D1-200D-1F692`), or `name:slug` for an icon that is no emoji. Its *base* is what all its variants share:
man, woman and person; every clock face; every flag. Nobody is asked to tell variants of one base apart, and
the splits keep them together. Source: emojibase-data, which carries Unicode's CLDR names and keywords.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.emblem.items import Words

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}

WOMAN, MAN, PERSON, CHILD = "1F469", "1F468", "1F9D1", "1F9D2"
SIGNS = {"2640": "woman", "2642": "man", WOMAN: "woman", MAN: "man"}
# One person drawn as woman, man or neither.
KIN = {
    **dict.fromkeys((MAN, WOMAN), PERSON),
    **dict.fromkeys(("1F466", "1F467"), CHILD),
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),  # old man, old woman: older person
    **dict.fromkeys(("1F934", "1F478"), "1FAC5"),  # prince, princess: person with crown
    **dict.fromkeys(("1F930", "1FAC3"), "1FAC4"),  # pregnant woman, pregnant man: pregnant person
    "1F936": "1F385",  # Mrs. Claus: Santa Claus
    "1F57A": "1F483",  # man dancing: woman dancing
    **dict.fromkeys(("1F46C", "1F46D"), "1F46B"),  # two men, two women holding hands
}
# Sequences that draw what a single code point draws too.
SAME = {
    "1F9D1-1F384": "1F385",  # mx claus
    "1F9D1-1F91D-1F9D1": "1F46B",
    "1F9D1-2764-1F9D1": "1F491",
    "1F9D1-2764-1F48B-1F9D1": "1F48F",
}


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What is drawn, without skin tone and style. `gender` is woman, man or "" (neither, both, or no person)."""

    key: str
    base: str
    words: Words
    subgroup: str
    gender: str


class Emojibase:
    """The names of all emoji in every language, and the way from an icon to its concept.

    `folder` is an unpacked emojibase-data. `languages` maps a code to {concept key: Words}, `tones` a code to
    {tone: words}; both hold English under "en".
    """

    def __init__(self, folder: Path) -> None:
        groups = _read(folder / "meta" / "groups.json")
        self.languages: dict[str, dict[str, Words]] = {}
        self.tones: dict[str, dict[str, str]] = {}
        for code in sorted(path.parent.name for path in folder.glob("*/messages.json")):
            messages = _read(folder / code / "messages.json")
            named = {row["order"]: row["message"] for row in messages["groups"]}
            self.tones[code] = {row["key"]: row["message"] for row in messages["skinTones"]}
            self.languages[code] = {
                key_of(row["hexcode"]): Words(
                    humanise(row["label"]), tuple(map(humanise, row.get("tags", ()))), named.get(row.get("group"), "")
                )
                for row in _read(folder / code / "data.json")
            }
        self.concepts: dict[str, Concept] = {}
        self._index: dict[str, str] = {}  # squashed name -> hexcode, tones included
        for row in _read(folder / "en" / "data.json"):
            key = key_of(row["hexcode"])
            group = groups["groups"].get(str(row.get("group")), "")
            self.concepts[key] = Concept(
                key=key,
                base=base_of(key, group),
                words=self.languages["en"][key],
                subgroup=groups["subgroups"].get(str(row.get("subgroup")), ""),
                gender=gender_of(key),
            )
            for variant in (row, *row.get("skins", ())):
                self._index.setdefault(squash(variant["label"]), variant["hexcode"])
        self._shortcodes: dict[str, str] = {}
        for table in ("cldr", "emojibase", "emojibase-legacy", "joypixels", "iamcal", "github"):
            for hexcode, names in _read(folder / "en" / "shortcodes" / f"{table}.json").items():
                for name in [names] if isinstance(names, str) else names:
                    self._shortcodes.setdefault(squash(name), hexcode)
        self._unicode = {squash(name): code for code, name in _read(folder / "meta" / "unicode-names.json").items()}

    def learn(self, names: Mapping[str, str]) -> None:
        """Further names (slug -> hexcode), from a set that gives its code points; older names stay as they are."""
        for name, hexcode in names.items():
            if split_tone(hexcode)[0] in self.concepts:
                self._index.setdefault(squash(name), hexcode)

    def identify(self, slug: str, hexcode: str | None, *, shortcodes: bool) -> tuple[Concept, str] | None:
        """The concept and the skin tone ("" without one) of an icon; None if it shows several tones at once.

        `hexcode` is what its set says, if it says so; else the slug is looked up among all names, and if
        `shortcodes` among those that chat programs use.
        """
        codes = [hexcode] if hexcode else []
        for name in _spellings(slug):
            codes += [table[name] for table in (self._index, self._unicode) if name in table]
            codes += [self._shortcodes[name]] if shortcodes and name in self._shortcodes else []
        for code in codes:
            key, tone = split_tone(code)
            if tone is None:
                return None
            if key in self.concepts:
                return self.concepts[key], tone
        plain, tone = _split_tone_name(slug)
        return _unnamed(plain, split_tone(hexcode)[0] if hexcode else None), tone


def key_of(hexcode: str) -> str:
    """A hexcode in upper case without variation selectors and end tags: sets differ in where they write them."""
    return "-".join(code.zfill(4) for code in re.split("[-_]", hexcode.upper()) if code not in ("FE0F", "E007F"))


def split_tone(hexcode: str) -> tuple[str, str | None]:
    """The concept key and the tone of a hexcode: "" without a tone, None with several different ones."""
    codes = key_of(hexcode).split("-")
    found = {TONES[code] for code in codes[1:] if code in TONES}
    key = "-".join(code for i, code in enumerate(codes) if i == 0 or code not in TONES)
    return key, None if len(found) > 1 else "".join(found)


def base_of(key: str, group: str) -> str:
    """What the variants of the concept `key` (of Unicode's `group`) share."""
    codes = key.split("-")
    if group == "flags":
        return "flag"
    if codes[-1] == "20E3" or key == "1F51F":
        return "keycap"
    if len(codes) == 1 and 0x1F550 <= int(key, 16) <= 0x1F567:
        return "clock"
    if len(codes) == 1 and 0x1F1E6 <= int(key, 16) <= 0x1F1FF:
        return "letter"
    # 27A1 turns a person to the right.
    codes = [KIN.get(code, code) for code in codes if code not in ("200D", "2640", "2642", "27A1")]
    if key == "1F46A" or (len(codes) > 1 and set(codes) <= {PERSON, CHILD}):
        return "family"
    base = "-".join(codes) or key  # the gender signs alone are concepts of their own
    return SAME.get(base, base)


def gender_of(key: str) -> str:
    """woman or man where the emoji `key` says so, else ""."""
    found = {SIGNS[code] for code in key.split("-") if code in SIGNS}
    return found.pop() if len(found) == 1 and key not in ("2640", "2642") else ""


def humanise(label: str) -> str:
    """A CLDR label as a person would write it: "man: beard" is a "man with beard"."""
    label = re.sub("[“”„«»]", "", " ".join(label.replace("’", "'").split())).replace(": facing right", " facing right")
    label = re.sub(r"^(flag|family): ", r"\1 of ", label)
    label = re.sub(r"^keycap: ", "keycap ", label)
    label = re.sub(r"^regional indicator ", "letter ", label)
    label = re.sub(r"^kiss: (.+), (.+)", r"\1 and \2 kissing", label)
    label = re.sub(r"^couple with heart: (.+), (.+)", r"couple with heart, \1 and \2", label)
    label = re.sub(r"^(man|woman|person): bald", r"bald \1", label)
    return re.sub(r"^(man|woman|person): ", r"\1 with ", label)


def squash(name: str) -> str:
    """A name as bare ASCII letters and digits, so that all ways to write it meet."""
    plain = unicodedata.normalize("NFKD", name.lower())
    return re.sub(r"[^a-z0-9]", "", plain)


def _spellings(slug: str) -> Iterator[str]:
    """The squashed names under which an icon's slug may be known, the literal one first."""
    tones = list(TONES.values())
    yield squash(slug)
    yield squash(re.sub(r"-tone(\d)$", lambda found: f"-{tones[int(found[1]) - 1]}-skin-tone", slug))
    yield squash(re.sub(r"-(light|medium|dark)$", r"-\1-skin-tone", slug))
    yield squash(re.sub(r"^flag-for-(flag-)?", "flag-", slug))
    yield squash(re.sub(r"^letter-", "regional-indicator-", slug))
    yield squash(re.sub(r"-\d+$", "", slug))  # the second drawing of one thing


def _split_tone_name(slug: str) -> tuple[str, str]:
    found = re.search(r"-(light|medium-light|medium|medium-dark|dark)-skin-tone$", slug)
    return (slug[: found.start()], found[1]) if found else (slug, "")


def _unnamed(slug: str, key: str | None) -> Concept:
    """The concept of an icon that is no emoji, or none yet: all that is known of it is its name, perhaps its code."""
    slug = re.sub(r"[-_]?\d+$", "", slug) or slug
    if slug.startswith("digit-"):
        base = "keycap"
    elif "flag" in slug.split("-"):
        base = "flag"
    else:
        base = base_of(key, "") if key else f"name:{slug}"
    words = Words(re.sub(r"[-_]+", " ", slug), (), "")
    return Concept(key=f"name:{slug}", base=base, words=words, subgroup="", gender="")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
