"""A decoder on the compiled kernels (`qkv/kernels`): packed weights, paged keys and values, a step as one call.

The same promise as every `Runner`: a row's bits depend on the tokens up to it alone. Numpy and ctypes only, so that a
chat on a GGUF file never waits for torch. What the kernels do not compute is a ConfigError at construction, what this
machine cannot compile a KernelError; callers then take `TorchRunner`. Left out on purpose: norms after the residual
(`norm_first=False`) and narrow embeddings, which one old decoder has, and number formats below 4 bits or of 5.
"""

import ctypes
import math
import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from qkv.core.stack_config import RotaryScaling
from qkv.engine.pool import free_memory, pool_bytes
from qkv.engine.runner import Chunk
from qkv.errors import CheckpointError, ConfigError, InputError
from qkv.kernels import library
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.quantised import KINDS, Blocks, dequantise

Floats = npt.NDArray[np.float32]

MAX_HEAD_DIM = 1024
MAX_PAGES = 1 << 24
MAX_THREADS = 64


class NativeRunner:
    """Runs the decoder of `config` with `weights` (by our names, as `read_decoder` gives them) on this machine's CPU.

    The weights are packed into the kernels' order, one tensor at a time; memory-mapped ones are given back to the
    system as they are done, so no more than one copy stays resident. The pool of pages takes `memory` bytes at most
    (None: a share of what is free), and those only as it is used. `threads`: one a processor that this process may use.
    ConfigError, KernelError, CheckpointError for tensors that are missing or do not fit.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, Blocks],
        *,
        memory: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._threads = _check_threads(min(_processors(), MAX_THREADS) if threads is None else threads)
        _check_config(config)
        _check_weights(config.tensors, weights)
        weights = _as_kernels_read(config, weights)
        matrices = {name: blocks.shape for name, blocks in weights.items() if len(blocks.shape) == 2}
        self._library = library.functions()
        self.config, self.vocab, self.context = config, config.vocab, config.context
        self.page = int(self._library.qkv_page())
        self.page_bytes = int(
            self._library.qkv_page_bytes(config.layers, config.kv_heads or config.heads, config.stack.head_width)
        )
        if memory is None:
            memory = pool_bytes(self.page_bytes, self.page, self.context, free_memory())
        self.pages = min(memory // self.page_bytes, MAX_PAGES)
        if self.pages < 1:
            raise ConfigError(f"memory={memory} bytes hold no page of keys and values; one takes {self.page_bytes}")
        self._lock, self._process = threading.Lock(), os.getpid()
        plan, kept = self._plan(weights, matrices, self._threads)
        self.weight_bytes = int(plan.weight_bytes)
        self._model = self._library.qkv_open(ctypes.byref(plan))
        del kept
        if not self._model:
            size = (plan.weight_bytes + self.pages * self.page_bytes) >> 20
            raise ConfigError(f"there is no room for {size} MiB of weights and pages; give less memory={memory}")
        for name in matrices:
            self._pack(name, weights[name])
        for name in weights.keys() - matrices.keys():
            self._vector(name, weights[name])

    def step(self, chunks: Sequence[Chunk]) -> list[Floats]:
        """Runner.step. InputError for ids, positions or tables that this model does not have."""
        if not chunks:
            return []
        if os.getpid() != self._process:  # the threads did not come along
            raise InputError("this model was loaded before the process forked; load it in the new process")
        lengths = [len(chunk.ids) for chunk in chunks]
        ids = self._numbers([i for chunk in chunks for i in chunk.ids], self.vocab, "a token id")
        tables = self._numbers([page for chunk in chunks for page in chunk.table], self.pages, "a page")
        begins = np.cumsum([0, *(len(chunk.table) for chunk in chunks)])
        for chunk, length in zip(chunks, lengths):
            stop = chunk.start + length
            if not 0 <= chunk.start < stop <= self.context:
                raise InputError(f"tokens {chunk.start} to {stop - 1} are not within the context of {self.context}")
            if stop > len(chunk.table) * self.page:
                raise InputError(f"{stop} tokens need more than the {len(chunk.table)} pages of their table")
            if not 0 <= chunk.wanted <= length:
                raise InputError(f"wanted={chunk.wanted} must be 0 to the chunk's {length} tokens")
        positions = np.concatenate([np.arange(c.start, c.start + n, dtype=np.int32) for c, n in zip(chunks, lengths)])
        starts = np.repeat(begins[:-1].astype(np.int32), lengths)
        wanted = np.concatenate([np.arange(n) >= n - c.wanted for c, n in zip(chunks, lengths)]).astype(np.uint8)
        logits = np.empty((int(wanted.sum()), self.vocab), np.float32)
        arrays = (ids, positions, tables, starts, wanted, logits)
        with self._lock:
            self._library.qkv_step(self._model, len(ids), *(array.ctypes.data for array in arrays))
        ends = np.cumsum([chunk.wanted for chunk in chunks])
        return [logits[end - chunk.wanted : end] for chunk, end in zip(chunks, ends) if chunk.wanted]

    def use(self, threads: int | None) -> None:
        """Runner.use."""
        count = self._threads if threads is None else _check_threads(threads)
        with self._lock:
            self._library.qkv_threads(self._model, count)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.qkv_close(self._model)

    @staticmethod
    def _numbers(values: list[int], limit: int, what: str) -> npt.NDArray[np.int32]:
        try:
            found = np.array(values)
            if len(found) and found.dtype.kind not in "iu":
                raise TypeError
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(f"{what} must be a whole number, 0 to {limit - 1}") from error
        if len(found) and not 0 <= found.min() <= found.max() < limit:
            wrong = found[(found < 0) | (found >= limit)][0]
            raise InputError(f"{what} is {wrong}; it must be 0 to {limit - 1}")
        return found.astype(np.int32)

    def _plan(
        self, weights: Mapping[str, Blocks], matrices: Mapping[str, tuple[int, ...]], threads: int
    ) -> tuple[library.Plan, list[npt.NDArray[np.generic]]]:
        """The plan, and the arrays that it points to."""
        stack, kept = self.config.stack, []

        def pointer(array: npt.NDArray[np.generic]) -> int:
            kept.append(array)
            return array.ctypes.data

        packed = (
            self._library.qkv_packed_bytes(library.KINDS.index(weights[name].kind), *weights[name].shape)
            for name in matrices
        )
        rotary = stack.position == "rotary"
        windows = [min(window or 1 << 30, 1 << 30) for window in stack.layer_windows]
        plan = library.Plan(
            vocab=self.config.vocab,
            context=self.config.context,
            dim=stack.dim,
            layers=stack.layers,
            heads=stack.heads,
            kv_heads=stack.kv_heads or stack.heads,
            head_dim=stack.head_width,
            ffn_dim=stack.ffn_dim,
            rms=stack.norm != "layer",
            activation=library.ACTIVATIONS.index(stack.activation),
            gated=stack.gated,
            parallel=stack.parallel,
            rotary_dim=stack.rotary_width if rotary else 0,
            pages=self.pages,
            threads=threads,
            norm_eps=stack.norm_eps,
            scale=stack.head_width**-0.5 if stack.scale is None else stack.scale,
            embed_scale=math.sqrt(stack.dim) if self.config.scaled else 1.0,
            score_cap=stack.score_cap or 0.0,
            logit_cap=self.config.logit_cap or 0.0,
            rates=pointer(rotary_rates(self.config)) if rotary else None,
            slopes=pointer(alibi_slopes(stack.heads)) if stack.position == "alibi" else None,
            windows=pointer(np.array(windows, np.int32)),
            weight_bytes=sum(packed),
        )
        return plan, kept

    def _pack(self, name: str, blocks: Blocks) -> None:
        layer, slot = _slot(name, library.MATRICES, library.GLOBAL_MATRICES)
        data = np.ascontiguousarray(blocks.data)
        kind = library.KINDS.index(blocks.kind)
        self._library.qkv_matrix(self._model, layer, slot, kind, *blocks.shape, data.ctypes.data)
        _give_back(blocks.data)

    def _vector(self, name: str, blocks: Blocks) -> None:
        layer, slot = _slot(name, library.VECTORS, library.GLOBAL_VECTORS)
        data = np.ascontiguousarray(dequantise(blocks), np.float32)
        if self.config.norm == "rms_unit_offset" and name.endswith("norm.weight"):
            data = data + np.float32(1)
        self._library.qkv_vector(self._model, layer, slot, data.size, data.ctypes.data)


def _check_threads(count: int) -> int:
    if not 0 < count <= MAX_THREADS:
        raise ConfigError(f"threads={count} is out of range; it must be 1 to {MAX_THREADS}")
    return count


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rotary_rates(config: DecoderConfig) -> Floats:
    """The angle that each pair of numbers turns a position: (R / 2,). RoFormer (2104.09864), section 3.2.2."""
    R = config.stack.rotary_width
    rates = np.float32(config.rotary_base) ** -(np.arange(0, R, 2, dtype=np.float32) / np.float32(R))
    return rates if config.rotary_scaling is None else _stretched(rates, config.rotary_scaling)


def _stretched(rates: Floats, s: RotaryScaling) -> Floats:
    turns = s.context * rates / np.float32(2 * math.pi)
    kept = np.clip((turns - s.low) / (s.high - s.low), 0, 1)
    stretched: Floats = (kept * rates + (1 - kept) * rates / s.factor).astype(np.float32)
    return stretched


def alibi_slopes(heads: int) -> Floats:
    """ALiBi (2108.12409), section 3, for any number of heads, as core/position.py."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(slopes, np.float32)


