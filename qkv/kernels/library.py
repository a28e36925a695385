"""The kernels' C functions with their types.

The names and their order are those of step.cpp and blocks.h. Nothing is checked here or there: `NativeRunner` does it.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from qkv.kernels import build

KINDS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F32", "F16", "BF16")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")
MATRICES = (
    *("attention.q.weight", "attention.k.weight", "attention.v.weight", "attention.out.weight"),
    *("ffn.gate.weight", "ffn.up.weight", "ffn.down.weight"),
)
VECTORS = (
    *("attention.q.bias", "attention.k.bias", "attention.v.bias", "attention.out.bias"),
    *("ffn.gate.bias", "ffn.up.bias", "ffn.down.bias"),
    *("attention_norm.weight", "attention_norm.bias", "ffn_norm.weight", "ffn_norm.bias"),
    *("attention.q_norm.weight", "attention.q_norm.bias", "attention.k_norm.weight", "attention.k_norm.bias"),
    *("attention_post_norm.weight", "attention_post_norm.bias", "ffn_post_norm.weight", "ffn_post_norm.bias"),
)
GLOBAL_MATRICES = ("token.weight", "position.weight", "head.weight")
GLOBAL_VECTORS = ("norm.weight", "norm.bias", "stack.norm.weight", "stack.norm.bias", "head.bias")

_INTS = (
    *("vocab", "context", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim"),
    *("rms", "activation", "gated", "parallel", "rotary_dim", "pages", "threads"),
)


class Plan(ctypes.Structure):
    """A model's numbers, as step.cpp reads them."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INTS),
        *((name, ctypes.c_float) for name in ("norm_eps", "scale", "embed_scale", "score_cap", "logit_cap")),
        ("rates", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("windows", ctypes.c_void_p),
        ("weight_bytes", ctypes.c_int64),
    )


_INT, _LONG, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {
    "qkv_page": (_INT, ()),
    "qkv_page_bytes": (_LONG, (_INT, _INT, _INT)),
    "qkv_packed_bytes": (_LONG, (_INT, _INT, _INT)),
    "qkv_open": (_POINTER, (ctypes.POINTER(Plan),)),
    "qkv_threads": (_INT, (_POINTER, _INT)),
    "qkv_close": (None, (_POINTER,)),
    "qkv_matrix": (None, (_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER)),
    "qkv_vector": (None, (_POINTER, _INT, _INT, _INT, _POINTER)),
    "qkv_step": (None, (_POINTER, _INT, *[_POINTER] * 6)),
}


def functions(library: ctypes.CDLL | None = None) -> ctypes.CDLL:
    """The library with its functions' types; the one of this machine unless given. KernelError as `build.library`."""
    library = build.library() if library is None else library
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
