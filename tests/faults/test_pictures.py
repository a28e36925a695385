"""Picture files from strangers: three kinds are decoded, everything else is one clear line, and no size is too odd."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from qkv.errors import InputError
from qkv.pictures import files as picture_files
from qkv.pictures.files import PictureFile, decode, find_pictures, open_picture, to_rgb
from qkv.tasks.classify import classify
from qkv.tasks.search_pictures import search_pictures

LABELS = ["a dog", "a cat"]


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG by hand; the size need not be that of its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
NO_PICTURES = {
    "svg": SVG,
    "html": b"<!DOCTYPE html><html><img src=x onerror=alert(1)></html>",
    "ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    "fits": b"SIMPLE  =                    T / FITS".ljust(2880),
    "gif": saved(noise(), "GIF"),
    "bmp": saved(noise(), "BMP"),
    "tiff": saved(noise(), "TIFF"),
    "pdf": b"%PDF-1.7\n",
    "text": b"not a picture",
    "empty": b"",
    "wave": b"RIFF\x24\0\0\0WAVEfmt ",
}
BROKEN = {
    "truncated png": saved(noise())[:-500],
    "truncated jpeg": saved(noise(), "JPEG")[:-100],
    "truncated webp": saved(noise(), "WEBP", lossless=True)[:-500],
    "png head": b"\x89PNG\r\n\x1a\n",
    "jpeg head": b"\xff\xd8\xff\xe0",
    "webp head": b"RIFF\x10\0\0\0WEBPVP8 ",
    "0 wide": png(0, 5),
    "0 high": png(5, 0),
    "no data": png(5, 5),
    "wrong checksum": saved(noise()).replace(b"IDAT", b"IDAX", 1),
    "noise": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
    "jpeg of noise": b"\xff\xd8\xff" + np.random.default_rng(1).bytes(5000),
    "bomb of text": saved(noise()).replace(b"IDAT", b"IDAT", 1)[:33]
    + struct.pack(">I", 60) + b"zTXt" + b"k\0\0" + zlib.compress(b"\0" * 40_000)[:57] + b"\0\0\0\0",
}  # fmt: skip


@pytest.mark.parametrize("name", [*NO_PICTURES, *BROKEN])
def test_what_is_no_picture_is_one_line(name, tmp_path, tiny_clip):
    data = NO_PICTURES.get(name, BROKEN.get(name))
    file = tmp_path / "photo.png"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        classify(file, LABELS, model=tiny_clip)
    message = str(caught.value)
    assert message.startswith(f"cannot read {file}: it")
    assert "\n" not in message
    assert len(message) < 400
    if name in NO_PICTURES:
        assert message.endswith("it is not a PNG, JPEG or WebP picture")
    else:
        assert "data is broken: " in message


def test_none_of_them_ends_a_search(tmp_path, tiny_clip, home):
    place = tmp_path / "pictures"
    place.mkdir()
    for number, data in enumerate([*NO_PICTURES.values(), *BROKEN.values()]):
        (place / f"{number:02}.jpg").write_bytes(data)
    os.mkfifo(place / "pipe.png")
    (place / "link.png").symlink_to("/etc/passwd")
    (place / "loop.png").symlink_to("loop.png")
    noise().save(place / "good.png")
    found = search_pictures("a dog", place, model=tiny_clip)
    assert [hit.file.name for hit in found.hits] == ["good.png"]
    assert len(found.skipped) == len(NO_PICTURES) + len(BROKEN) + 3
    reasons = {one.file.name: one.reason for one in found.skipped}
    assert reasons["pipe.png"] == "it is not a regular file"
    assert reasons["link.png"] == reasons["loop.png"] == "it is a link; search what it leads to"


@pytest.mark.parametrize("sides", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (100_000, 1_000)])
def test_pixels_are_counted_before_they_are_decoded(sides, monkeypatch):
    """A few hundred bytes that would become gigabytes."""
    bomb = png(*sides, colour=0, data=b"\0" * 100_000)
    assert len(bomb) < 1000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it is decoded"))
    with pytest.raises(InputError, match=r"pixels; at most 80 million are read"):
        decode(bomb)


def test_many_pixels_are_read_without_a_warning(monkeypatch):
    """Pillow would warn by a limit of its own."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(saved(noise(90, 90))).image.size == (90, 90)


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_FILE", 100)
    noise().save(tmp_path / "a.png")
    with pytest.raises(InputError, match="it has more than 0 MiB"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_edge_sizes_have_a_result(size, kind, tmp_path, tiny_clip):
    (tmp_path / "a").write_bytes(saved(Image.new("RGB", size, "red"), kind))
    found = classify(tmp_path / "a", LABELS, model=tiny_clip)
    assert sum(one.probability for one in found.labels) == pytest.approx(1)


def near(image: Image.Image, other: Image.Image, most: float = 1.0) -> bool:
    assert image.mode == other.mode == "RGB"
    assert image.size == other.size
    return float(abs(np.asarray(image, int) - np.asarray(other, int)).mean()) <= most


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_modes_become_rgb(mode):
    image = noise(mode=mode)
    assert near(decode(saved(image)).image, image.convert("RGB"))


def test_sixteen_bits():
    """Grey of 16 bits is not clipped to white; colour of 16 bits is that of its upper 8."""
    grey = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    found = np.asarray(decode(saved(Image.fromarray(grey))).image)
    assert abs(found[..., 0].astype(int) - (grey >> 8)).max() <= 1
    colours = np.array([[0, 32768, 65535], [257, 1000, 60000]], ">u2")
    rows = b"\0" + colours.tobytes()
    found = np.asarray(decode(png(2, 1, depth=16, data=rows)).image)
    assert abs(found[0].astype(int) - (colours.astype(int) >> 8)).max() <= 1


def test_cmyk():
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    found = decode(saved(image.convert("CMYK"), "JPEG", quality=95)).image
    assert near(found, image, most=4)


def test_transparent_is_white():
    image = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    assert decode(saved(image)).image.getpixel((4, 4)) == (255, 255, 255)
    assert decode(saved(image, "WEBP", lossless=True)).image.getpixel((4, 4)) == (255, 255, 255)
    half = Image.new("LA", (9, 9), (0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    table = Image.new("P", (9, 9))
    table.putpalette([10, 20, 30])
    assert decode(saved(table, transparency=0)).image.getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(Image.new("RGB", (9, 9)), transparency=(0, 0, 0))).image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(turn, kind):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))
    upright.paste("blue", (16, 8, 32, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    assert near(decode(saved(stored, kind, exif=exif, **options)).image, upright, most=3)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 100, b"x"])
