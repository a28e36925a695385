"""PNG files as a row of chunks: the texts among them, wherever they stand, and the picture without what is not it.

A chunk is its length, its kind, its bytes and their checksum (ISO 15948, section 5.3). Texts (sections 11.3.4.2 to
11.3.4.4) may stand before the pixels or behind them, and a colour profile or an editor's history may be larger than the
picture: neither makes a picture bad, and only what is asked for is unpacked, to a bound.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1 << 17  # a picture of 64 MiB in the usual pieces of 8 KiB has 8,192
MAX_XMP = 16 << 20  # bytes of a description, unpacked
_XMP = "XML:com.adobe.xmp"  # which may say how the picture is turned
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


class PngChunk(NamedTuple):
    """`data` is what it holds, `whole` also what is around that; `sound`: the checksum is right."""

    kind: bytes
    data: memoryview
    whole: memoryview

    @property
    def sound(self) -> bool:
        return zlib.crc32(self.whole[4:-4]) == int.from_bytes(self.whole[-4:])


def chunks(data: bytes) -> Iterator[PngChunk]:
    """The chunks of a PNG file, those behind its end too, as far as they are whole."""
    view, place = memoryview(data), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if place + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            return
        yield PngChunk(kind, view[place + 8 : end - 4], view[place:end])
        place = end


def texts(data: bytes, keywords: Iterable[str] | None, limit: int) -> dict[str, str]:
    """The texts of those keywords, None: of all but XMP; the last of each. ValueError if one is broken or has more
    than `limit` bytes."""
    wanted, found = None if keywords is None else set(keywords), {}
    for chunk in chunks(data):
        keyword, start = _keyword(chunk)
        if keyword in wanted if wanted is not None else keyword not in ("", _XMP):
            if not chunk.sound:
                raise ValueError(f"the checksum of its text {keyword!r} is wrong")
            found[keyword] = _text(chunk.kind, bytes(chunk.data[start:]), limit)
    return found


def has(data: bytes, keywords: Mapping[str, str]) -> str | None:
    """The text of the first of `keywords` that the file has."""
    return next((keywords[name] for name, _ in map(_keyword, chunks(data)) if name in keywords), None)


def _keyword(chunk: PngChunk) -> tuple[str, int]:
    """The keyword of a text, and where what is behind it starts; "" for any other chunk."""
    if chunk.kind not in _TEXTS:
        return "", 0
    head = bytes(chunk.data[:80])  # a keyword has 79 bytes at most
    return head.partition(b"\0")[0].decode("latin-1"), head.find(b"\0") + 1


def _text(kind: bytes, data: bytes, limit: int) -> str:
    """The text behind the keyword. ValueError."""
    if kind == b"tEXt":
        packed = False
    elif kind == b"zTXt":
        packed, data = True, data[1:]  # the method, of which there is one
    else:
        packed, (_, _, data) = data[:1] == b"\1", data[2:].partition(b"\0")  # the language
        data = data.partition(b"\0")[2]  # the keyword in that language
    if packed:
        data = _unpacked(data, limit + 1)
    if len(data) > limit:
        raise ValueError(f"it holds a text of more than {limit >> 20} MiB")
    return data.decode("utf-8" if kind == b"iTXt" else "latin-1")


def _unpacked(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"its text cannot be unpacked: {error}") from error


def lean(data: bytes) -> bytes:
    """The same picture without colour profiles and texts, but for the one that may say how it is turned."""
    parts, place, changed = [data[: len(SIGNATURE)]], len(SIGNATURE), False
    for chunk in chunks(data):
        place += len(chunk.whole)
        if chunk.kind in (*_TEXTS, b"iCCP"):
            changed = True
            parts.append(_turning(chunk))
        else:
            parts.append(chunk.whole)  # type: ignore[arg-type]
    return b"".join([*parts, memoryview(data)[place:]]) if changed else data


def _turning(chunk: PngChunk) -> bytes:
    """An XMP text, unpacked, as a chunk; nothing for another, or a broken one."""
    keyword, start = _keyword(chunk)
    if keyword != _XMP or chunk.kind != b"iTXt" or not chunk.sound:
        return b""
    try:
        text = _text(b"iTXt", bytes(chunk.data[start:]), MAX_XMP).encode()
    except ValueError:
        return b""
    body = b"iTXt" + keyword.encode() + b"\0\0\0\0\0" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
