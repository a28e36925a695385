"""What stands between the two layers of a feed-forward network.

On a CPU, PyTorch's own sigmoid, SiLU and tanh-GELU compute the last few numbers of each thread's share by another
formula than the rest, so that a number's bits depend on how many there are beside it (docs/log.md). Its `exp` and
`tanh` and oneDNN's GELU do not, nor do single sums and products: the functions here are made of those.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""
    if _as_pytorch_has_it(x):
        return x * (1.702 * x).sigmoid()
    return x / torch.exp(-1.702 * x).add_(1)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    if _as_pytorch_has_it(x):
        return F.silu(x)
    wide = x.float()
    return (wide / torch.exp(-wide).add_(1)).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): 1606.08415, section 2."""
    if _as_pytorch_has_it(x):
        return F.gelu(x, approximate="tanh")
    wide, rate = x.float(), math.sqrt(2 / math.pi)
    bent = (wide * wide).mul_(0.044715 * rate).add_(rate).mul_(wide).tanh_()
    return bent.add_(1).mul_(wide).mul_(0.5).to(x.dtype)


def _as_pytorch_has_it(x: Tensor) -> bool:
    """On a GPU, where a batch changes bits anyway, and in training, where exp would overflow in the gradient."""
    return x.device.type != "cpu" or x.dtype is torch.float64 or (x.requires_grad and torch.is_grad_enabled())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
}
