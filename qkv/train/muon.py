"""Muon: momentum whose matrices are made orthogonal before they are added, for the hidden matrices of a model.

Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): the update U S V^T becomes U V^T, near
enough, by five Newton-Schulz steps, so that rare directions learn as fast as common ones. "Muon is Scalable for LLM
Training" (2502.16982), section 2.2: its size is matched to AdamW's, so both share one learning rate and one decay.
Matrices of one shape go through the steps together, which is what makes them cheap on a CPU.
A convolution counts as the matrix from all it sees to its channels. Left out: several processes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qkv.device import find_dtype

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the steepest at zero that still end near one
ADAMW_SIZE = 0.2  # the root mean square of AdamW's updates, in learning rates


class Muon(torch.optim.Optimizer):
    """For matrices, and kernels (O, I, Y, X) as matrices (O, IYX); `momentum` is Nesterov's, `weight_decay` apart from
    the gradient, as AdamW's."""

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for alike in _by_shape(p for p in group["params"] if p.grad is not None):
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in alike]
                gradients = [p.grad for p in alike if p.grad is not None]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                folded = ahead.flatten(2)  # (N, rows, columns)
                size = ADAMW_SIZE * max(folded.shape[1:]) ** 0.5
                updates = orthogonal(folded).to(alike[0].dtype).view_as(ahead).unbind()
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(alike, updates, alpha=-group["lr"] * size)


def _by_shape(parameters: Iterable[Tensor]) -> Sequence[list[Tensor]]:
    alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        alike[parameter.shape].append(parameter)
    return list(alike.values())


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> the nearest matrices whose singular values are all about 1 (0.7 to 1.2).

    In bf16, as the author runs it: on a CPU with bf16 products it takes a third to a fifth of fp32's time. Without them
    it takes thirteen times as long, so there it is computed in fp32; and the steps of long matrices on their small Gram
    matrices, for which bf16 is too coarse.
    """
    slow = find_dtype("auto", matrices.device) is torch.float32
    x = matrices.float() if slow else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products are then of the short side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    x = _by_gram(x) if slow and 2 * x.shape[-2] <= x.shape[-1] else _by_steps(x)
    return x.mT if tall else x


def _by_steps(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor) -> Tensor:
    """The same: a step multiplies x by a polynomial of its Gram matrix G, and so G by that polynomial's square."""
    a, b, c = COEFFICIENTS
    gram, product = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    for _ in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        gram, product = factor @ gram @ factor, factor @ product
    return product @ x
