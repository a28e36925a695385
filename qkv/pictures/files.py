"""Pictures out of files of strangers: PNG, JPEG and WebP, whatever their names say, and nothing else.

Which of the three it is, its first bytes tell, so that no other decoder is ever reached; its pixels are counted before
any is decoded. What comes out is RGB as a person would see it: turned as EXIF says, on white where it is transparent,
16 bits as 8. Of an animation it is the first frame. Left out: colour profiles, and smaller versions inside a file.
What Pillow warns of in a file is Python's to show or not: its filters belong to the process, and to nobody here.
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from qkv.errors import CheckpointError, InputError, NotFoundError, shorten
from qkv.index.passages import LINK, Skipped, walk
from qkv.pictures.png import lean
from qkv.untrusted import open_regular

MAX_FILE = 64 << 20  # bytes
MAX_PIXELS = 80_000_000  # 240 MB in memory
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"}
# Names that promise a picture: whoever searches pictures should hear why these are not among them.
OTHERS = {".gif", ".bmp", ".tif", ".tiff", ".svg", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".ico", ".apng"}
SHEET = ("Software", "qkv search")  # what a contact sheet says of itself, first of all
HEAD = 100  # bytes that tell

# EXIF's orientations (CIPA DC-008, section 4.6.4) and how they are undone.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class Opened(NamedTuple):
    """An RGB picture, and whether it is one of several in its file."""

    image: Image.Image
    animated: bool


@dataclass(frozen=True)
class PictureFile:
    """A file that begins as a picture does."""

    file: Path


def find_pictures(place: Path) -> Iterator[PictureFile | Skipped]:
    """The pictures in a folder, in the order of their names, or the one file; and what is none though its name says so.

    Other files are passed over in silence, and our own contact sheets. NotFoundError if there is no such place.
    """
    if not os.path.exists(place):
        raise NotFoundError(f"there is no file or folder {shorten(str(place))!r} to search")
    for file in walk(place) if place.is_dir() else [place]:
        if place.is_dir() and file.is_symlink():
            if file.suffix.lower() in SUFFIXES | OTHERS or file.is_dir():
                yield Skipped(file, LINK)
            continue
        try:
            with open_regular(file) as stream:
                head = stream.read(HEAD)
        except CheckpointError as error:
            yield Skipped(file, _reason(error))
            continue
        if place.is_dir() and "\0".join(SHEET).encode() in head:
            continue  # what was found before is nothing to find
        if kind(head):
            yield PictureFile(file)
        elif not place.is_dir() or file.suffix.lower() in SUFFIXES | OTHERS:
            yield Skipped(file, "it is not a PNG, JPEG or WebP picture")


def picture_named(text: str) -> Path | None:
    """The picture's file of that name, by its suffix or its first bytes; None for words. NotFoundError for a picture's
    name that no file has."""
    path = Path(text)
    if not os.path.isfile(path):  # no name that a file can have is no error here
        if path.suffix.lower() in SUFFIXES and not any(map(str.isspace, text)):
            raise NotFoundError(f"there is no picture {shorten(text)!r}; name one that is there, or use words")
        return None
    if path.suffix.lower() in SUFFIXES:
        return path
    try:
        with open_regular(path) as file:
            return path if kind(file.read(HEAD)) else None
    except CheckpointError:
        return None


def kind(head: bytes) -> str | None:
    """PNG, JPEG or WEBP by a file's first bytes, else None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file. InputError."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size  # to ask for the most there may be would cost more than the reading
            data = file.read(min(size, MAX_FILE) + 1)
    except CheckpointError as error:
        raise InputError(f"cannot read {shorten(str(path), 200)}: {_reason(error)}") from error
    if len(data) > MAX_FILE:
        raise InputError(f"cannot read {shorten(str(path), 200)}: it has more than {MAX_FILE >> 20} MiB")
    return data


def open_picture(path: str | Path) -> Opened:
    """The picture in a file. InputError."""
    return decode_file(read_file(Path(path)), path)


def decode_file(data: bytes, path: str | Path, *, alpha: bool = False) -> Opened:
    """The picture in the bytes of the file at `path`. InputError."""
    try:
        return decode(data, alpha=alpha)
    except UnreadableError as error:
        raise InputError(f"cannot read {shorten(str(path), 200)}: {error}") from error


class UnreadableError(InputError):
    """Bytes that are no picture; the message is the reason alone."""


def decode(data: bytes, *, alpha: bool = False) -> Opened:
    """The picture in a file's bytes, with `alpha` in RGBA where it is transparent. UnreadableError says why there is
    none."""
    readers: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    name = kind(data[:HEAD])
    if name == "PNG":
        data = lean(data)
    if name is None:
        raise UnreadableError("it is not a PNG, JPEG or WebP picture")
    try:
        with readers[name](io.BytesIO(data)) as image:  # not Image.open, which has a limit of its own
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(
                    f"it has {image.width} x {image.height} pixels; at most {MAX_PIXELS // 1_000_000} million are read"
                )
            animated = bool(getattr(image, "is_animated", False))
            image.load()
            return Opened(upright(image, alpha=alpha), animated)
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:  # WebP's own look at the size
        raise UnreadableError(f"it has too many pixels; at most {MAX_PIXELS // 1_000_000} million are read") from error
    except MemoryError as error:
        raise UnreadableError("there is not enough memory for it") from error
    except Exception as error:  # decoders of hostile bytes raise whatever they please
        raise UnreadableError(f"its {name} data is broken: {shorten(str(error)) or type(error).__name__}") from error


def upright(image: Image.Image, *, alpha: bool = False) -> Image.Image:
    """An image of any mode in RGB, turned as its EXIF says, on white; or with `alpha` in RGBA where it has any."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF breaks no picture
        turn = None
    image = to_rgb(image, alpha=alpha)
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # which would say once more that it is to be turned
    return image


def to_rgb(image: Image.Image, *, alpha: bool = False) -> Image.Image:
    """An image of any mode in RGB, on white; or with `alpha` in RGBA where it has any."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would clip them
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if alpha:
            return image
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """What `open_regular` says, without the name that stands before it."""
    cause = error.__cause__
    return (getattr(cause, "strerror", None) or str(cause)) if cause else "it is not a regular file"


def count_by_name(place: Path) -> tuple[int, int]:
    """How many files of a folder have a picture's name, and how many have another."""
    if not os.path.isdir(place):
        named = place.suffix.lower() in SUFFIXES
        return (1, 0) if named else (0, 1)
    pictures = others = 0
    for file in walk(place):
        if file.is_symlink():
            continue
        if file.suffix.lower() in SUFFIXES | OTHERS:
            pictures += 1
        else:
            others += 1
    return pictures, others


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """A copy that fits into `side` x `side`, never enlarged, at least a pixel each way."""
    copy = image.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy
