"""Weights in the layout that the processor's kernels want, for computing on a CPU.

PyTorch keeps a weight in the order of its axes, and oneDNN lays it out anew in every call. Where pictures and batches
are small that takes longer than the product itself (docs/log.md). `pack` does it once.

It is also why a text's numbers do not depend on the other texts of its batch. PyTorch's product in float32 (MKL) has
other bits for few rows than for many; oneDNN's has the same for any number from two on, on processors with AVX2 and
later, and one row goes through it twice. Where nothing can be packed, on a GPU or in a precision that the processor
does not compute, texts in a batch are equal to texts alone up to rounding.
Left out: the fusing of activations into the kernels, which wins little and hides what is computed.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and computes in `dtype`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def place(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """The network on its device, packed where that computes in `dtype`."""
    network = network.to(device)
    if can_pack(device, dtype):
        pack(network)
    return network


@torch.no_grad()
def pack(network: nn.Module) -> None:
    """Replaces every Linear and Conv2d inside `network`, one by one, so that hardly any weight is there twice.

    From then on the network only computes: its weights can no longer be moved, converted, trained or saved.
    """
    for name, part in network.named_children():
        if isinstance(part, nn.Linear):
            setattr(network, name, PackedLinear(part.weight, part.bias))
        elif isinstance(part, nn.Conv2d):
            apart = part.kernel_size == part.stride != (1, 1)  # each pixel is read once
            setattr(network, name, PackedPatches(part) if apart else PackedConv2d(part))
        else:
            pack(part)


class PackedLinear(nn.Module):
    """x (..., I) -> (..., O), of weight (O, I) and bias (O,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:  # one row: its bits may be others than among many
            return self._product(x.reshape(1, -1).repeat(2, 1))[0].view(*x.shape[:-1], -1)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class PackedPatches(nn.Module):
    """(B, C, Y, X) -> (B, O, Y / P, X / P): a convolution whose windows lie side by side is a linear layer of each."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.side = plain.stride
        self.linear = PackedLinear(plain.weight.flatten(1), plain.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.side
        y, x_ = x.shape[2] // height, x.shape[3] // width
        patches = x[:, :, : y * height, : x_ * width].unflatten(3, (x_, width)).unflatten(2, (y, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, y, x, C * P * P)
        return self.linear(patches).permute(0, 3, 1, 2)


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