# What the kernels compute, by the fields of DecoderConfig: with any value, or with one of these. A field that is not
# here may have its default only, so that a new one is refused until it is computed.
_ANY = {
    *("vocab", "context", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "gated", "tied", "head_bias"),
    *("bias", "attention_bias", "out_bias", "norm_eps", "post_norm", "shared_norm", "scaled", "embed_norm", "qk_norm"),
    *("parallel", "scale", "score_cap", "logit_cap", "windows", "position_offset"),
    *("rotary_base", "rotary_dim", "rotary_scaling"),
}
_SOME: dict[str, tuple[object, ...]] = {
    "activation": library.ACTIVATIONS,
    "norm": ("layer", "rms", "rms_unit_offset"),
    "norm_first": (True,),
    "position": ("learned", "rotary", "alibi", "none"),
}


def _check_config(config: DecoderConfig) -> None:
    """ConfigError names what the kernels do not compute."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in _ANY and value not in _SOME.get(field.name, (field.default,)):
            raise ConfigError(f"the compiled kernels do not compute {field.name}={value}")
    if config.stack.head_width > MAX_HEAD_DIM:
        raise ConfigError(f"head_dim={config.stack.head_width} is more than the compiled kernels have, {MAX_HEAD_DIM}")


def _as_kernels_read(config: DecoderConfig, weights: Mapping[str, Blocks]) -> dict[str, Blocks]:
    """The weights without the rows of positions that no token has, and a shared norm as both norms."""
    found = {name: weights[name] for name in config.tensors}
    if config.position_offset:
        found["position.weight"] = weights["position.weight"].take(slice(config.position_offset, None))
    if config.shared_norm:
        shared = [name for name in weights if ".attention_norm." in name]
        found |= {name.replace("attention_norm", "ffn_norm"): weights[name] for name in shared}
    return found


def _check_weights(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Blocks]) -> None:
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{len(unknown)} tensors belong to nothing, such as {unknown[0]}")
    for name, shape in expected.items():
        blocks = weights[name]
        if blocks.shape != shape:
            raise CheckpointError(f"{name} has the shape {blocks.shape}; the configuration asks for {shape}")
        if len(shape) == 2 and blocks.kind not in library.KINDS:
            raise ConfigError(f"{name} is {blocks.kind}, which the compiled kernels do not multiply")
        kind = KINDS[blocks.kind]
        if shape[-1] % kind.numbers or blocks.data.nbytes != math.prod(shape) // kind.numbers * kind.bytes:
            raise CheckpointError(f"{name} has {blocks.data.nbytes} bytes, which are not {shape} of {blocks.kind}")


def _slot(name: str, of_layer: Sequence[str], of_none: Sequence[str]) -> tuple[int, int]:
    """(layer, slot) of a tensor in the kernels' order; layer -1 for what belongs to none."""
    if name in of_none:
        return -1, of_none.index(name)
    layer, _, rest = name.removeprefix("stack.blocks.").partition(".")
    return int(layer), of_layer.index(rest)


def _give_back(data: npt.NDArray[np.uint8]) -> None:
    """Takes the pages of a memory-mapped array out of memory; they would be read from the file again."""
    for mapped in _mappings(data):
        start = data.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mappings(data: npt.NDArray[np.uint8]) -> Iterator[mmap.mmap]:
    """The read-only mapping under an array, if there is one."""
    base: object = data
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and memoryview(base).readonly:
        yield base
