"""GGUF files, the format of llama.cpp: metadata and quantised tensors in one file, read by a bounded, strict reader.

    magic, version, two counts | metadata: key, type, value ... | tensors: name, sizes, kind, place ... | their bytes

Files come from strangers, so a declared length is believed only once it fits into what is left of the file, and the
header is read as a stream: nothing of a declared size is ever allocated, and what is not kept costs nothing. Tensors
are memory-mapped. Versions 2 and 3, little-endian.

A model that llama.cpp has split (NAME-00001-of-00003.gguf) is read from all its parts, by the metadata of the first.
Left out: writing, arrays of arrays (which nobody writes), and big-endian files. Numpy only: a chat that runs on these
blocks never imports torch. Source: the GGUF specification in the ggml repository.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import numpy as np

from qkv.errors import CheckpointError, shorten
from qkv.registry import parts
from qkv.untrusted import map_regular
from qkv.weights.quantised import KINDS, Blocks

# Published headers have 2 to 16 MiB, 20 to 60 keys, up to 1,200 tensors, arrays of up to 520,000 items.
MAX_HEADER = 32 << 20
MAX_KEYS = 1 << 12
MAX_TENSORS = 1 << 14
MAX_ITEMS = 1 << 20  # of one array
MAX_ALIGNMENT = 1 << 16
MAX_NAME = 1 << 10  # characters of a key or a tensor's name

_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
_STRING, _ARRAY = 8, 9

# By their numbers in the file. Those that are not in KINDS have a name here so that a refusal can say it.
_KINDS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0"},
    **{39: "MXFP4"},
}


@dataclass(frozen=True, eq=False)
class GGUF:
    """An open file. Arrays of numbers in `metadata` are numpy's, arrays of texts are lists. The mapping behind
    `tensors` lives as long as one of them."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, Blocks]


