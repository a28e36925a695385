"""Dropout: a share of the numbers is zeroed in training, so that no unit relies on another.

Srivastava et al. 2014; "Attention Is All You Need" (1706.03762), section 5.4. On a CPU PyTorch draws a number for each
element, which was a ninth of a training step of a small translator; here each draw of 64 bits serves four elements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16  # the share is rounded to such a part


def dropout(x: Tensor, share: float, *, training: bool) -> Tensor:
    """x with `share` of its elements zeroed and the others scaled by what keeps the mean; x itself out of training.

    Drawn from torch's global generator.
    """
    if not training or share == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    dropped = round(share * LEVELS)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
