"""Every family of decoders against transformers: logits, with a cache in one go, in chunks and token by token, and
left-padded batches."""

import pytest
import torch

from qkv.engine.native_runner import NativeRunner
from qkv.engine.runner import Chunk
from qkv.errors import ConfigError
from qkv.kernels import build
from qkv.weights.decoder import as_blocks

IDS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [0] * 5 + [1] * 7]).bool()  # left-padded, as for generation
CUTS = {"full": (12,), "chunks": (5, 6, 12), "token by token": tuple(range(1, 13))}


def compare(parity, pair, mask=None, cuts=(12,)):
    """Fails unless ours, fed in pieces that end at `cuts`, gives the logits of theirs."""

    def only(logits):
        return logits if mask is None else logits[mask]  # what padding gives nobody reads

    def run_ours(model, dtype):
        cache, logits = model.new_cache(12) if len(cuts) > 1 else None, []
        for start, stop in zip((0, *cuts), cuts):
            logits.append(model(IDS[:, start:stop], mask=None if mask is None else mask[:, :stop], cache=cache))
        return only(torch.cat(logits, dim=1))

    def run_theirs(model, dtype):
        if mask is None:
            return model(IDS).logits
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if pair.model_type != "bloom" else {}
        return only(model(IDS, attention_mask=mask.long(), **positions).logits)

    parity.agree(pair.ours, pair.theirs, run_ours, run_theirs, pair.table if len(cuts) == 1 else None)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits(any_decoder, cuts, padded, decoders, parity):
    compare(parity, decoders(any_decoder), MASK if padded else None, CUTS[cuts])


@pytest.mark.skipif(build.available() is not None, reason=str(build.available()))
@torch.no_grad()
def test_on_the_compiled_kernels(any_decoder, decoders):
    """Within what keys and values of 16 bits cost, cut in the middle; the one that they do not compute is refused."""
    pair = decoders(any_decoder)
    if any_decoder == "opt 350m":
        with pytest.raises(ConfigError, match="do not compute norm_first=False"):
            NativeRunner(*as_blocks(pair.ours), memory=1 << 20, threads=1)
        return
    runner = NativeRunner(*as_blocks(pair.ours), memory=1 << 20, threads=1)
    for ids in IDS.tolist():
        (first,) = runner.step([Chunk(ids[:7], 0, [0], 7)])
        (rest,) = runner.step([Chunk(ids[7:], 7, [0], 5)])
        found = torch.cat((torch.from_numpy(first), torch.from_numpy(rest)))
        expected = pair.theirs(torch.tensor([ids])).logits[0]
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
