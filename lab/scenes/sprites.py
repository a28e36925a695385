"""Sprites: the icons of five drawing styles, cut out along their alpha, ready to be pasted.

Place: the first step of `python -m lab data scenes`. The pinned packages of emblem's table are rendered once for each
side that is asked for (256 for scenes of 128 pixels; 512 for pairs that an upscaler learns from) and kept as plain
bytes, so that a sprite costs one read of a memory map. Left out: skin tones, flags, keycaps and signs, which nobody
meets in a place.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from lab.emblem import dataset
from lab.emblem.concepts import Emojibase
from qkv import machine
from qkv.errors import CheckpointError, MissingDependencyError, NotFoundError
from qkv.fetch.npm import fetch

STYLES = ("noto", "flat", "gradient", "3d", "twemoji")
HIDDEN = ("emojione", "firefox")  # a judge alone sees them, so that it looks at what is drawn and not at how
SIDE = 256  # of the canvas that an icon is rendered on, before it is cut
VISIBLE = 8  # of 255; fainter alpha belongs to no silhouette
UNPLACED = {"symbols", "flags", "components", ""}  # Unicode's groups that are left out
WORKERS = min(16, machine.cores()["usable"] or 2)


@dataclass(frozen=True, kw_only=True)
class Sprites:
    """The sprites of every style by concept, as PIL images in "RGBa" (premultiplied: they may be resized)."""

    images: dict[str, dict[str, "Cut"]]
    side: int = SIDE

    def get(self, style: str, concept: str) -> Image.Image:
        """Raises NotFoundError for a sprite that is not there."""
        try:
            return self.images[style][concept].image()
        except KeyError as error:
            raise NotFoundError(f"there is no sprite of {concept} in style {style}") from error

    def has(self, style: str, concept: str) -> bool:
        return concept in self.images.get(style, {})

    def common(self) -> set[str]:
        """The concepts that every style draws."""
        return set.intersection(*(set(row) for row in self.images.values()))


@dataclass(frozen=True)
class Cut:
    """A sprite's pixels, premultiplied RGBA, (Y, X, 4)."""

    pixels: npt.NDArray[np.uint8]

    def image(self) -> Image.Image:
        height, width, _ = self.pixels.shape
        return Image.frombuffer("RGBa", (width, height), self.pixels, "raw", "RGBa", 0, 1)

    @classmethod
    def of(cls, image: Image.Image) -> "Cut":
        return cls(np.array(image.convert("RGBa")))


def load(side: int = SIDE, *, styles: tuple[str, ...] = STYLES, progress: bool = True) -> Sprites:
    """The sprites of the styles, rendered first where that was not done yet. Raises what `npm.fetch` raises."""
    table = dataset.table()
    cache = dataset.data_folder().parent
    names = Emojibase(fetch(table.names.pin, cache / "packages"))
    sets = [icons for icons in table.sets if icons.style in styles]
    folders = {icons.style: fetch(icons.pin, cache / "packages") for icons in sets}
    for icons in sets:
        names.learn(dataset.code_points(folders[icons.style]))
    images = {}
    for icons in sets:
        found = _plain(dataset.icons_of(icons, folders[icons.style], names))
        facts = f"{icons.integrity} {side} {VISIBLE} {sorted(found)}"
        name = f"{icons.style}-{side}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        path = cache / "sprites" / name
        if not path.with_suffix(".json").is_file():
            _keep(path, _render(found, side, icons.style, progress))
        images[icons.style] = _read(path)
    return Sprites(images=images, side=side)


def _plain(icons: Iterable[dataset.Icon]) -> dict[str, str | Path]:
    """What is rendered, by concept: icons without a skin tone, each concept's first."""
    found: dict[str, str | Path] = {}
    for icon in icons:
        if not icon.tone and icon.concept.words.group not in UNPLACED:
            found.setdefault(icon.concept.key, icon.source)
    return found


def _render(found: dict[str, str | Path], side: int, style: str, progress: bool) -> Iterator[tuple[str, Cut]]:
    jobs = [(source, side) for source in found.values()]
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        cuts = pool.map(_cut, jobs, chunksize=16)
        for key, cut in track(zip(found, cuts), f"sprites, {style}", len(jobs), disable=not progress):
            if cut.pixels.size:
                yield key, cut


def _cut(job: tuple[str | Path, int]) -> Cut:
    source, side = job
    image = _raster(source, side).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > VISIBLE)).getbbox()
    return Cut.of(image.crop(box or (0, 0, 0, 0)))


def _raster(source: str | Path, side: int) -> Image.Image:
    if isinstance(source, Path):
        with Image.open(source) as image:
            return image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependencyError.needs("resvg-py", "train") from error
    png = resvg_py.svg_to_bytes(svg_string=source, width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def _keep(path: Path, cuts: Iterator[tuple[str, Cut]]) -> None:
    """The sprites at `path` (.bin), and where each lies there (.json, written last)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places, offset = {}, 0
    with path.with_suffix(".part").open("wb") as file:
        for key, cut in cuts:
            height, width, _ = cut.pixels.shape
            file.write(cut.pixels.tobytes())
            places[key] = (offset, width, height)
            offset += cut.pixels.size
    path.with_suffix(".part").rename(path.with_suffix(".bin"))
    path.with_suffix(".json").write_text(json.dumps(places), encoding="utf-8")


def _read(path: Path) -> dict[str, Cut]:
    places = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    pixels: npt.NDArray[np.uint8] = np.memmap(path.with_suffix(".bin"), np.uint8, "r")
    end = max((offset + 4 * width * height for offset, width, height in places.values()), default=0)
    if end != len(pixels):
        raise CheckpointError(f"{path.with_suffix('.bin')} has {len(pixels)} bytes, expected {end}; delete it")
    return {
        key: Cut(pixels[offset : offset + 4 * width * height].reshape(height, width, 4))
        for key, (offset, width, height) in places.items()
    }
