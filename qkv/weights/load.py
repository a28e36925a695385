"""Tensors into a module that was built without memory, and out again.

    unet = load_module(lambda: UNet(config), table.ours(folder.tensors("unet")), dtype=torch.bfloat16)

The module is built on the meta device, without initial weights, and its parameters become the tensors themselves:
memory-mapped ones stay on disk until the first forward pass, converted ones are made one at a time and what was read
for them is dropped at once. So the peak stays at the file's size, or the converted size if that is larger, plus one
tensor.

The rule for modules: state is parameters, or buffers that are saved. What can be computed (sinusoids, rotary angles,
masks) is computed in forward or by a cached function; a buffer with `persistent=False` would stay on meta.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qkv.errors import CheckpointError
from qkv.weights.files import release
from qkv.weights.fit import check_fit

Model = TypeVar("Model", bound=nn.Module)


def load_module(make: Callable[[], Model], tensors: Mapping[str, Tensor], **options: Any) -> Model:
    """What `make` makes, with these tensors, ready to compute; the options and errors are those of `load_weights`."""
    with torch.device("meta"), _Uninitialised():
        module = make()
    load_weights(module, tensors, **options)
    return module.eval()


class _Uninitialised(TorchFunctionMode):
    """Modules are made without initial weights. On the meta device these cost no memory, but PyTorch computes a
    normal distribution there in Python, for which it first imports its compiler: 2 seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", *args[:1])  # as it is
        return func(*args, **(kwargs or {}))


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool = False,
) -> None:
    """Give `module`, built under `torch.device("meta")`, these tensors: all of them, and no others.

    Floating-point tensors become `dtype` (None: what the file has). CheckpointError lists up to 10 missing,
    unexpected and misfitting tensors; with `check_finite` also one that holds NaN or infinity.
    """
    expected = module.state_dict()
    assert len(expected) == len(list(module.parameters())) + len(list(module.buffers())), (
        f"{type(module).__name__} shares a parameter under two names, or has a buffer with persistent=False"
    )
    kinds = [
        f"{name} is {tensors[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point()
    ]
    check_fit(type(module).__name__, _shapes(expected), _shapes(tensors), of_another_kind=kinds)
    loaded = {}
    for name in expected:
        tensor = tensors[name]
        loaded[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        if check_finite and not _finite(loaded[name]):
            raise CheckpointError(f"tensor {name} holds NaN or infinity as {loaded[name].dtype}")
        if loaded[name] is not tensor:
            release(tensor)
    module.load_state_dict(loaded, assign=True)


def export_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by our names, not copied: what `load_weights` takes, and what a table publishes."""
    return dict(module.state_dict())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    if tensor.itemsize == 1:  # float8 has no aminmax
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN goes into both; nothing of the tensor's size is allocated
    return bool(low.isfinite() & high.isfinite())
