"""The attention module: against torch's own, with a cache, with padding, and what `record` sees of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qkv.core.attention import Attention
from qkv.core.cache import Cache, LayerCache, padding_bias
from qkv.core.position import AlibiPosition, last_places, rotary
from qkv.core.stack_config import StackConfig
from qkv.errors import ConfigError, InputError

ALIBI = AlibiPosition(StackConfig(dim=4, layers=1, heads=4, ffn_dim=4))


def like_torch(dim: int, heads: int, memory_dim: int | None = None) -> tuple[Attention, nn.MultiheadAttention]:
    """Ours and torch's with the same random weights."""
    ours = Attention(dim, heads, memory_dim=memory_dim)
    theirs = nn.MultiheadAttention(dim, heads, kdim=memory_dim, vdim=memory_dim, batch_first=True)
    parts = (ours.q, ours.k, ours.v)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        weights = theirs.in_proj_weight.chunk(3) if memory_dim is None else ()
        for part, weight in zip(parts, weights or (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)):
            part.weight.copy_(weight)
        for part, bias in zip(parts, theirs.in_proj_bias.chunk(3)):
            part.bias.copy_(bias)
        ours.out.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_torch(causal):
    ours, theirs = like_torch(24, 3)
    x, mask = torch.randn(2, 7, 24), torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
    hidden = torch.ones(7, 7).triu(1).bool() if causal else None
    expected, _ = theirs(x, x, x, key_padding_mask=~mask, attn_mask=hidden)
    torch.testing.assert_close(ours(x, bias=padding_bias(mask), causal=causal), expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_equals_torch():
    ours, theirs = like_torch(24, 3, memory_dim=10)
    x, memory = torch.randn(2, 7, 24), torch.randn(2, 4, 10)
    torch.testing.assert_close(ours(x, memory), theirs(x, memory, memory)[0], atol=1e-5, rtol=1e-5)


def test_grouped_heads_are_shared_heads():
    few, many = Attention(24, 6, kv_heads=2), Attention(24, 6)
    with torch.no_grad():
        many.q.load_state_dict(few.q.state_dict())
        many.out.load_state_dict(few.out.state_dict())
        for ours, theirs in ((few.k, many.k), (few.v, many.v)):
            theirs.weight.copy_(ours.weight.unflatten(0, (2, 4)).repeat_interleave(3, dim=0).flatten(0, 1))
            theirs.bias.copy_(ours.bias.unflatten(0, (2, 4)).repeat_interleave(3, dim=0).flatten(0, 1))
    x = torch.randn(2, 5, 24)
    assert few.k.weight.shape == (8, 24)
    torch.testing.assert_close(few(x, causal=True), many(x, causal=True), atol=1e-6, rtol=1e-5)


def test_options_reach_the_formula():
    plain = Attention(12, 2, head_dim=8, scale=0.7, q_norm=nn.RMSNorm(8), k_norm=nn.RMSNorm(8), bias=False)
    assert plain.q.bias is None
    assert plain.out.weight.shape == (12, 16)
    x = torch.randn(1, 4, 12)
    q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (plain.q, plain.k, plain.v))
    weights = (plain.q_norm(q) @ plain.k_norm(k).mT * 0.7).softmax(-1)
    expected = plain.out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(plain(x), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5), position=st.sampled_from(["none", "rotary", "alibi"]))
def test_cached_equals_full(cuts, position):
    T = sum(cuts)
    attention, x, cache = Attention(16, 4, kv_heads=2).eval(), torch.randn(2, T, 16), LayerCache(context=T)

    def look(rows: slice, cache: LayerCache | None = None) -> torch.Tensor:
        turn = rotary(torch.arange(T)[rows], 4) if position == "rotary" else None
        places = last_places(rows.stop - rows.start, rows.stop)
        bias = ALIBI.bias(places) if position == "alibi" else None
        return attention(x[:, rows], bias=bias, causal=True, rotary=turn, cache=cache)

    with torch.no_grad():
        full = look(slice(0, T))
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        parts = [look(slice(start, start + cut), cache) for start, cut in zip(starts, cuts)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-5)


def test_the_cache_is_bounded_and_can_forget():
    cache = Cache(layers=2, context=4)
    k, v = torch.randn(2, 1, 2, 3, 8).unbind()
    for layer in cache.layers:
        layer.extend(k, v)
    assert cache.length == 3
    with pytest.raises(InputError, match="the input has 6 tokens; this cache holds at most 4"):
        cache.layers[0].extend(k, v)
    cache.truncate(1)
    assert cache.length == 1
    keys, values = cache.layers[0].extend(k[..., :2, :], v[..., :2, :])
    assert keys.equal(torch.cat((k[..., :1, :], k[..., :2, :]), dim=-2))
    assert values.equal(torch.cat((v[..., :1, :], v[..., :2, :]), dim=-2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 10, "heads": 3}, "dim=10 is not divisible by heads=3; set head_dim"),
        ({"dim": 12, "heads": 6, "kv_heads": 4}, "kv_heads=4 does not divide heads=6; choose a divisor"),
        ({"dim": 12, "heads": 0}, "heads=0"),
        ({"dim": 12, "heads": 4, "kv_heads": 0}, "kv_heads=0"),
    ],
)
def test_widths_that_do_not_fit(given, message):
    with pytest.raises(ConfigError, match=message):
        Attention(**given)
