"""Dropout: its share, its mean, its gradient, and that it is off out of training."""

import pytest
import torch

from qkv.core.attention import Attention
from qkv.core.block import Block, FeedForward
from qkv.core.dropout import dropout
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_share_and_mean(share):
    torch.manual_seed(0)
    x = torch.ones(400, 1001)
    y = dropout(x, share, training=True)
    assert abs((y == 0).float().mean() - share) < 0.005
    assert abs(y.mean() - 1) < 0.01
    assert len(y.unique()) == 2
    columns, rows = (y == 0).float().mean(0), (y == 0).float().mean(1)
    assert columns.std() < 0.04  # what shares a draw is independent
    assert rows.std() < 0.03


def test_neighbours_are_independent():
    torch.manual_seed(0)
    zero = (dropout(torch.ones(1_000_000), 0.5, training=True) == 0).float().view(-1, 4)
    assert (torch.corrcoef(zero.T) - torch.eye(4)).abs().max() < 0.01


def test_a_function_of_the_seed():
    x = torch.ones(5, 7)
    torch.manual_seed(3)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5, training=True))


def test_the_gradient_is_zero_where_the_value_is():
    x = torch.ones(50, 7, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_off_out_of_training():
    x = torch.ones(3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_that_drops_nearly_all_is_nearly_its_residual(norm_first, parallel):
    torch.manual_seed(0)
    attention, ffn = Attention(8, 2), FeedForward(8, 16)
    block = Block(8, attention, ffn, norm_first=norm_first, parallel=parallel, dropout=0.9999).train()
    x = torch.randn(1, 3, 8)
    kept = x if norm_first or parallel else block.ffn_norm(block.attention_norm(x))
    torch.testing.assert_close(block(x), kept)
    assert not torch.allclose(block.eval()(x), kept)


def test_it_adds_nothing_to_the_state():
    stacks = [Stack(StackConfig(dim=8, layers=1, heads=2, ffn_dim=16, dropout=share)) for share in (0.0, 0.1)]
    assert stacks[0].state_dict().keys() == stacks[1].state_dict().keys()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_out_of_range(share):
    with pytest.raises(ConfigError, match="dropout"):
        StackConfig(dim=8, layers=1, heads=2, ffn_dim=16, dropout=share)
