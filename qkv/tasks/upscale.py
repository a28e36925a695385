"""A picture with more pixels: `qkv upscale PICTURE`.

picture ─ tiles that overlap ─ network ─ a larger picture, with what its file said of itself

Place: any picture's own way; what is drawn goes through the same network (draw.py), so that drawing without its
upscaler and enlarging afterwards gives the same pixels. Left out: colour profiles, EXIF and XMP, which the pixels of
the new file no longer need or fit.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from qkv import device as devices
from qkv.config import plain
from qkv.errors import InputError, quoted
from qkv.loaded.upscaler import Enlarger, load_enlarger
from qkv.loaded.where import AUTO, Where
from qkv.pictures import png
from qkv.pictures.enlarge import Enlarged, enlarge
from qkv.pictures.files import decode_file, read_file, upright
from qkv.pictures.picture import MAX_TEXT, Upscale, Upscaled
from qkv.registry import DEFAULTS, label


def upscale(
    picture: str | Path | Image.Image,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
) -> Upscaled:
    """A picture's file, or an image, enlarged; transparency stays, and so do the texts of a PNG file.

    `model` is a file or folder of Real-ESRGAN's kind, or the name of a model that has an upscaler; with `allow_pickle`
    also a .pth file. Raises InputError, NotFoundError, CheckpointError, ConfigError.
    """
    where = Where(device=device or "auto", dtype=dtype or "auto", threads=threads)
    *_, last = upscaling(picture, model=model, where=where, offline=offline, allow_pickle=allow_pickle)
    assert isinstance(last, Upscaled)
    return last


def upscaling(
    picture: str | Path | Image.Image,
    *,
    model: str | Path | None = None,
    where: Where = AUTO,
    offline: bool = False,
    allow_pickle: bool = False,
) -> Iterator[Enlarged | Upscaled]:
    """The same as one loop: `Enlarged` after every tile, then the result. The picture and the model are read before
    this returns."""
    model = DEFAULTS["pictures"] if model is None else plain(model)
    image, texts, warnings = _open(picture)
    enlarger = load_enlarger(model, where, offline=offline, allow_pickle=allow_pickle)
    return devices.on_threads(
        where.threads, _run(enlarger, image, texts, (*warnings, *enlarger.warnings), label(model))
    )


def _run(
    enlarger: Enlarger, image: Image.Image, texts: dict[str, str], warnings: tuple[str, ...], name: str
) -> Iterator[Enlarged | Upscaled]:
    began = time.perf_counter()
    for event in enlarge(enlarger.network, image):
        yield event
    how = Upscale(model=name, fingerprint=enlarger.fingerprint, scale=enlarger.network.config.scale, size=image.size)
    seconds = time.perf_counter() - began
    yield Upscaled(image=event.image, upscale=how, texts=texts, warnings=warnings, seconds=seconds)


def _open(picture: object) -> tuple[Image.Image, dict[str, str], list[str]]:
    """The picture in RGB or RGBA, its file's texts, and warnings."""
    if isinstance(picture, Image.Image):
        return upright(picture, alpha=True), {}, []
    if not isinstance(picture, str | Path):
        raise InputError(f"picture={quoted(picture)} is no picture's file and no image")
    data = read_file(Path(picture))
    image, animated = decode_file(data, picture, alpha=True)
    warnings = ["animation: only its first picture is enlarged"] if animated else []
    try:
        texts = png.texts(data, None, MAX_TEXT) if data.startswith(png.SIGNATURE) else {}
    except ValueError as error:
        texts = {}
        warnings.append(f"texts-lost: what the file says of itself is not kept: {error}")
    return image, texts, warnings
