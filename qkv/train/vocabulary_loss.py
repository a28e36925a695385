"""Cross-entropy over a large vocabulary without the table of its logits: in chunks, gradient and all, in one pass.

The logits of 8,000 tokens over 10,000 symbols are 320 MB in float32, and a framework's loss walks over them a dozen
times. Here a chunk of rows goes through the head, its loss and the loss's gradient while it is in the processor's
cache, and only the gradients of states and matrix are kept. Label smoothing: Szegedy et al. (1512.00567), section 7.
R-Drop: Liang et al. (2106.14448), eq. 4.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256  # rows


class VocabularyLoss(NamedTuple):
    """`value` to minimise; without gradient what it is made of: the plain cross-entropy, and R-Drop's divergence."""

    value: Tensor
    entropy: Tensor
    divergence: Tensor


def vocabulary_loss(
    states: Tensor, weight: Tensor, target: Tensor, *, smoothing: float = 0.0, r_drop: float = 0.0
) -> VocabularyLoss:
    """The mean over N tokens, in nats, of the smoothed cross-entropy between the logits states @ weight.T and target.
    states (N, D), weight (V, D), target (N).

    With `r_drop` states (2N, D) come from two passes with different dropout, one after the other: the mean over both,
    and r_drop / 4 times the symmetric divergence between them, which is the paper's loss halved.
    """
    if torch.is_autocast_enabled(states.device.type):
        dtype = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    return VocabularyLoss(*_Fused.apply(states, weight, target, smoothing, r_drop))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, target: Tensor, smoothing: float, r_drop: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        N, passes = len(target), len(states) // len(target)
        rows = states.unflatten(0, (passes, N))  # (P, N, D)
        share = 1 / (passes * N)
        sums = torch.zeros(3, device=states.device)  # the smoothed loss, the plain one, the divergence
        learns = states.requires_grad or weight.requires_grad
        into_rows = torch.empty_like(rows)
        into_weight = torch.zeros(weight.shape, device=weight.device)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, N, CHUNK):
                part = rows[:, start : start + CHUNK]  # (P, n, D)
                wanted = target[start : start + CHUNK].expand(passes, -1)[..., None]  # (P, n, 1)
                logprob = F.linear(part, weight).float().log_softmax(-1)  # (P, n, V)
                hit = -logprob.gather(-1, wanted).sum()
                sums += torch.stack(((1 - smoothing) * hit - smoothing * logprob.mean(-1).sum(), hit, hit * 0))
                apart = logprob[0] - logprob[1] if r_drop else None  # (n, V)
                slope = logprob.exp_()  # (P, n, V), the probabilities as yet
                push = None
                if apart is not None:
                    push = _divergence_slope(slope, apart)
                    sums[2] += ((slope[0] - slope[1]) * apart).sum()
                if not learns:
                    continue
                slope.scatter_add_(-1, wanted, slope.new_full((), smoothing - 1).expand(wanted.shape))
                if push is not None:
                    slope.add_(push, alpha=r_drop / 4 * passes)
                narrow = slope.to(weight.dtype)
                into_rows[:, start : start + CHUNK] = narrow @ weight
                into_weight += narrow.flatten(0, 1).mT @ part.flatten(0, 1)
            even = smoothing / weight.shape[0]  # what smoothing takes from every slope, taken at once
            into_rows = into_rows.flatten(0, 1).float() - even * weight.float().sum(0)
            into_weight -= even * states.float().sum(0)
        ctx.save_for_backward((into_rows * share).to(states.dtype), (into_weight * share).to(weight.dtype))
        smoothed, entropy = sums[:2] * share
        divergence = sums[2] / N
        ctx.mark_non_differentiable(entropy, divergence)
        return smoothed + r_drop / 4 * divergence, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        into_states, into_weight = ctx.saved_tensors
        return into_states * gradients[0], into_weight * gradients[0], None, None, None


def _divergence_slope(probability: Tensor, apart: Tensor) -> Tensor:
    """The gradient (2, n, V) of sum (p - q) (log p - log q) for the logits of p and of q; probability (2, n, V) holds
    both, `apart` is log p - log q."""
    p, q = probability
    forward = apart - (p * apart).sum(-1, keepdim=True)
    backward = (q * apart).sum(-1, keepdim=True) - apart
    return torch.stack((p * forward + p - q, q * backward + q - p))
