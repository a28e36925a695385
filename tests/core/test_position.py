"""Positions against the papers' formulas and against transformers and diffusers."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from qkv.core.attention import rotate
from qkv.core.position import (
    AlibiPosition,
    LearnedPosition,
    Places,
    RelativePosition,
    alibi_slopes,
    last_places,
    relative_buckets,
    rotary,
    sinusoidal,
    token_positions,
)
from qkv.core.stack_config import RotaryScaling, StackConfig
from qkv.errors import InputError


def test_sinusoidal_is_the_papers_formula():
    got = sinusoidal(torch.arange(50), 12)
    for position in (0, 1, 7, 49):
        for i in range(6):
            angle = position / 10_000 ** (2 * i / 12)
            assert got[position, 2 * i] == pytest.approx(math.sin(angle), abs=2e-6)
            assert got[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=2e-6)


@pytest.mark.parametrize("cos_first", [False, True])
def test_sinusoidal_is_the_time_embedding_of_diffusers(cos_first):
    times = torch.tensor([0.0, 1, 250.5, 999])
    expected = get_timestep_embedding(times, 320, flip_sin_to_cos=cos_first, downscale_freq_shift=0)
    assert sinusoidal(times, 320, interleaved=False, cos_first=cos_first).equal(expected)


def test_sinusoidal_refuses_an_odd_width():
    with pytest.raises(InputError, match="dim=7 is odd"):
        sinusoidal(torch.arange(3), 7)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rotary_is_llamas(base):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": base}
    )
    q, k, positions = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.arange(3, 12)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    turn = rotary(positions, 16, base=base)
    for got, right in zip((rotate(q, turn), rotate(k, turn)), expected):
        torch.testing.assert_close(got, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", [16, 64, 512])
def test_scaled_rotary_is_llamas(context):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": "llama3", "rope_theta": 1000.0, "original_max_position_embeddings": context, **scaling}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope)
    positions = torch.arange(0, 40, 3)
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    got = rotary(positions, 64, base=1000.0, scaling=RotaryScaling(factor=8.0, low=1.0, high=4.0, context=context))
    for ours, right in zip(got, expected):
        torch.testing.assert_close(ours, right[0], atol=1e-5, rtol=0)
    plain = rotary(positions, 64, base=1000.0)
    assert not torch.allclose(got[0], plain[0], atol=1e-2)


@given(start=st.integers(0, 500), shift=st.integers(0, 500))
def test_rotary_depends_on_distances_only(start, shift):
    q, k = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64).unbind()
    scores = []
    for first in (start, start + shift):
        cos, sin = rotary(torch.arange(first, first + 4), 8)
        scores.append(rotate(q, (cos.double(), sin.double())) @ rotate(k, (cos.double(), sin.double())).mT)
    torch.testing.assert_close(*scores, atol=2e-3, rtol=0)


def test_rotary_turns_the_first_numbers_only():
    x, turn = torch.randn(1, 2, 5, 12, dtype=torch.bfloat16), rotary(torch.arange(5), 8)
    turned = rotate(x, turn)
    assert turned.dtype is torch.bfloat16
    assert turned[..., 8:].equal(x[..., 8:])
    assert turned[..., :8].equal(rotate(x[..., :8], turn))
    assert turned[..., 0, :].equal(x[..., 0, :])  # position 0 is no turn


@pytest.mark.parametrize("heads", range(1, 34))
def test_alibi_is_blooms(heads):
    alibi = AlibiPosition(StackConfig(dim=heads, layers=1, heads=heads, ffn_dim=1)).bias
    theirs = build_alibi_tensor(torch.ones(1, 7), heads, torch.float32).view(heads, 1, 7)
    torch.testing.assert_close(alibi_slopes(heads), theirs[:, 0, 1])
    ours = alibi(last_places(7, 7))  # theirs adds the same number to a whole row, which softmax does not see
    for t in range(7):
        torch.testing.assert_close(ours[:, t] - ours[:, t, :1], theirs[:, 0])
    assert (ours.diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(alibi(last_places(2, 7)), ours[:, -2:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20)])
def test_relative_buckets_are_t5s(causal, buckets, farthest):
    distance = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distance, not causal, buckets, farthest)
    assert relative_buckets(distance, buckets, farthest, causal=causal).equal(expected)
    assert relative_buckets(distance, buckets, farthest, causal=not causal).ne(expected).any()


def test_places_of_beams_that_share_a_cache():
    """Distances are those of the steps, whatever the order in the cache."""
    config = StackConfig(dim=4, layers=1, heads=2, ffn_dim=4, causal=True, position="relative", relative_buckets=8)
    position = RelativePosition(config)
    beams = Places(torch.full((2,), 3), torch.arange(4).repeat_interleave(2), in_order=False)
    alone = position.bias(last_places(1, 4))  # (H, 1, 4)
    assert position.bias(beams).equal(alone.repeat_interleave(2, dim=2).expand(2, 2, 8))


def test_learned_positions():
    position, x = LearnedPosition(6, 4, offset=2), torch.randn(2, 3, 4)
    assert position.weight.shape == (8, 4)
    assert position(x).equal(x + position.weight[2:5])
    assert position(x, start=3).equal(x + position.weight[5:8])
    with pytest.raises(InputError, match="the input has 7 tokens; this model reads at most 6"):
        position(x, start=4)
    at = torch.tensor([[0, 0, 1], [3, 4, 5]])
    assert position(x, positions=at)[0].equal(x[0] + position.weight[[2, 2, 3]])
    assert position(x, positions=at)[1].equal(x[1] + position.weight[5:8])
    with pytest.raises(InputError, match="the input has 7 tokens"):
        position(x, positions=at + 1)


def test_padding_has_no_positions():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert token_positions(mask, 4).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert token_positions(mask.bool(), 1).tolist() == [[1], [3]]
