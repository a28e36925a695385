"""Weights in the layout that the processor's kernels want, for drawing on a CPU.

PyTorch keeps a weight in the order of its axes, and oneDNN lays it out anew in every call. Where pictures and batches
are small that takes longer than the product itself (docs/log.md). `pack` does it once.
Left out: the fusing of activations into the kernels, which wins little and hides what is computed.
"""

import torch
from torch import Tensor, nn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and computes in `dtype`; in float32 PyTorch prefers other kernels, left as they are."""
    return dtype is torch.bfloat16 and can_pack_head(device, dtype)


def can_pack_head(device: torch.device, dtype: torch.dtype) -> bool:
    """As `can_pack`, for a product of few rows with many columns, where oneDNN is the faster one in float32 too."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def pack(network: nn.Module) -> None:
    """Replaces every Linear and Conv2d inside `network`, one by one, so that hardly any weight is there twice.

    From then on the network only computes: its weights can no longer be moved, converted, trained or saved.
    """
    for name, part in network.named_children():
        if isinstance(part, nn.Linear):
            setattr(network, name, PackedLinear(part.weight, part.bias))
        elif isinstance(part, nn.Conv2d):
            setattr(network, name, PackedConv2d(part))
        else:
            pack(part)


class PackedLinear(nn.Module):
    """x (..., I) -> (..., O), of weight (O, I) and bias (O,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class PackedConv2d(nn.Module):
    """(B, C, Y, X) -> (B, O, Y, X), channels-last.

    Laid out at the first call, for the size that comes: the layout for any size takes three times as long on two
    threads. Other sizes are computed as rightly, not as fast.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.shape = (plain.padding, plain.stride, plain.dilation, plain.groups)
        self.weight = plain.weight.detach()
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not weight.is_mkldnn:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.shape, list(x.shape))
            self.weight = weight  # at once and only when done: another thread may be here too
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.shape, "none", [], "")
