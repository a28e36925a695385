"""The emblem data set: emoji-like pictures of 128 x 128 with what is known of each.

Place: what `python -m lab data emblem` builds and what training and evaluation load. npm packages (`npm`) become icons,
icons become concepts (`concepts`) and pictures (`raster`), both become items with a split (`splits`), of some also
tints of one colour (`tinting`); words are put together only when a caption is drawn (`captions`). Left out: pictures
of pairs with two different skin tones (a third of the toned ones, all alike), dark variants, icons that their set
hides as outdated.
"""

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.emblem import raster, splits
from lab.emblem.concepts import Concept, Emojibase
from lab.emblem.items import Item, Words
from lab.emblem.tinting import tints
from qkv import config, machine, registry
from qkv.atomic import new_folder, replacing
from qkv.errors import CheckpointError, NotFoundError, OutputError
from qkv.fetch.npm import Package, fetch
from qkv.progress import Bar

TABLE = Path(__file__).with_name("emblem.toml")
FILLED = 0.906  # of the frame's side that a typical silhouette spans, in every set
FAINTEST = 240  # a picture without a darker value is white on white: blank
WORKERS = min(16, machine.cores()["usable"] or 2)
SWATCHES = "components"  # the group of bare skin tones and hair


@dataclass(frozen=True, kw_only=True)
class Work:
    """A package and whom to thank for it."""

    package: str
    version: str
    integrity: str
    bytes: int
    title: str
    author: str
    licence: str
    url: str

    @property
    def pin(self) -> Package:
        return Package(name=self.package, version=self.version, integrity=self.integrity, bytes=self.bytes)


@dataclass(frozen=True, kw_only=True)
class IconSet(Work):
    """One drawing style: a row of emblem.toml, which explains the fields."""

    style: str
    extent: float
    hidden: bool = False
    shortcodes: bool = False
    emoji_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Works:
    """emblem.toml."""

    seed: int
    names: Work
    sets: tuple[IconSet, ...]


@dataclass(frozen=True, kw_only=True)
class EmblemData:
    """The data set as it lies on disk: `pictures` uint8 (N, 128, 128, 3), memory-mapped, and their N items."""

    pictures: npt.NDArray[np.uint8]
    items: list[Item]


def table() -> Works:
    """The sets and their pins."""
    return config.build(Works, config.read_toml(TABLE))


def notice() -> str:
    """Licences and attributions of everything that the data set is made of."""
    lines = [
        "The emblem data set is made of these works; each keeps its own licence.",
        "Pictures were resized to 128 x 128 pixels on white, names reworded into captions.",
    ]
    return "\n".join([*lines, *attributions((*table().sets, table().names))]) + "\n"


def attributions(sources: Iterable[Work]) -> Iterator[str]:
    """Whom to thank for what, and where its licence stands, line by line."""
    for source in sources:
        yield from ("", f"{source.title}, by {source.author}", f"  {source.url}")
        yield from (f"  {name}: https://spdx.org/licenses/{name}.html" for name in source.licence.split("; "))
        yield f"  npm package {source.package} {source.version}"


def data_folder(home: Path | None = None) -> Path:
    """Where the data set lies: under `home`, else in the user's data home."""
    return (home or registry.home()) / "data" / "emblem"


def load(home: Path | None = None, *, tinted: bool = False) -> EmblemData:
    """The data set that `build` left, the items of its tints (tinting.py) only if asked for.

    Raises NotFoundError if there is none, CheckpointError if it is broken.
    """
    folder = data_folder(home)
    if not (folder / "manifest.json").is_file():
        raise NotFoundError(f"no emblem data set in {folder}; run: python -m lab data emblem")
    try:
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        items = list(read_items((folder / "items.jsonl").read_text(encoding="utf-8").splitlines(), words))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the emblem data set in {folder} is broken: {error}; run: python -m lab data emblem"
        ) from error
    if pictures.shape != (len(items), raster.SIZE, raster.SIZE, 3):
        raise CheckpointError(
            f"the emblem data set in {folder} has pictures {pictures.shape} for {len(items)} items; "
            "run: python -m lab data emblem"
        )
    return EmblemData(pictures=pictures, items=[item for item in items if tinted or item.split != "tint"])


