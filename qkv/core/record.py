"""Intermediates have names: what every layer of a model gave, and where its attention looked.

    with record(model, weights=True) as out:
        model(x)
    out["stack.blocks.3"]                     the third block's output
    out["stack.blocks.3.attention.weights"]   its attention weights (B, H, T, S)

The weights are recomputed by the plain formula (the fused kernels never hold them), which a test proves
equal to what the kernels did. A model may be computed in many threads at once: a record sees the calls of its own
thread or coroutine only, and sets nothing on the model.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from qkv.core.attention import Attention, watched


@contextmanager
def record(
    model: nn.Module,
    *,
    outputs: bool = True,
    weights: bool = False,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[dict[str, Tensor]]:
    """Collects the `outputs` of the submodules whose dotted name is `wanted`, in the order they ran.

    With `weights` the attention weights come too, as `<attention's name>.weights`. A module that runs twice
    keeps its last output. Everything is detached. Records may lie within each other; each sees all calls. A generator
    must not yield within: its caller's calls would be recorded too.
    """
    out: dict[str, Tensor] = {}
    named = {module: name for name, module in model.named_modules() if name and wanted(name)}

    def take(module: nn.Module, result: Any) -> None:
        if isinstance(result, Tensor) and (name := named.get(module)):
            out[name] = result.detach()

    def keep(name: str, other: Callable[[Tensor], None] | None) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            out[f"{name}.weights"] = value.detach()
            if other is not None:
                other(value)

        return see

    before = watched.get()
    asked = [(module, name) for module, name in named.items() if weights and isinstance(module, Attention)]
    looking = watched.set({**before, **{module: keep(name, before.get(module)) for module, name in asked}})
    hearing = _takers.set((*_takers.get(), *([take] if outputs else ())))
    try:
        with _hook if outputs else nullcontext():
            yield out
    finally:
        watched.reset(looking)
        _takers.reset(hearing)


_takers: ContextVar[tuple[Callable[[nn.Module, Any], None], ...]] = ContextVar("takers", default=())


class _Hook:
    """PyTorch tells what a module gave through hooks, on the module or on all modules of the process. This is the one
    of the second kind: it is there while anyone records, and does nothing for a thread that does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records = 0

    def __enter__(self) -> None:
        with self._lock:
            self._records += 1
            if self._records == 1:
                self._handle = register_module_forward_hook(_tell)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._records -= 1
            if not self._records:
                self._handle.remove()


def _tell(module: nn.Module, given: Any, result: Any) -> None:
    for take in _takers.get():
        take(module, result)


_hook = _Hook()


def first_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> str | None:
    """The first name that both recorded and whose values differ by more than `tolerance` (relative to the
    largest value), worded with the difference; None where all agree."""
    for name, value in ours.items():
        if name in theirs:
            other = theirs[name].reshape(value.shape)
            gap = float((value - other).abs().max() / other.abs().max().clamp_min(1e-30))
            if not gap <= tolerance:
                return f"{name} differs by {gap:.2e}"
    return None
