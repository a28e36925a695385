"""LibreOffice's help and menus in two languages, as pairs for a translator.

Place: `python -m lab data libreoffice-help --pair en-de`. Source: Debian's packages of LibreOffice (MPL-2.0). A page
of the help is one HTML file a language; its paragraphs carry ids that are the same in all languages, which align them.
Menus and dialogs come as gettext catalogues whose keys are the English texts. Pages are split by a hash of their names
into training, validation and a held-out tenth; menus only train. Left out: code examples, keys of the Mac, and what
was never translated.
"""

import difflib
import re
import struct
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from lab.emblem.splits import fraction
from lab.help.debian import fetch
from qkv import registry
from qkv.atomic import new_folder
from qkv.data.parallel import Pair, write_pairs
from qkv.errors import CheckpointError, InputError
from qkv.text.sentences import sentences

LANGUAGES = {"de": "de", "fr": "fr", "zh-TW": "zh-tw"}  # ours -> in the packages' names
HELP, MENUS = "usr/share/libreoffice/help", "usr/lib/libreoffice/program/resource"
SEED = 2017
TEST, VALIDATION = 0.10, 0.03  # of the pages
LONGEST = 400  # characters of a text

NOTICE = """Texts of LibreOffice {versions}, from Debian's packages {packages}.
Copyright LibreOffice contributors and/or their affiliates; Oracle and/or its affiliates.
Licensed under the Mozilla Public License 2.0, https://www.mozilla.org/MPL/2.0/.
Cut into sentences, aligned and cleaned; the source is https://www.libreoffice.org/.
"""


def build(pair: str, home: Path | None = None) -> Path:
    """The folder with train, val and test of a pair such as "en-de", made anew, and its NOTICE.

    Raises InputError for another pair, what `fetch` raises, CheckpointError, OutputError.
    """
    source, _, target = pair.partition("-")
    if source != "en" or target not in LANGUAGES:
        raise InputError(f"pair={pair!r} cannot be had; there is {', '.join(f'en-{name}' for name in LANGUAGES)}")
    data = (home or registry.home()) / "data"
    folder, name = data / f"libreoffice-help-{pair}", LANGUAGES[target]
    packages = ("libreoffice-help-en-us", f"libreoffice-help-{name}", f"libreoffice-l10n-{name}")
    files = fetch(packages, data / "packages")
    pages, menus = help_pairs(files[packages[0]], files[packages[1]]), menu_pairs(files[packages[2]])
    parts: dict[str, list[Pair]] = {"train": list(menus), "val": [], "test": []}
    for page, pairs in pages:
        parts[part_of(page)] += pairs
    versions = ", ".join(sorted({path.name.partition("_")[2].replace("%3a", ":") for path in files.values()}))
    with new_folder(folder, replace=True) as made:
        for part, pairs in parts.items():
            write_pairs(made, part, source, target, list(dict.fromkeys(clean(pairs))))
        (made / "NOTICE").write_text(NOTICE.format(versions=versions, packages=", ".join(packages)))
    return folder


def part_of(page: str) -> str:
    """Where a page of that name belongs: the same in every language and on every machine."""
    place = fraction(SEED, "page", page)
    return "test" if place < TEST else "val" if place < TEST + VALIDATION else "train"


def help_pairs(english: Path, other: Path) -> Iterator[tuple[str, list[Pair]]]:
    """The name of every page that both packages have, with its aligned texts."""
    ours, theirs = (_pages(folder) for folder in (english, other))
    for name in sorted(ours.keys() & theirs.keys()):
        yield name, list(align(read_page(ours[name]), read_page(theirs[name])))


def _pages(package: Path) -> dict[str, Path]:
    folders = list((package / HELP).glob("*/text"))
    if len(folders) != 1:
        raise CheckpointError(f"{package.name} is not LibreOffice's help: it has {len(folders)} languages")
    return {path.relative_to(folders[0]).as_posix(): path for path in folders[0].rglob("*.html")}


Block = tuple[str, str]  # a paragraph's id and its text


