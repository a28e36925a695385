"""The runner's promise: a token's numbers depend, to the last bit, on the tokens up to it and on nothing else."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.engine.runner import Chunk
from qkv.engine.torch_runner import TorchRunner
from qkv.errors import ConfigError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig

pytestmark = pytest.mark.processor

LLAMA = {"position": "rotary", "kv_heads": 2, "norm": "rms", "gated": True, "activation": "silu", "bias": False}
FAMILIES = {
    "learned": {"position": "learned", "windows": (None, 20)},
    "alibi": {"position": "alibi", "embed_norm": True, "heads": 3},
    "rotary": LLAMA | {"tied": False, "qk_norm": True},
    "parallel": {"position": "rotary", "rotary_dim": 4, "parallel": True},
    "capped": {"position": "rotary", "norm": "rms_unit_offset", "post_norm": True, "windows": (20, None)}
    | {"score_cap": 2.0, "logit_cap": 5.0, "scaled": True},
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    shape = {"vocab": 61, "context": 104, "dim": 48, "layers": 2, "heads": 4, "ffn_dim": 100}
    decoder = Decoder(DecoderConfig(**shape | FAMILIES[name]))
    draw = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.data = 0.25 * noise if parameter.ndim > 1 else 1 + 0.3 * noise
    return decoder.to(dtype)


CASES = [(name, torch.float32) for name in FAMILIES] + [("rotary", torch.bfloat16), ("alibi", torch.bfloat16)]
RUNNERS = {case: TorchRunner(tiny(*case), memory=2 << 20, page=16) for case in CASES}
ALONE = {case: TorchRunner(tiny(*case), memory=2 << 20, page=16, shared=False) for case in CASES[:2]}
DRAW = np.random.default_rng(0)
TEXTS = [DRAW.integers(0, 61, length).tolist() for length in (1, 2, 7, 15, 16, 17, 31, 33, 40, 64, 70, 96)]


def alone(runner: TorchRunner, text: list[int]) -> np.ndarray:
    return runner.step([Chunk(text, 0, range(10), len(text))])[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_decoder(case):
    runner = RUNNERS[case]
    for text in TEXTS:
        with torch.inference_mode():
            full = runner.decoder(torch.tensor([text]))[0].float().numpy()
        ours = alone(runner, text)
        assert ours.dtype == np.float32
        assert np.abs(ours - full).max() <= (1e-5 if case[1] is torch.float32 else 0.1) * np.abs(full).max()


@pytest.mark.parametrize(
    ("case", "runners"), [*((case, RUNNERS) for case in CASES), *((case, ALONE) for case in ALONE)]
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_numbers_depend_on_the_sequence_alone(case, runners, seed):
    """Batches of 1 to 17, prefills cut anywhere, pages anywhere, prefixes out of pages that another one wrote."""
    runner, draw = runners[case], random.Random(seed)
    pages = iter(draw.sample(range(10, 150), 140))
    running = []
    for _ in range(draw.randint(1, 17)):
        text = draw.choice(TEXTS)
        shared = draw.randint(0, (len(text) - 1) // 16)
        table = [next(pages) for _ in range(-(-len(text) // 16))]
        runner.step([Chunk(text[: 16 * shared], 0, table[:shared])] if shared else [])
        running.append([text, alone(runner, text), table, 16 * shared])
    while running:
        chunks, due = [], []
        for sequence in running:
            text, expected, table, start = sequence
            count = min(draw.choice([1, 1, 2, 3, 5, 17, 40]), len(text) - start)
            wanted = draw.randint(0, count)
            chunks.append(Chunk(text[start : start + count], start, table, wanted))
            sequence[3] += count
            due += [expected[start + count - wanted : start + count]] if wanted else []
        found = runner.step(chunks)
        assert len(found) == len(due)
        for ours, solo in zip(found, due):
            assert np.array_equal(ours, solo)
        running = [sequence for sequence in running if sequence[3] < len(sequence[0])]


def test_sequences_share_passes_only_where_that_changes_no_bit(monkeypatch):
    """Products whose bits depend on the row are seen at the start; 16 sequences then take 16 passes and not one."""

    def passes(runner):
        states, counted = runner._states, []
        monkeypatch.setattr(runner, "_states", lambda tiles: counted.append(tiles) or states(tiles))
        runner.step([Chunk([1], 0, [i], 1) for i in range(16)])
        return len(counted)

    decoder = tiny("rotary")
    up = decoder.stack.blocks[1].ffn.up
    uneven = 1 + torch.arange(16.0)[:, None] * 1e-7
    handle = up.register_forward_hook(lambda module, given, out: out * uneven)
    runner = TorchRunner(decoder, memory=2 << 20, page=16)
    assert not runner.shared
    assert passes(runner) == 16
    handle.remove()
    assert passes(TorchRunner(decoder, memory=2 << 20, page=16, shared=True)) == 1


def test_a_poisoned_sequence_stays_alone():
    decoder = tiny("rotary")
    decoder.token.weight.data[60] = torch.nan
    runner = TorchRunner(decoder, memory=2 << 20, page=16, shared=True)
    healthy = [token % 60 for token in TEXTS[8]]
    truth = alone(runner, healthy)
    found = runner.step([Chunk([60] * 20, 0, [30, 31], 1), Chunk(healthy, 0, range(10), len(healthy))])
    assert np.isnan(found[0]).all()
    assert np.array_equal(found[1], truth)


def test_a_plain_cache_would_not_do():
    """The scheme is needed: one row at a time, the same decoder gives other bits."""
    decoder, text = RUNNERS["rotary", torch.float32].decoder, TEXTS[-1]
    cache = decoder.new_cache()
    with torch.inference_mode():
        steps = torch.cat([decoder(torch.tensor([[token]]), cache=cache)[0] for token in text]).numpy()
        assert not np.array_equal(steps, decoder(torch.tensor([text]))[0].numpy())


def test_what_lay_in_a_page_does_not_matter():
    runner, text = RUNNERS["learned", torch.float32], TEXTS[6]
    expected = alone(runner, text)
    runner._pool[:, :, :2] = torch.nan
    assert np.array_equal(runner.step([Chunk(text, 0, [0, 1], len(text))])[0], expected)


def test_drafts_are_overwritten():
    runner, text = RUNNERS["rotary", torch.float32], TEXTS[-1]
    expected = alone(runner, text)
    runner.step([Chunk(text[:30], 0, range(20, 30), 1)])
    runner.step([Chunk([text[30], 5, 5, 5, 5, 5], 30, range(20, 30), 6)])
    assert np.array_equal(runner.step([Chunk(text[31:], 31, range(20, 30), 65)])[0], expected[31:])


def test_the_pool_is_counted_in_bytes():
    decoder = tiny("rotary", torch.bfloat16)
    runner = TorchRunner(decoder, memory=100_000, page=16)
    assert runner.page_bytes == 16 * 2 * 2 * 2 * 12 * 2  # rows, layers, keys and values, G, K, bytes
    assert runner.pages == 100_000 // runner.page_bytes
    assert runner.context == 96, "whole pages of 104"
    with pytest.raises(ConfigError, match="memory=100 bytes hold no page"):
        TorchRunner(decoder, memory=100)
    with pytest.raises(ConfigError, match="no room for memory=4503599627370496 bytes"):
        TorchRunner(decoder, memory=1 << 52)
