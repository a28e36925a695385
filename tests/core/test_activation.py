"""Activations are the formulas, also where they are written with other functions; no bit hangs on the place."""

import pytest
import torch
import torch.nn.functional as F

from qkv import device as devices
from qkv.core.activation import ACTIVATIONS

pytestmark = pytest.mark.processor

FORMULAS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "silu": F.silu,
}
EXTREMES = torch.tensor([0.0, -0.0, 1e-30, 30, -30, 100, -100, 1e30, -1e30, torch.inf])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients(name):
    x = torch.cat((torch.linspace(-12, 12, 4001), EXTREMES))
    expected = FORMULAS[name](x.double()).float()
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, rtol=1e-5, atol=2e-6)
    coarse = ACTIVATIONS[name](x[:4001].bfloat16())
    assert coarse.dtype is torch.bfloat16
    torch.testing.assert_close(coarse, FORMULAS[name](x[:4001].bfloat16()), rtol=0.03, atol=0.01)
    wanted = x[:-3].clone().requires_grad_()
    ACTIVATIONS[name](wanted).sum().backward()
    assert wanted.grad.isfinite().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_hang_on_the_place(name, threads):
    """Rows of 100 numbers: a thread's share ends within one."""
    x = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0)) * 3
    with devices.threads(threads), torch.no_grad():
        expected = ACTIVATIONS[name](x)
        for rows in (*range(1, 40), 333, 777):
            assert torch.equal(ACTIVATIONS[name](x[:rows]), expected[:rows])