def test_a_broken_exif_breaks_no_picture(exif, tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(noise(), "JPEG", exif=exif))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own are the library user's; the command line leaves them away
        assert open_picture(tmp_path / "a.jpg").image.size == (40, 30)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_looked_at(kind, tmp_path, tiny_clip, home, steps):
    frames = [Image.new("RGB", (16, 16), (i % 256, 7, 9)) for i in range(300)]
    short, data = (
        saved(frames[0], kind, save_all=True, append_images=frames[1:count], lossless=True) for count in (3, 300)
    )
    with steps() as few:
        decode(short)
    with steps() as taken:
        opened = decode(data)
    assert taken.count < few.count + 300 * 50  # a chunk of PNG is walked over; to decode it would take hundreds
    assert opened.animated
    assert opened.image.getpixel((3, 3)) == (0, 7, 9)
    (tmp_path / "a.webp").write_bytes(data)
    assert "only its first frame" in classify(tmp_path / "a.webp", LABELS, model=tiny_clip).warnings[0]
    assert "1 pictures are animated" in search_pictures("a dog", tmp_path / "a.webp", model=tiny_clip).warnings[0]


def test_names_do_not_matter(tmp_path):
    for name, kind in (("a.png", "JPEG"), ("b.jpg", "WEBP"), ("c.txt", "PNG"), ("d", "JPEG")):
        (tmp_path / name).write_bytes(saved(noise(), kind))
    (tmp_path / "e.txt").write_text("text")
    assert list(find_pictures(tmp_path)) == [PictureFile(tmp_path / name) for name in ("a.png", "b.jpg", "c.txt", "d")]


@pytest.mark.parametrize("path", ["none.png", "a\0b", "/dev/zero", ".", "x" * 5000])
def test_paths_that_cannot_be(path):
    with pytest.raises(InputError, match="cannot read") as caught:
        open_picture(path)
    assert len(str(caught.value)) < 300


def test_a_hostile_decoder_error_is_one_line(monkeypatch, tmp_path):
    def fail(self: object) -> None:
        raise KeyError("deep\ninside")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    Path(tmp_path, "a.png").write_bytes(saved(noise()))
    with pytest.raises(InputError, match="its PNG data is broken: 'deep"):
        open_picture(tmp_path / "a.png")
