"""Packed weights give what the plain ones give, wherever the layers stand."""

import pytest
import torch
from torch import nn

from qkv.models.packed import PackedConv2d, PackedLinear, can_pack, pack
from qkv.models.unet import UNet, UNetConfig

HERE = torch.device("cpu")
ROUNDING = 2**-7  # of bfloat16
needs_bfloat16 = pytest.mark.skipif(not can_pack(HERE, torch.bfloat16), reason="this processor has no bfloat16")


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def test_float32_is_left_alone():
    assert not can_pack(HERE, torch.float32)


@needs_bfloat16
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 5, 24), (3, 77, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    plain = nn.Linear(24, 40, bias=bias).bfloat16()
    x = torch.randn(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        assert gap(PackedLinear(plain.weight, plain.bias)(x), plain(x)) <= ROUNDING


@needs_bfloat16
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 5), (16, 16)])
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2}, {"bias": False, "padding": 1}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution(size, options, layout):
    plain = nn.Conv2d(8, 24, 3, **options).bfloat16()
    x = torch.randn(2, 8, *size, dtype=torch.bfloat16).contiguous(memory_format=layout)
    with torch.no_grad():
        assert gap(PackedConv2d(plain)(x), plain(x)) <= ROUNDING


@needs_bfloat16
def test_a_whole_network():
    """Every linear and convolution is packed, none is forgotten or exchanged."""
    torch.manual_seed(0)
    config = UNetConfig(
        dims=(16, 32), attention=(False, True), heads=(2, 4), layers=1, memory_dim=24, groups=8, sample_size=8
    )
    unet = UNet(config).bfloat16().eval()
    given = torch.randn(2, 4, 8, 8).bfloat16(), torch.tensor([7.0, 7.0]), torch.randn(2, 9, 24).bfloat16()
    with torch.no_grad():
        expected = unet.to(memory_format=torch.channels_last)(*given)
        pack(unet)
        got = unet(*given)
    assert not any(isinstance(part, nn.Linear | nn.Conv2d) for part in unet.modules())
    assert gap(got, expected) <= 3 * ROUNDING
    assert expected.float().std() > 0.01
    assert (unet.enter.weight.dtype, unet.enter.weight.device) == (torch.bfloat16, HERE)
