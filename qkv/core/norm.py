"""Norms, by the names that configurations have for them.

Layer normalisation (1607.06450) and its root mean square alone (1910.07467), whose gain may be stored as what it is
above one, as Gemma has it: weights near zero then lose nothing in half precision, and weight decay pulls towards one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnitOffsetRMSNorm(nn.RMSNorm):
    """x / rms(x) * (1 + weight), in float32 at least."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.normalized_shape, 1 + self.weight.to(wide), self.eps).to(x.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "rms_unit_offset": UnitOffsetRMSNorm,
}
