"""What the loop may do with a batch without knowing what is in it: tensors, alone or in tuples, lists and dicts, all of
one length. Anything else in it is handed through.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def rows(batch: Any) -> int:
    """The number of examples: the length of the first tensor in `batch`."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 0
    if isinstance(batch, Mapping | tuple | list):
        values = batch.values() if isinstance(batch, Mapping) else batch
        return next((count for count in map(rows, values) if count), 0)
    return 0


def parts(batch: Any, count: int) -> list[Any]:
    """`batch` in up to `count` parts of about as many examples each."""
    total = rows(batch)
    size = -(-total // count)
    if size == total:
        return [batch]
    cuts = [slice(start, start + size) for start in range(0, total, size)]
    return [_each(batch, lambda tensor, cut=cut: tensor[cut]) for cut in cuts]  # type: ignore[misc]


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [_each(value, change) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)  # a NamedTuple, or plain
    return batch