def read_items(lines: Iterable[str], words: dict[str, Any]) -> Iterator[Item]:
    """The items of items.jsonl, a line each, with their words in the other languages from words.json."""
    tones = {
        tone: {code: named[tone] for code, named in words["tones"].items()}
        for tone in next(iter(words["tones"].values()))
    }
    concepts = {
        concept: {code: Words(name, tuple(keywords), group) for code, (name, keywords, group) in rows.items()}
        for concept, rows in words["concepts"].items()
    }
    for row, line in enumerate(lines):
        values = json.loads(line)
        for key in ("keywords", "colours"):
            values[key] = tuple(values[key])
        yield Item(row=row, words=concepts.get(values["concept"], {}), tones=tones.get(values["tone"], {}), **values)


def build(home: Path | None = None, *, progress: bool = True) -> Path:
    """Fetch, draw and describe the data set; its folder. Nothing appears there before all of it is done.

    A set that was drawn before is not drawn again, so an interrupted build goes on where it was. Raises what
    `fetch` and `raster` raise, and OutputError if the folder cannot be written.
    """
    folder, rows = data_folder(home), table()
    cache = folder.parent / "packages"
    names = Emojibase(fetch(rows.names.pin, cache))
    folders = {icons.style: fetch(icons.pin, cache) for icons in rows.sets}
    for icons in rows.sets:
        names.learn(code_points(folders[icons.style]))
    try:
        pictures, items = _dedupe(_draw_sets(rows, folders, names, folder.parent / "drawn", progress))
        items = splits.weigh(splits.assign(items, rows.seed, {icons.style for icons in rows.sets if icons.hidden}))
        for picture, item in tints(pictures, items, rows.seed):
            pictures.append(picture)
            items.append(item)
        with new_folder(folder, replace=True) as made:
            _write(made, pictures, items, names, rows)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


@dataclass(frozen=True, kw_only=True)
class Icon:
    """An icon before it is drawn: `source` is an SVG document or a picture file."""

    name: str
    source: str | Path
    concept: Concept
    tone: str


def code_points(folder: Path) -> dict[str, str]:
    """The names (aliases too) of an Iconify set with their hexcodes, where the set gives them."""
    if not (folder / "chars.json").is_file():
        return {}
    codes = {name: code for code, name in json.loads((folder / "chars.json").read_text()).items()}
    aliases = json.loads((folder / "icons.json").read_text()).get("aliases", {})
    # An alias with more than a parent is a mirrored or turned picture: another thing.
    twins = {
        alias: codes[row["parent"]] for alias, row in aliases.items() if [*row] == ["parent"] and row["parent"] in codes
    }
    return {**twins, **codes}


def icons_of(icons: IconSet, folder: Path, names: Emojibase) -> Iterator[Icon]:
    """The icons of a set that are drawn, by name."""
    codes = code_points(folder)
    for name, source in _sources(folder):
        code = name if isinstance(source, Path) else codes.get(name)
        found = names.identify(name, code, shortcodes=icons.shortcodes)
        if found is None or found[0].words.group == SWATCHES or (icons.emoji_only and not found[0].words.group):
            continue
        yield Icon(name=name, source=source, concept=found[0], tone=found[1])


def _sources(folder: Path) -> Iterator[tuple[str, str | Path]]:
    """(name, SVG document or file) of an Iconify set or of a folder of pictures named by code point."""
    if not (folder / "icons.json").is_file():
        yield from ((path.stem, path) for path in sorted((folder / "assets").glob("*.webp")))
        return
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    for name, icon in sorted(icons["icons"].items()):
        if not icon.get("hidden"):
            yield name, _svg(icon, icons)


def _svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """An Iconify icon as a document; what it does not say, its set says."""
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _draw_sets(
    rows: Works, folders: dict[str, Path], names: Emojibase, drawn: Path, progress: bool
) -> Iterator[tuple[raster.Picture, Item]]:
    """Every picture with its item, set by set; what is drawn is kept in `drawn`."""
    drawn.mkdir(parents=True, exist_ok=True)
    jobs = {icons.style: list(icons_of(icons, folders[icons.style], names)) for icons in rows.sets}
    done = 0
    with _workers() as pool, Bar("drawing", sum(map(len, jobs.values())), shown=progress) as bar:
        for icons in rows.sets:
            bar.update(what=f"drawing {icons.style}")
            path = drawn / f"{icons.style}-{_fingerprint(icons, jobs[icons.style])}.npz"
            if not path.is_file():
                made = []
                arguments = [(icon.source, FILLED / icons.extent) for icon in jobs[icons.style]]
                for pair in pool.map(_draw, arguments, chunksize=16):
                    made.append(pair)
                    bar.advance()
                _keep(path, made)
            yield from _join(icons, jobs[icons.style], path)
            done += len(jobs[icons.style])
            bar.update(done)