class _TensorInfo(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_gguf(path: str | Path) -> GGUF:
    """The metadata and the memory-mapped tensors of a GGUF file, of all its parts if it is split.

    CheckpointError for a file that is missing, no regular file, broken, of a kind that is not read, or that changes
    meanwhile.
    """
    opened = _open(Path(path))
    count = opened.metadata.get("split.count", 1)
    return opened if count == 1 else _joined(opened, count)


def _joined(part: GGUF, count: object) -> GGUF:
    """All parts of the model that `part` belongs to."""
    path, names = part.path, parts(part.path.name)
    if count != len(names):
        name = f"NAME-00001-of-{shorten(str(count)):0>5}.gguf"
        raise CheckpointError(f"{path} is a part of a model that is split in {count}; call its parts {name} and so on")
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        some = ", ".join(missing[:3])
        raise CheckpointError(f"{path} is split in {count} parts, of which {len(missing)} are not beside it: {some}")
    found = [part if name == path.name else _open(path.with_name(name)) for name in names]
    tensors: dict[str, Blocks] = {}
    for number, each in enumerate(found):
        if (each.metadata.get("split.count"), each.metadata.get("split.no", number)) != (count, number):
            raise CheckpointError(f"{each.path} is not part {number + 1} of {count}; get the parts again")
        if double := tensors.keys() & each.tensors.keys():
            raise CheckpointError(f"{each.path}: tensor {shorten(min(double))!r} is in another part too")
        tensors |= each.tensors
    if found[0].metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CheckpointError(f"{path}: its parts hold {len(tensors)} tensors, not as many as they say; get them again")
    return GGUF(found[0].path, found[0].metadata, MappingProxyType(tensors))


def _open(path: Path) -> GGUF:
    def read(file: BinaryIO, size: int) -> tuple[dict[str, object], list[_TensorInfo], int]:
        try:
            metadata, entries, start = _read_header(_Reader(file, size))
            _check_places(entries, size - start)
        except ValueError as error:
            raise CheckpointError(f"{path} is not a GGUF file that can be read: {error}") from error
        return metadata, entries, start

    mapped, (metadata, entries, start) = map_regular(path, read, mmap.ACCESS_READ)
    whole = np.frombuffer(mapped, np.uint8)
    tensors = {e.name: Blocks(e.kind, e.shape, whole[start + e.begin : start + e.end]) for e in entries}
    return GGUF(path, MappingProxyType(metadata), MappingProxyType(tensors))


class _Reader:
    """A header from its start to its end. ValueError for whatever is longer than what is left."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._read = file.read
        self.position, self.limit = 0, min(size, MAX_HEADER)

    def bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > self.limit:
            reason = "the file ends" if self.limit < MAX_HEADER else f"the header goes on beyond {MAX_HEADER} bytes"
            raise ValueError(f"{count} bytes are announced at byte {self.position}, but {reason} at {self.limit}")
        data = self._read(count)
        if len(data) != count:
            raise ValueError(f"it was cut at byte {self.position} while it was read")
        self.position = end
        return data

    def number(self, kind: str) -> int:
        """A whole number: "<I" or "<Q"."""
        found: int = struct.unpack(kind, self.bytes(struct.calcsize(kind)))[0]
        return found

    def text(self) -> str:
        """A length and UTF-8. ValueError (UnicodeDecodeError) if it is anything else."""
        return self.bytes(int.from_bytes(self.bytes(8), "little")).decode()

    def name(self) -> str:
        name = self.text()
        if len(name) > MAX_NAME:
            raise ValueError(f"the name {shorten(name)!r} has {len(name)} characters; at most {MAX_NAME} are read")
        return name


def _read_header(reader: _Reader) -> tuple[dict[str, object], list[_TensorInfo], int]:
    """Metadata, tensors and where their bytes start. ValueError says what is wrong."""
    if (magic := reader.bytes(4)) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, not with b'GGUF'")
    version = reader.number("<I")
    if version & 0xFFFF == 0:
        raise ValueError("it is big-endian; convert the model to little-endian")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}; versions 2 and 3 are read: convert the model again")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    if keys > MAX_KEYS or tensors > MAX_TENSORS:
        raise ValueError(f"{keys} keys and {tensors} tensors; at most {MAX_KEYS} and {MAX_TENSORS} are read")
    metadata: dict[str, object] = {}
    for _ in range(keys):
        key = reader.name()
        if key in metadata:
            raise ValueError(f"key {shorten(key)!r} is there twice")
        metadata[key] = _value(reader, key)
    entries = {}
    alignment = _alignment(metadata)
    for _ in range(tensors):
        entry = _entry(reader)
        if entry.name in entries:
            raise ValueError(f"tensor {shorten(entry.name)!r} is there twice")
        if entry.begin % alignment:
            raise ValueError(f"tensor {shorten(entry.name)!r} is not aligned to {alignment} bytes")
        entries[entry.name] = entry
    start = -(-reader.position // alignment) * alignment
    return metadata, list(entries.values()), start


def _alignment(metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        given = shorten(repr(alignment))
        raise ValueError(f"general.alignment={given} must be a power of two, at most {MAX_ALIGNMENT}")
    return alignment


def _value(reader: _Reader, key: str) -> object:
    kind = reader.number("<I")
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array(reader, key)
    return _numbers(reader, kind, 1, key)[0].item()


def _array(reader: _Reader, key: str) -> object:
    kind, count = reader.number("<I"), reader.number("<Q")
    if count > MAX_ITEMS:
        raise ValueError(f"{shorten(key)!r} has {count} items; at most {MAX_ITEMS} are read")
    if kind == _ARRAY:
        raise ValueError(f"{shorten(key)!r} is an array of arrays, which is not read")
    if kind != _STRING:
        return _numbers(reader, kind, count, key)
    if 8 * count > reader.limit - reader.position:
        raise ValueError(f"{shorten(key)!r} announces {count} texts where the file has no room for them")
    text = reader.text
    return [text() for _ in range(count)]


def _numbers(reader: _Reader, kind: int, count: int, key: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    if kind not in _NUMBERS:
        raise ValueError(f"{shorten(key)!r} is of the unknown type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    data = reader.bytes(count * dtype.itemsize)
    if dtype == np.bool_ and data.strip(b"\0\1"):
        raise ValueError(f"{shorten(key)!r} holds a truth value that is neither 0 nor 1")
    return np.frombuffer(data, dtype)


def _entry(reader: _Reader) -> _TensorInfo:
    name = reader.name()
    dimensions = reader.number("<I")
    if not 1 <= dimensions <= 4:
        raise ValueError(f"tensor {shorten(name)!r} has {dimensions} dimensions; it must have 1 to 4")
    sizes = struct.unpack(f"<{dimensions}Q", reader.bytes(8 * dimensions))
    number, begin = reader.number("<I"), reader.number("<Q")
    kind = _KINDS.get(number, f"the unknown format {number}")
    if kind not in KINDS:
        raise ValueError(f"tensor {shorten(name)!r} is stored as {kind}; what is read is {', '.join(KINDS)}")
    block = KINDS[kind]
    if sizes[0] % block.numbers or 0 in sizes:
        raise ValueError(f"tensor {shorten(name)!r} has rows of {sizes[0]}, which {kind} cannot hold")
    length = math.prod(sizes) // block.numbers * block.bytes
    return _TensorInfo(name, kind, sizes[::-1], begin, begin + length)


def _check_places(entries: list[_TensorInfo], size: int) -> None:
    """No tensor reaches past the end or into another. Gaps are alignment, and hide nothing that is ever read."""
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        if entry.begin < position:
            raise ValueError(f"tensor {shorten(entry.name)!r} overlaps the one before it")
        if entry.end > size:
            raise ValueError(f"tensor {shorten(entry.name)!r} ends at byte {entry.end} of {max(size, 0)} bytes of data")
        position = entry.end
