"""Blocks and stacks against torch's own Transformer layers; padding, caches and configurations that cannot be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qkv.core.activation import ACTIVATIONS
from qkv.core.attention import Attention
from qkv.core.block import Block, FeedForward
from qkv.core.cache import Cache
from qkv.core.record import record
from qkv.core.stack import Stack, StackConfig
from qkv.errors import ConfigError

DIM, HEADS, FFN = 16, 4, 24


def shake(module: nn.Module) -> nn.Module:
    """Random values for all parameters, norms and biases too, so that no part can hide."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        for part, weight, bias in zip(
            (ours.q, ours.k, ours.v), theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    ours.out.load_state_dict(theirs.out_proj.state_dict())


def copy_layer(ours: Block, theirs: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> None:
    decoder = isinstance(theirs, nn.TransformerDecoderLayer)
    copy_attention(ours.attention, theirs.self_attn)
    ours.attention_norm.load_state_dict(theirs.norm1.state_dict())
    if decoder:
        copy_attention(ours.memory_attention, theirs.multihead_attn)
        ours.memory_norm.load_state_dict(theirs.norm2.state_dict())
    ours.ffn.up.load_state_dict(theirs.linear1.state_dict())
    ours.ffn.down.load_state_dict(theirs.linear2.state_dict())
    ours.ffn_norm.load_state_dict((theirs.norm3 if decoder else theirs.norm2).state_dict())


def pair(norm_first: bool, memory: bool, causal: bool) -> tuple[Stack, nn.Module]:
    options = {"batch_first": True, "norm_first": norm_first, "dropout": 0.0, "activation": "gelu"}
    if memory:
        layer, kind = nn.TransformerDecoderLayer(DIM, HEADS, FFN, **options), nn.TransformerDecoder
    else:
        layer, kind = nn.TransformerEncoderLayer(DIM, HEADS, FFN, **options), nn.TransformerEncoder
    extra = {} if memory else {"enable_nested_tensor": False}
    theirs = shake(kind(layer, 3, norm=nn.LayerNorm(DIM), **extra))
    config = StackConfig(
        dim=DIM,
        layers=3,
        heads=HEADS,
        ffn_dim=FFN,
        memory_dim=DIM if memory else None,
        norm_first=norm_first,
        causal=causal,
    )
    ours = Stack(config).eval()
    for block, layer in zip(ours.blocks, theirs.layers):
        copy_layer(block, layer)
    ours.norm.load_state_dict(theirs.norm.state_dict())
    return ours, theirs


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_encoder_equals_torch(norm_first, causal):
    ours, theirs = pair(norm_first, memory=False, causal=causal)
    x, mask = torch.randn(2, 6, DIM), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()
    hidden = torch.ones(6, 6).triu(1).bool() if causal else None
    expected = theirs(x, mask=hidden, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask=mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_decoder_equals_torch(norm_first):
    ours, theirs = pair(norm_first, memory=True, causal=True)
    x, memory, mask = torch.randn(2, 6, DIM), torch.randn(2, 5, DIM), torch.tensor([[1] * 5, [1] * 2 + [0] * 3]).bool()
    hidden = torch.ones(6, 6).triu(1).bool()
    expected = theirs(x, memory, tgt_mask=hidden, memory_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, memory, memory_mask=mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_parallel_block():
    block = shake(Block(DIM, Attention(DIM, HEADS), FeedForward(DIM, FFN), parallel=True))
    x = torch.randn(2, 5, DIM)
    expected = x + block.attention(block.attention_norm(x)) + block.ffn(block.ffn_norm(x))
    torch.testing.assert_close(block(x), expected)


def test_feed_forward():
    ffn, x = FeedForward(DIM, FFN, activation="silu", gated=True, bias=False), torch.randn(3, DIM)
    expected = (F.silu(x @ ffn.gate.weight.T) * (x @ ffn.up.weight.T)) @ ffn.down.weight.T
    torch.testing.assert_close(ffn(x), expected)
    assert ACTIVATIONS["quick_gelu"](torch.tensor(1.0)) == pytest.approx(1 / (1 + math.exp(-1.702)))
    with pytest.raises(ConfigError, match="unknown activation 'guelu'; did you mean gelu"):
        FeedForward(DIM, FFN, activation="guelu")


def positioned(position: str, **more) -> Stack:
    torch.manual_seed(0)
    return shake(
        Stack(StackConfig(dim=DIM, layers=2, heads=HEADS, ffn_dim=FFN, causal=True, position=position, **more))
    )


@torch.no_grad()
def test_windows_are_taken_layer_by_layer():
    """Two layers with windows of 1 and 3: the second sees two tokens back, the first only itself."""
    stack, x = positioned("none", windows=(1, 3)), torch.randn(1, 6, DIM)
    with record(stack, weights=True) as out:
        stack(x)
    first, second = (out[f"blocks.{i}.attention.weights"][0] for i in (0, 1))  # (H, T, S)
    assert first.equal(torch.eye(6).expand_as(first))
    seen = torch.ones(6, 6).tril().triu(-2).bool()
    assert ((second > 0) == seen).all()


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
@torch.no_grad()
def test_cached_equals_full(position):
    stack, x, cache = positioned(position, kv_heads=2, norm="rms"), torch.randn(2, 7, DIM), Cache(2, context=7)
    parts = [stack(x[:, start:stop], cache=cache) for start, stop in ((0, 3), (3, 4), (4, 6), (6, 7))]
    torch.testing.assert_close(torch.cat(parts, dim=1), stack(x), atol=1e-5, rtol=1e-5)
    cache.truncate(3)
    torch.testing.assert_close(stack(x[:, 3:], cache=cache), stack(x)[:, 3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
@torch.no_grad()
def test_left_padding_changes_nothing(position):
    stack, short, long = positioned(position), torch.randn(1, 4, DIM), torch.randn(1, 7, DIM)
    mask = torch.tensor([[0] * 3 + [1] * 4, [1] * 7]).bool()
    batch = torch.cat((torch.cat((torch.full((1, 3, DIM), 9.0), short), dim=1), long))
    both = stack(batch, mask=mask)
    torch.testing.assert_close(both[:1, 3:], stack(short), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1:], stack(long), atol=1e-5, rtol=1e-5)
    assert both.isfinite().all()  # the padded rows may look nowhere
    cache = Cache(2, context=7)
    stack(batch[:, :5], mask=mask[:, :5], cache=cache)
    torch.testing.assert_close(stack(batch[:, 5:], mask=mask, cache=cache), both[:, 5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_matter():
    x = torch.randn(1, 5, DIM)
    results = [positioned(position)(x) for position in ("none", "rotary", "alibi")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(results[i], results[j], atol=1e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 3}, "dim=16 is not divisible by heads=3; set head_dim"),
        ({"heads": 0}, "heads=0 is out of range"),
        ({"dim": -1}, "dim=-1 is out of range"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"layers": 10**9}, "layers=1000000000 is out of range"),
        ({"layers": 1001}, "layers=1001 is out of range; it must be 1 to 1000"),
        ({"ffn_dim": 10**12}, "ffn_dim=1000000000000 is out of range"),
        ({"norm_eps": math.nan}, "norm_eps=nan is out of range"),
        ({"norm_eps": 0.0}, r"norm_eps=0.0 is out of range"),
        ({"activation": "guelu"}, "unknown activation 'guelu'; did you mean gelu"),
        ({"position": "rotary", "head_dim": 5}, "head_dim=5 is odd"),
        ({"position": "rotary", "rotary_base": math.nan}, "rotary_base=nan is out of range"),
        ({"windows": (2,)}, "windows has 2, but only a causal stack has windows; set causal"),
    ],
)
def test_configurations_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        StackConfig(**{"dim": DIM, "layers": 1, "heads": HEADS, "ffn_dim": FFN} | given)
