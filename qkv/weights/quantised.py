"""The number formats of GGUF: blocks of a few numbers that share a scale, and plain floats as blocks of one.

A row of a matrix is a run of blocks, so rows can be picked and reordered without opening a block. `dequantise` gives
the float32 numbers that the blocks stand for, by the same operations in the same order as the format's reference.

Left out: the formats below 4 bits (Q2_K, Q3_K, IQ*, TQ*), which models of our sizes do not survive, and Q8_1 and Q8_K,
which are intermediate results and never stored. Source: the GGUF specification and ggml's description of its blocks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_STEP = 1 << 12  # blocks at a time: what lies between bytes and floats stays in the processor's cache


@dataclass(frozen=True, eq=False)
class Blocks:
    """A tensor as it is stored. `shape` has the outputs first, as everywhere here (the file has them last).

    `data` are its bytes, flat, read-only and usually memory-mapped.
    """

    kind: str
    shape: tuple[int, ...]
    data: Bytes

    @property
    def rows(self) -> Bytes:
        """The bytes as (rows, bytes of a row); a vector is one row."""
        return self.data.reshape(math.prod(self.shape[:-1]), -1)

    def take(self, rows: "Sequence[int] | npt.NDArray[np.int64] | slice") -> "Blocks":
        """Some rows of a matrix, or numbers of a vector, in this order: a copy, or a view for a slice."""
        data = self.rows if len(self.shape) > 1 else self.data.reshape(self.shape[0], -1)
        taken = data[rows]
        return Blocks(self.kind, (len(taken), *self.shape[1:]), taken.reshape(-1))


class Kind(NamedTuple):
    """A format: `bytes` hold `numbers` numbers; `open` turns blocks (N, bytes) into (N, numbers)."""

    numbers: int
    bytes: int
    open: Callable[[Bytes], Floats]


def dequantise(blocks: Blocks) -> Floats:
    """The numbers of a tensor, in its shape; a new array."""
    kind = KINDS[blocks.kind]
    data = blocks.data.reshape(-1, kind.bytes)
    numbers = np.empty((len(data), kind.numbers), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a broken scale is NaN here, and found by who looks for NaN
        for start in range(0, len(data), _STEP):
            numbers[start : start + _STEP] = kind.open(data[start : start + _STEP])
    return numbers.reshape(blocks.shape)


def _as(kind: Any, data: Bytes) -> Any:
    """Bytes (N, n) as little-endian numbers of another width, wherever they lie."""
    return np.ascontiguousarray(data).view(np.dtype(kind).newbyteorder("<"))


def _scale(data: Bytes) -> Floats:
    """Two bytes (N, 2), a float16, as (N, 1)."""
    return _as(np.float16, data).astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """(..., n) -> (..., 2n): first all the low halves, then all the high ones."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def _f32(data: Bytes) -> Floats:
    return _as(np.float32, data)


def _f16(data: Bytes) -> Floats:
    return _as(np.float16, data).astype(np.float32)


def _bf16(data: Bytes) -> Floats:
    return (_as(np.uint16, data).astype(np.uint32) << 16).view(np.float32)


def _q8_0(data: Bytes) -> Floats:
    return _as(np.int8, data[:, 2:]) * _scale(data[:, :2])


def _q4_0(data: Bytes) -> Floats:
    return (_nibbles(data[:, 2:]).view(np.int8) - np.int8(8)) * _scale(data[:, :2])


def _q4_1(data: Bytes) -> Floats:
    return _nibbles(data[:, 4:]) * _scale(data[:, :2]) + _scale(data[:, 2:4])


def _fifth_bits(data: Bytes) -> Bytes:
    """One bit a number, (N, 4) -> (N, 32), each at the place above a nibble."""
    return np.unpackbits(data, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return (numbers.view(np.int8) - np.int8(16)) * _scale(data[:, :2])


def _q5_1(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return numbers * _scale(data[:, :2]) + _scale(data[:, 2:4])


def _six_bit_pairs(data: Bytes) -> tuple[Bytes, Bytes]:
    """The scales and minima of 8 groups, 6 bits each: (N, 12) -> two of (N, 8). The first four of either stand in the
    low bits of bytes 0 to 7, whose two high bits top up the nibbles of bytes 8 to 11 to the last four."""
    scales, minima, last = data[:, 0:4], data[:, 4:8], data[:, 8:12]
    return (
        np.concatenate((scales & 63, (last & 15) | (scales >> 6 << 4)), axis=-1),
        np.concatenate((minima & 63, (last >> 4) | (minima >> 6 << 4)), axis=-1),
    )


def _groups(data: Bytes, numbers: Bytes) -> Floats:
    """Q4_K and Q5_K: 8 groups (N, 8, 32), each with its own scale and minimum."""
    scales, minima = _six_bit_pairs(data[:, 4:16])
    scale = _scale(data[:, :2]) * scales
    minimum = _scale(data[:, 2:4]) * minima
    opened: Floats = scale[:, :, None] * numbers - minimum[:, :, None]
    return opened.reshape(len(data), 256)


def _q4_k(data: Bytes) -> Floats:
    return _groups(data, _nibbles(data[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(data: Bytes) -> Floats:
    numbers = _nibbles(data[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    bit = np.arange(8, dtype=np.uint8)[:, None]  # group g's fifth bits are bit g of 32 bytes
    fifth: Bytes = data[:, None, 16:48] >> bit & np.uint8(1)
    return _groups(data, numbers | fifth << np.uint8(4))


def _q6_k(data: Bytes) -> Floats:
    low = _nibbles(data[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)  # a half: 64 bytes of low nibbles ...
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = data[:, 128:192].reshape(-1, 2, 1, 32) >> shift & 3  # ... and 32 bytes, two bits for each of 4 numbers
    numbers = (low | high << 4).view(np.int8) - np.int8(32)
    scale = _scale(data[:, 208:]) * _as(np.int8, data[:, 192:208])
    return (scale[:, :, None] * numbers.reshape(-1, 16, 16)).reshape(-1, 256)


KINDS = {
    "F32": Kind(1, 4, _f32),
    "F16": Kind(1, 2, _f16),
    "BF16": Kind(1, 2, _bf16),
    "Q4_0": Kind(32, 18, _q4_0),
    "Q4_1": Kind(32, 20, _q4_1),
    "Q5_0": Kind(32, 22, _q5_0),
    "Q5_1": Kind(32, 24, _q5_1),
    "Q8_0": Kind(32, 34, _q8_0),
    "Q4_K": Kind(256, 144, _q4_k),
    "Q5_K": Kind(256, 176, _q5_k),
    "Q6_K": Kind(256, 210, _q6_k),
}
