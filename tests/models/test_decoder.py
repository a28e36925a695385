"""The decoder by itself: how it starts, that it learns, what its cache and its padding may not change, its presets."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from qkv.core.activation import ACTIVATIONS
from qkv.core.stack_config import ACTIVATIONS as NAMES
from qkv.errors import ConfigError, InputError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig, RotaryScaling
from qkv.models.presets import PRESETS

SMALL = {"vocab": 30, "context": 16, "dim": 32, "layers": 3, "heads": 4, "ffn_dim": 64}
KINDS = {
    "learned": {},
    "banded": {"windows": (None, 3)},
    "alibi": {"position": "alibi", "heads": 6, "dim": 48, "embed_norm": True},
    "alibi, banded": {"position": "alibi", "windows": (3,)},
    "rotary": {"position": "rotary", "kv_heads": 2, "norm": "rms", "gated": True, "qk_norm": True, "tied": False},
    "parallel": {"position": "rotary", "rotary_dim": 4, "parallel": True},
    "none": {"position": "none"},
    "capped": {"score_cap": 1.0, "logit_cap": 2.0, "post_norm": True, "norm": "rms_unit_offset", "scaled": True},
    "shared norm": {"position": "rotary", "parallel": True, "shared_norm": True, "out_bias": False}
    | {"tied": False, "head_bias": True},
    "narrow": {"embed_dim": 16, "norm_first": False, "position_offset": 2, "embed_norm": True, "tied": False},
}


def decoder(kind: str, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(**SMALL | KINDS[kind])).eval()
    with torch.no_grad():  # as it starts, attention is so even that its faults hardly show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_its_tensors(kind):
    """What GGUF's reader and the compiled kernels expect is what the module has."""
    config = DecoderConfig(**SMALL | KINDS[kind])
    assert config.tensors == {name: tuple(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_equals_full(kind):
    model, ids = decoder(kind), torch.randint(30, (2, 12))
    full = model(ids)
    for cuts in (range(1, 13), (7, 8, 12), (1, 12)):
        cache = model.new_cache()
        parts = [model(ids[:, start:stop], cache=cache) for start, stop in zip((0, *cuts), cuts)]
        torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-5)
    cache.truncate(5)
    torch.testing.assert_close(model(ids[:, 5:], cache=cache), full[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_padded_batch_equals_each_alone(kind):
    model = decoder(kind)
    long, short = torch.randint(30, (1, 12)), torch.randint(30, (1, 7))
    batch = torch.cat((long, F.pad(short, (5, 0), value=9)))
    mask = torch.tensor([[1] * 12, [0] * 5 + [1] * 7]).bool()
    both = model(batch, mask=mask)
    torch.testing.assert_close(both[:1], model(long), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1:, 5:], model(short), atol=1e-5, rtol=1e-5)
    assert both.isfinite().all()


@torch.no_grad()
def test_a_window_is_what_the_query_and_the_keys_before_it_make():
    """The last of three layers of windows of 3 sees 1 + 3 * 2 tokens."""
    model = decoder("alibi, banded")
    ids = torch.randint(30, (1, 12))
    last = model(ids)[0, -1]
    for position in range(12):
        other = ids.clone()
        other[0, position] = (other[0, position] + 1) % 30
        assert model(other)[0, -1].equal(last) == (position < 12 - 7), position


@torch.no_grad()
def test_only_wanted_rows_go_through_the_head():
    for kind in ("learned", "rotary"):
        model, ids = decoder(kind), torch.randint(30, (2, 6))
        states = model.states(ids)
        assert states.shape == (2, 6, 32)
        torch.testing.assert_close(model.logits(states[:, -1]), model(ids)[:, -1])


def test_how_it_starts():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab=500, context=64, dim=128, layers=8, heads=4, ffn_dim=512, tied=False))
    for name, parameter in model.named_parameters():
        if name.endswith((".attention.out.weight", ".ffn.down.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (parameter == (1 if "norm.weight" in name else 0)).all(), name
    ids = torch.randint(500, (4, 64))
    loss = F.cross_entropy(model(ids).flatten(0, 1), torch.randint(500, (4 * 64,)))
    assert loss.item() == pytest.approx(math.log(500), rel=0.02)


@pytest.mark.parametrize("kind", ["banded", "alibi", "rotary", "parallel"])
def test_it_learns_one_batch_by_heart(kind):
    torch.manual_seed(0)
    model, ids = Decoder(DecoderConfig(**SMALL | KINDS[kind])), torch.randint(30, (2, 16))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["learned", "alibi", "rotary"])
def test_more_than_the_context_is_refused(kind):
    model, cache = decoder(kind), None
    with pytest.raises(InputError, match="the input has 17 tokens; this model reads at most 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = model.new_cache()
    model(torch.zeros(1, 10, dtype=torch.long), cache=cache)
    with pytest.raises(InputError, match="the input has 17 tokens"):
        model(torch.zeros(1, 7, dtype=torch.long), cache=cache)
    with pytest.raises(InputError, match="this cache holds at most 4"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=model.new_cache(4))


SIZES = {  # table 2.1 of 2005.14165
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13.0e9,
    "gpt3-175b": 175.0e9,
    "pythia-160m": 162.3e6,  # as published
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_size_that_is_printed(name):
    config = PRESETS[name]
    with torch.device("meta"):
        one, two = (Decoder(dataclasses.replace(config, layers=layers)) for layers in (2, 3))
    ends, more = (sum(parameter.numel() for parameter in model.parameters()) for model in (one, two))
    assert ends + (more - ends) * (config.layers - 2) == pytest.approx(SIZES[name], rel=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vocab": 0}, "vocab=0 is out of range"),
        ({"context": 10**12}, "context=1000000000000 is out of range"),
        ({"heads": 5}, "dim=32 is not divisible by heads=5"),
        ({"activation": "guelu"}, "unknown activation 'guelu'; did you mean gelu"),
        ({"windows": ()}, "windows has 0 entries"),
        ({"windows": (1, 2, 3, 4)}, "windows has 4 entries; it needs 1 to layers=3"),
        ({"windows": (0,)}, "windows has 0; a window is 1 to"),
        ({"scale": 0.0}, "scale=0.0 is out of range"),
        ({"position": "rotary", "rotary_dim": 10}, "rotary_dim=10 must be even and at most the head's width, 8"),
        ({"position": "rotary", "rotary_dim": 3}, "rotary_dim=3 must be even"),
    ],
)
def test_configurations_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**SMALL | given)


@pytest.mark.parametrize(
    "given", [{"factor": 0.5}, {"factor": math.inf}, {"low": 4.0}, {"low": 0.0}, {"high": math.nan}, {"context": 0}]
)
def test_rotary_scaling_that_cannot_be(given):
    with pytest.raises(ConfigError, match="of the rotary scaling"):
        RotaryScaling(**{"factor": 8.0, "low": 1.0, "high": 4.0, "context": 8192} | given)


def test_a_configuration_is_read_without_torch():
    code = "import sys, qkv.models.decoder_config, qkv.models.presets; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert set(NAMES) == set(ACTIVATIONS)
