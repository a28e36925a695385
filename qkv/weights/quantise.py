"""Our own weight-only quantisers: float matrices -> blocks of 32 weights in 8 or 4 bits, in GGUF's formats.

    Q8_0  scale * int8             34 bytes for 32 weights
    Q4_0  scale * (0 .. 15 - 8)    18
    Q4_1  scale * (0 .. 15) + min  20

Rounding to the range of a block is where formats begin; here the scale (and min) of 4 bits is then fitted to the
rounded weights by least squares, a few times over, which takes an eighth off the squared error of Q4_1. Left out:
calibration data (GPTQ, AWQ), which is worth more at 3 bits than at 4. Numpy only. `quantised.py` reads what is made.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qkv.errors import ConfigError, InputError, unknown
from qkv.weights.quantised import KINDS, Blocks, Floats, dequantise

WIDTH = 32  # weights a block, of all three
ROUNDS = 4  # of fitting
_MOST = float(np.finfo(np.float16).max)
_STEP = 1 << 14  # blocks at a time, so that little lies beside the matrix

Halves = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]


def blocks(numbers: npt.NDArray[np.float32] | npt.NDArray[np.float16]) -> Blocks:
    """An array of float32 or float16 as plain blocks, F32 or F16, not copied if it is contiguous."""
    kind = {"float32": "F32", "float16": "F16"}.get(numbers.dtype.name)
    if kind is None:
        raise InputError(f"numbers are {numbers.dtype}; blocks are made of float32 or float16")
    return Blocks(kind, numbers.shape, np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))


def quantise(numbers: Floats, kind: str) -> Blocks:
    """A matrix (rows, columns) as Q8_0, Q4_0 or Q4_1. InputError if its columns are no multiple of 32 or if it holds
    what is not finite or not within half precision's range; ConfigError for another kind."""
    if kind not in _QUANTISERS:
        raise ConfigError(unknown("quantised kind", kind, _QUANTISERS))
    if numbers.ndim != 2 or numbers.shape[1] % WIDTH:
        raise InputError(f"a matrix of shape {numbers.shape} has no whole blocks; its columns must be a multiple of 32")
    all_blocks = numbers.reshape(-1, WIDTH)
    data = np.empty((len(all_blocks), KINDS[kind].bytes), np.uint8)
    for start in range(0, len(all_blocks), _STEP):
        part = all_blocks[start : start + _STEP].astype(np.float32)
        if not np.abs(part).max(initial=0) < _MOST:
            raise InputError("a weight is not finite, or too large for blocks with half-precision scales")
        data[start : start + _STEP] = _QUANTISERS[kind](part)
    return Blocks(kind, numbers.shape, data.reshape(-1))


def requantise(weights: Mapping[str, Blocks], kind: str) -> dict[str, Blocks]:
    """`weights` with all matrices that have whole blocks as `kind`, one at a time."""
    chosen = {name for name, b in weights.items() if len(b.shape) == 2 and b.shape[1] % WIDTH == 0}
    return {name: quantise(dequantise(b), kind) if name in chosen else b for name, b in weights.items()}


def _q8_0(x: Floats) -> Bytes:
    scale = _halves(np.abs(x).max(axis=1, keepdims=True) / 127)
    return np.hstack((scale.view(np.uint8), _steps(x, scale, -127, 127).astype(np.int8).view(np.uint8)))


def _q4_0(x: Floats) -> Bytes:
    """The number of the largest size becomes -8, as the format expects; only then are there 16 steps."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    best = scale = _halves(largest / -8)
    least = np.full((len(x), 1), np.inf, np.float32)
    for _ in range(ROUNDS):
        whole = _steps(x, scale, -8, 7)
        best, least = _better(x, least, best, scale, whole * scale)
        scale = _halves(_ratio((whole * x).sum(1, keepdims=True), (whole * whole).sum(1, keepdims=True)))
    whole = _steps(x, best, -8, 7)
    return np.hstack((best.view(np.uint8), _pair(whole + 8)))


def _q4_1(x: Floats) -> Bytes:
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    best = fit = _halves(np.hstack(((high - low) / 15, low)))  # scale, min
    least = np.full((len(x), 1), np.inf, np.float32)
    middle = x.mean(axis=1, keepdims=True)
    for _ in range(ROUNDS):
        scale, low = fit[:, :1].astype(np.float32), fit[:, 1:].astype(np.float32)
        whole = _steps(x - low, scale, 0, 15)
        best, least = _better(x, least, best, fit, whole * scale + low)
        spread = whole - whole.mean(axis=1, keepdims=True)
        scale = _ratio((spread * x).sum(1, keepdims=True), (spread * spread).sum(1, keepdims=True))
        fit = _halves(np.hstack((scale, middle - scale * whole.mean(axis=1, keepdims=True))))
    whole = _steps(x - best[:, 1:].astype(np.float32), best[:, :1], 0, 15)
    return np.hstack((best.view(np.uint8), _pair(whole)))


_QUANTISERS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}


def _halves(x: npt.NDArray[np.floating[Any]]) -> Halves:
    return np.ascontiguousarray(np.clip(x, -_MOST, _MOST).astype(np.float16))


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _steps(x: Floats, scale: Halves | Floats, least: int, most: int) -> Floats:
    """x in whole multiples of the scale that is stored, which is not quite the one that was computed."""
    wide = np.broadcast_to(scale.astype(np.float32), x.shape)
    return np.clip(np.rint(_ratio(x, wide)), least, most)


def _better(x: Floats, least: Floats, best: Halves, fit: Halves, made: Floats) -> tuple[Halves, Floats]:
    """Block by block the fit with the smaller squared error so far, and that error."""
    error = np.square(x - made).sum(axis=1, keepdims=True)
    return np.where(error < least, fit, best), np.minimum(error, least)


def _pair(whole: Floats) -> Bytes:
    """32 numbers of 4 bits as 16 bytes: the first half of a block in the low bits."""
    four = whole.astype(np.uint8)
    return four[:, :16] | four[:, 16:] << np.uint8(4)
