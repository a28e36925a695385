"""safetensors files: read by a bounded, strict reader into memory-mapped tensors, written in one atomic step.

A file is the length N of its header (8 bytes, little-endian), N bytes of JSON that give every tensor's dtype,
shape and place, and the bytes themselves. Files come from strangers, so a declared number is believed only once
it agrees with the file's size, and the header is bounded before it is parsed.

Left out: pickles (`.bin`, `.pt`, `.ckpt`), which can run code, and dtypes that torch stores as packed bits.
Format: the safetensors README, section Format.
"""

import itertools
import json
import math
import mmap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from qkv.atomic import replacing
from qkv.errors import CheckpointError, shorten
from qkv.untrusted import map_regular, open_regular

# In the order in which the safetensors package lays tensors out, so that equal tensors give it and us equal bytes.
DTYPES = {
    **{"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64},
    **{"F32": torch.float32, "U32": torch.uint32, "I32": torch.int32},
    **{"BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16},
    **{"F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ORDER = {code: rank for rank, code in enumerate(DTYPES)}

# The format allows 100 MB; published headers stay below 1 MiB. With these bounds the worst of files is refused
# within about 0.1 s and 35 MiB.
MAX_HEADER = 2 << 20
MAX_TENSORS = 1 << 14
MAX_DIMS = 16
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


# The mapping behind a storage, by the address of its first byte; `release` needs it. Entries die with the tensors.
_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


def open_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the file's order, memory-mapped: a page is read when it is first touched.

    Writing into a tensor changes this process's copy, never the file. The mapping lives as long as a tensor of it.
    Raises CheckpointError for a file that is missing, no regular file, a pickle, broken, or that changes meanwhile.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(pickle_refused(path))
    mapped, (start, entries) = map_regular(path, partial(_read_header, path), mmap.ACCESS_COPY)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    _mapped[whole.data_ptr()] = mapped
    return {entry.name: _view(whole, start, entry) for entry in entries}


def _view(whole: Tensor, start: int, entry: _Entry) -> Tensor:
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    data = whole[start + entry.begin : start + entry.end]
    if (start + entry.begin) % entry.dtype.itemsize:  # old writers did not align; torch has no views across words
        data = data.clone()
    return data.view(entry.dtype).view(entry.shape)


def release(tensor: Tensor) -> None:
    """Drop the pages of a tensor from `open_tensors` that this process has read; they are read again if touched.

    For whoever has just made a converted copy and keeps that. Nothing happens to a tensor that is not mapped.
    """
    mapped = _mapped.get(tensor.untyped_storage().data_ptr())
    if mapped is None or tensor.numel() == 0:
        return
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin = tensor.storage_offset() * tensor.itemsize
    # Inward to whole pages: a neighbour on the first or the last page may have been written to.
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + span * tensor.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, for a user who asks for it: PyTorch's restricted unpickler builds them and runs nothing.

    Of Real-ESRGAN's files those of "params_ema", else of "params". CheckpointError if it is anything else.
    """
    with open_regular(path) as file:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of hostile bytes it raises whatever it pleases
            raise CheckpointError(f"{path} is no pickle of tensors alone: {shorten(str(error))}") from error
    if isinstance(found, dict):
        found = found.get("params_ema", found.get("params", found))
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise CheckpointError(f"{path} does not hold tensors by their names")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def pickle_refused(path: Path) -> str:
    """The message for a file of weights that we refuse to open."""
    return f"{path} is a pickle, which can run code when it is read; use or convert the model to .safetensors"


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[int, list[_Entry]]:
    """Where the data starts in the file, and the tensors in the order of their places there."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path} is not a valid safetensors file: {reason}")

    if size < 8:
        raise refuse(f"{size} bytes, too short for a header")
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise refuse(f"a header of {length} bytes in a file of {size}")
    if length > MAX_HEADER:
        raise refuse(f"a header of {length} bytes; at most {MAX_HEADER} are read")
    header = file.read(length)
    if len(header) != length:
        raise refuse("it became shorter while it was read")
    try:
        entries = _parse_header(header)
        _check_places(entries, size - 8 - length)
    except ValueError as error:
        raise refuse(str(error)) from error
    return 8 + length, entries


def _parse_header(header: bytes) -> list[_Entry]:
    """The entries by place. ValueError says what is wrong, and where."""
    if header[:1] != b"{":
        raise ValueError(f"the header does not begin with '{{' but {header[:1]!r}")
    if header.count(b"[") > 4 * MAX_TENSORS:  # a tensor has two; empty lists are what takes most memory for its length
        raise ValueError(f"more lists than {MAX_TENSORS} tensors have")
    objects = itertools.count(-2)  # the header's own, and the notes

    def unique_few(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if next(objects) >= MAX_TENSORS:
            raise ValueError(f"more than {MAX_TENSORS} tensors")
        return unique(pairs)

    try:
        found = json.loads(header.decode(), object_pairs_hook=unique_few)
    except RecursionError:
        raise ValueError("the header nests too deep") from None
    notes = found.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("__metadata__ does not hold texts alone")
    return sorted((_entry(*item) for item in found.items()), key=lambda entry: (entry.begin, entry.end))


def _entry(name: str, value: Any) -> _Entry:
    name.encode()  # ValueError for half a surrogate pair, which no text may hold
    match value:
        case {"dtype": str(code), "shape": list(sizes), "data_offsets": [begin, end]} if len(value) == 3:
            numbers = [*sizes, begin, end]
        case _:
            numbers = [-1]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(numbers) > MAX_DIMS + 2:
        given = shorten(repr(value), 84)
        raise ValueError(f"no tensor's dtype, shape and data_offsets under {shorten(name)!r}: {given}")
    if (dtype := DTYPES.get(code)) is None:
        raise ValueError(f"tensor {shorten(name)!r} is of dtype {shorten(code)}, not of {', '.join(DTYPES)}")
    shape = tuple(sizes)
    length = math.prod(shape) * dtype.itemsize
    # An empty tensor's other sizes count too: torch multiplies them for the strides.
    if length >= 1 << 63 or (length == 0 and math.prod(size or 1 for size in shape) * dtype.itemsize >= 1 << 63):
        raise ValueError(f"tensor {shorten(name)!r} of shape {shape} is beyond any memory")
    if length != end - begin:
        raise ValueError(f"tensor {shorten(name)!r} of {dtype} {shape} cannot be bytes {begin} to {end}")
    return _Entry(name, dtype, shape, begin, end)


def _check_places(entries: list[_Entry], size: int) -> None:
    """Every byte belongs to exactly one tensor, so the file hides nothing and no tensor reaches past its end."""
    position = 0
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise ValueError(f"tensor {shorten(entry.name)!r} {kind}: it begins at {entry.begin}, not {position}")
        position = entry.end
    if position != size:
        raise ValueError(f"its tensors end at byte {position} of {size} bytes of data")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` for JSON: a key given twice is a ValueError, as readers differ in which one they believe."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shorten(key)!r} is there twice")
        found[key] = value
    return found


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; equal tensors give equal bytes. OutputError if it cannot be, and nothing is left.

    `metadata` is {"format": "pt"} by default: transformers refuses files without it. Tensors may be on any device
    and of any strides; one at a time is copied if it must be.
    """
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER[_CODES[item[1].dtype]], item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, so that every tensor can be mapped
    with replacing(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
