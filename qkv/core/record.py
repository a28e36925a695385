"""Intermediates have names: what every layer of a model gave, and where its attention looked.

    with record(model, weights=True) as out:
        model(x)
    out["stack.blocks.3"]                     the third block's output
    out["stack.blocks.3.attention.weights"]   its attention weights (B, H, T, S)

The weights are recomputed by the plain formula (the fused kernels never hold them), which a test proves
equal to what the kernels did.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qkv.core.attention import Attention


@contextmanager
def record(
    model: nn.Module,
    *,
    weights: bool = False,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the submodules whose dotted name is `wanted`, in the order they ran.

    With `weights` the attention weights come too, as `<attention's name>.weights`. A module that runs twice
    keeps its last output. Everything is detached; leaving the block restores the model.
    """
    out: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                out[name] = result.detach()

        return hook

    def watch(name: str) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            out[f"{name}.weights"] = value.detach()

        return see

    named = [(name, module) for name, module in model.named_modules() if name and wanted(name)]
    hooks = [module.register_forward_hook(keep(name)) for name, module in named]
    watched = [(name, module, module.watch) for name, module in named if weights and isinstance(module, Attention)]
    for name, attention, _ in watched:
        attention.watch = watch(name)
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()
        for _, attention, before in watched:
            attention.watch = before


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