def align(ours: list[Block], theirs: list[Block]) -> Iterator[Pair]:
    """The paragraphs of one id and order, cut into sentences where both sides have as many."""
    ids = [id for id, _ in ours], [id for id, _ in theirs]
    for match in difflib.SequenceMatcher(None, *ids, autojunk=False).get_matching_blocks():
        for i in range(match.size):
            yield from _cut(ours[match.a + i][1], theirs[match.b + i][1])


def _cut(source: str, target: str) -> Iterator[Pair]:
    sources, targets = sentences(source), sentences(target)
    yield from map(Pair, sources, targets) if len(sources) == len(targets) else [Pair(source, target)]


def read_page(path: Path) -> list[Block]:
    reader = _Page()
    reader.feed(path.read_text(encoding="utf-8", errors="replace"))
    return reader.blocks


class _Page(HTMLParser):
    """The paragraphs and headings of a page that have an id. Of words that depend on the system, those are taken that
    hold by default; a paragraph that has none is left out."""

    TEXT = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6"})
    CODE = frozenset({"bascode", "code", "codeintable", "pycode", "sqlcode"})

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._id, self._text, self._broken = "", "", False
        self._spans: list[str] = []  # open spans: "", "choice", "default" or "other"
        self._chosen = False  # the choice that is open has a default

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in self.TEXT:
            code = bool(self.CODE & set(given.get("class", "").split()))
            self._id, self._text, self._broken, self._spans = given.get("id", ""), "", code, []
        elif tag == "span" and self._id:
            self._spans.append(self._kind(given))
            self._chosen = self._spans[-1] == "default" or (self._spans[-1] != "choice" and self._chosen)
        elif tag in ("code", "pre"):
            self._broken = True
        elif tag == "br":
            self._text += " "

    def _kind(self, given: dict[str, str]) -> str:
        if given.get("class") == "switchinline":
            return "choice"
        if self._spans and self._spans[-1] == "choice":
            return "default" if given.get("id", "").startswith("default") else "other"
        return ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._spans and self._spans.pop() == "choice":
            self._broken |= not self._chosen
        elif tag in self.TEXT and self._id:
            text = " ".join(self._text.split())
            if text and not self._broken:
                self.blocks.append((self._id, text))
            self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id and "other" not in self._spans:
            self._text += data


def menu_pairs(package: Path) -> Iterator[Pair]:
    """The English texts of menus and dialogs, with their translations."""
    for path in sorted((package / MENUS).glob("*/LC_MESSAGES/*.mo")):
        for key, text in read_catalogue(path):
            source = key.rpartition("\x04")[2]
            if "\0" not in key + text:  # no plural forms
                yield from _cut(*(" ".join(re.sub(r"[~_](?=\w)|\(~\w\)", "", side).split()) for side in (source, text)))


def read_catalogue(path: Path) -> list[tuple[str, str]]:
    """The keys (context, \\x04, English) and texts of a gettext .mo file. Raises CheckpointError."""
    data = path.read_bytes()
    try:
        magic, _, count, keys, texts = struct.unpack_from("<5I", data)
        if magic != 0x950412DE:
            raise ValueError("it does not begin as one")
        places = [struct.unpack_from(f"<{2 * count}I", data, table) for table in (keys, texts)]
        if max((o + n for place in places for n, o in zip(place[::2], place[1::2])), default=0) > len(data):
            raise ValueError("it is cut")
        sides = [[data[o : o + n].decode() for n, o in zip(place[::2], place[1::2])] for place in places]
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path} is not a gettext catalogue: {error}") from error
    return [(key, text) for key, text in zip(*sides) if key]


def clean(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs that teach translation: both sides are words, of about one length, and not the same."""
    for pair in pairs:
        source, target = pair
        short, long = sorted((_width(source), _width(target)))
        words = all(sum(map(str.isalpha, side)) >= max(2, 0.4 * len(side)) for side in pair)
        marks = re.search(r"[%$<>{}\\]\w|https?:|\w\(|=\w", source + " " + target)
        if words and not marks and source != target and max(map(len, pair)) <= LONGEST and long <= 3 * short + 12:
            yield pair


def _width(text: str) -> int:
    """Its length, in which a Chinese character counts as three letters."""
    return sum(3 if ord(character) > 0x2E7F else 1 for character in text)