def _fingerprint(icons: IconSet, jobs: list[Icon]) -> str:
    """What the drawn pictures of a set depend on: the package, the scale, the drawing code, which icons."""
    code = hashlib.sha256(Path(raster.__file__).read_bytes()).hexdigest()
    facts = [icons.integrity, str(icons.extent), code, *(icon.name for icon in jobs)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


@contextmanager
def _workers() -> Iterator[ProcessPoolExecutor]:
    """Processes to draw in. Ctrl-C is for their parent alone, which then drops what is still waiting."""
    quiet = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), initializer=signal.signal, initargs=quiet)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(job: tuple[str | Path, float]) -> tuple[raster.Picture, tuple[str, ...]]:
    source, scale = job
    picture, silhouette = (
        raster.draw_file(source, scale) if isinstance(source, Path) else raster.draw_svg(source, scale)
    )
    return picture, raster.name_colours(picture, silhouette)


def _keep(path: Path, made: list[tuple[raster.Picture, tuple[str, ...]]]) -> None:
    """A drawn set at `path`, all of it or nothing."""
    pictures, colours = zip(*made)
    with replacing(path) as file:
        np.savez_compressed(file, pictures=pictures, colours=[" ".join(words) for words in colours])


def _join(icons: IconSet, jobs: list[Icon], path: Path) -> Iterator[tuple[raster.Picture, Item]]:
    """The pictures drawn at `path` with their items; neither split nor weight is decided yet."""
    with np.load(path) as drawn:
        pictures, colours = drawn["pictures"], drawn["colours"].tolist()
    for icon, picture, words in zip(jobs, pictures, colours, strict=True):
        concept = icon.concept
        yield (
            picture,
            Item(
                row=-1,  # given by `_dedupe`
                style=icons.style,
                icon=icon.name,
                concept=concept.key,
                base=concept.base,
                name=concept.words.name,
                keywords=concept.words.keywords,
                group=concept.words.group,
                subgroup=concept.subgroup,
                tone=icon.tone,
                gender=concept.gender,
                colours=tuple(words.split()),
                split="train",
                weight=1.0,
            ),
        )


def _dedupe(pairs: Iterable[tuple[raster.Picture, Item]]) -> tuple[list[raster.Picture], list[Item]]:
    """Pictures and items without repeats and blank pictures; of equal pictures the plainest name stays."""
    found = [(picture, item) for picture, item in pairs if picture.min() < FAINTEST]
    # Man, woman and person are often one picture: then it shows a person.
    plainest = sorted(range(len(found)), key=lambda i: (bool(found[i][1].tone), bool(found[i][1].gender), i))
    first: dict[bytes, int] = {}
    for i in plainest:
        first.setdefault(hashlib.sha256(found[i][0].tobytes()).digest(), i)
    kept = sorted(first.values())
    return [found[i][0] for i in kept], [replace(found[i][1], row=row) for row, i in enumerate(kept)]


def _write(folder: Path, pictures: list[raster.Picture], items: list[Item], names: Emojibase, rows: Works) -> None:
    """The files of the data set."""
    shape = (len(pictures), raster.SIZE, raster.SIZE, 3)
    file = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    for row, picture in enumerate(pictures):
        file[row] = picture
    file.flush()
    with (folder / "items.jsonl").open("w", encoding="utf-8") as lines:
        for item in items:
            values = {name: value for name, value in asdict(item).items() if name not in ("row", "words", "tones")}
            lines.write(json.dumps(values, ensure_ascii=False) + "\n")
    others = {code: rows for code, rows in names.languages.items() if code != "en"}
    words = {
        "tones": names.tones,
        "concepts": {
            concept: {code: rows[concept] for code, rows in others.items() if concept in rows}
            for concept in sorted({item.concept for item in items} & set(names.concepts))
        }
        | {item.concept: item.words for item in items if item.split == "tint"},
    }
    (folder / "words.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    (folder / "NOTICE").write_text(notice(), encoding="utf-8")
    manifest = {
        "items": len(items),
        "styles": Counter(item.style for item in items),
        "splits": Counter(item.split for item in items),
        "seed": rows.seed,
        "packages": {source.package: source.version for source in (*rows.sets, rows.names)},
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
