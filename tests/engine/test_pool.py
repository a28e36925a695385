"""Memory for keys and values: a share of what is free, never more than can be used, and what to do is said."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.engine import pool
from qkv.engine.engine import Engine
from qkv.engine.pool import TEXTS, free_memory, pool_bytes
from qkv.engine.torch_runner import TorchRunner
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig

GIB = 1 << 30
LLAMA2 = 32 * 2 * 32 * 128 * 2  # bytes of a token of the 7B model in 16 bits


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (40 * GIB, 20_480),  # a quarter
        (6 * GIB, 4096),  # one whole text, more than a quarter
        (2 * GIB, 2048),  # half of what is free, and no more
        (1000 * GIB, TEXTS * 4096),  # as much as can be used
    ],
)
def test_llama_2_reads_all_that_it_can_where_memory_allows(free, tokens):
    assert pool_bytes(32 * LLAMA2, 32, 4096, free) == tokens * LLAMA2


@given(st.integers(1, 1 << 30), st.integers(1, 256), st.integers(1, 1 << 20), st.integers(0, 1 << 42))
def test_a_pool_holds_a_page_and_leaves_memory_to_others(page_bytes, page, context, free):
    found = pool_bytes(page_bytes, page, context, free)
    assert page_bytes <= found <= TEXTS * -(-context // page) * page_bytes
    assert found <= max(free // 2, page_bytes)


def test_what_is_free(monkeypatch, tmp_path):
    here = free_memory()
    assert 1 << 20 < here < 1 << 50
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "used").write_text("400\n")
    monkeypatch.setattr(pool, "_GROUPS", [(str(tmp_path / "max"), str(tmp_path / "used")), ("none", "none")])
    assert free_memory() == 600
    (tmp_path / "max").write_text("max\n")
    assert free_memory() > 600


def small(context: int = 128, **memory: int) -> TorchRunner:
    torch.manual_seed(0)
    config = DecoderConfig(vocab=256, context=context, dim=64, layers=2, heads=4, ffn_dim=96)
    return TorchRunner(Decoder(config), page=16, **memory)


def test_a_pool_without_memory_for_the_whole_context_says_so(monkeypatch, tmp_path):
    plenty = Engine(small())
    assert plenty.context == 128
    page = plenty.runner.page_bytes
    scarce = Engine(small(memory=3 * page))
    assert scarce.context == 49  # the last token is never read
    monkeypatch.setattr("qkv.engine.torch_runner.free_memory", lambda: 6 * page)
    assert Engine(small()).context == 49
