"""Packed weights give what the plain ones give, wherever the layers stand."""

import pytest
import torch
from torch import nn

from qkv.models.packed import PackedConv2d, PackedLinear, PackedPatches, can_pack, pack
from qkv.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.processor

HERE = torch.device("cpu")
ROUNDING = 2**-7  # of bfloat16
needs_bfloat16 = pytest.mark.skipif(not can_pack(HERE, torch.bfloat16), reason="this processor has no bfloat16")


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def test_one_row_has_the_bits_that_it_has_among_many():
    plain, x = nn.Linear(384, 100), torch.randn(300, 384)
    layer = PackedLinear(plain.weight, plain.bias)
    with torch.no_grad():
        all_rows = layer(x)
        assert gap(all_rows, plain(x)) < 1e-6
        for rows in (1, 2, 3, 15, 16, 17, 100):
            assert torch.equal(layer(x[:rows]), all_rows[:rows])
        assert torch.equal(layer(x[7]), all_rows[7])


@pytest.mark.parametrize("size", [(16, 24), (19, 25)])
def test_patches(size):
    plain, x = nn.Conv2d(3, 20, 8, stride=8), torch.randn(2, 3, *size)
    network = nn.Sequential(plain)
    with torch.no_grad():
        expected = plain(x)
        pack(network)
        assert gap(network(x), expected) < 1e-6
    assert isinstance(network[0], PackedPatches)


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
