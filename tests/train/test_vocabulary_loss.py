"""The fused loss is PyTorch's own cross-entropy, value and gradient, and R-Drop's formula."""

import pytest
import torch
import torch.nn.functional as F

from qkv.train import vocabulary_loss as module
from qkv.train.vocabulary_loss import vocabulary_loss

N, D, V = 37, 8, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)  # 37 rows: the last chunk is a rest


def tensors(passes=1):
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(passes * N, D, generator=draw, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(V, D, generator=draw).requires_grad_()
    return states, weight, torch.randint(V, (N,), generator=draw)


def gradients(loss, *parameters):
    return torch.autograd.grad(3 * loss, parameters)  # not only where the gradient that comes in is 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    states, weight, target = tensors()
    ours = vocabulary_loss(states, weight, target, smoothing=smoothing)
    theirs = F.cross_entropy(states @ weight.T, target, label_smoothing=smoothing)
    torch.testing.assert_close(ours.value, theirs)
    torch.testing.assert_close(ours.entropy, F.cross_entropy(states @ weight.T, target))
    for mine, other in zip(gradients(ours.value, states, weight), gradients(theirs, states, weight)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_r_drop():
    states, weight, target = tensors(passes=2)
    ours = vocabulary_loss(states, weight, target, smoothing=0.1, r_drop=5.0)
    logits = states @ weight.T
    p, q = logits.log_softmax(-1).chunk(2)
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
    theirs = F.cross_entropy(logits, target.repeat(2), label_smoothing=0.1) + 5 / 4 * divergence
    torch.testing.assert_close(ours.value, theirs)
    torch.testing.assert_close(ours.divergence, divergence)
    for mine, other in zip(gradients(ours.value, states, weight), gradients(theirs, states, weight)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_autocast_computes_in_bf16_and_gives_float32_gradients():
    states, weight, target = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = vocabulary_loss(states, weight, target, smoothing=0.1)
    exact = vocabulary_loss(states, weight, target, smoothing=0.1)
    assert ours.value != exact.value
    torch.testing.assert_close(ours.value, exact.value, rtol=1e-2, atol=0)
    for mine, other in zip(gradients(ours.value, states, weight), gradients(exact.value, states, weight)):
        assert mine.dtype is torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()


def test_without_gradient():
    states, weight, target = tensors()
    with torch.no_grad():
        ours = vocabulary_loss(states, weight, target)
    torch.testing.assert_close(ours.value, F.cross_entropy(states @ weight.T, target))
