"""The loss of a text on a runner is the decoder's, window by window."""

import math

import numpy as np
import pytest
import torch

from qkv.engine.torch_runner import TorchRunner
from qkv.errors import InputError
from qkv.evaluate.loss import ROWS, mean_loss_on
from qkv.train.language_model import mean_loss
from qkv.weights.decoder import load_decoder
from qkv.weights.folder import Folder


@pytest.mark.parametrize("length", [2, 40, 100, 301])
def test_a_runner_and_the_decoder_agree(tiny_decoder, length):
    decoder = load_decoder(Folder(tiny_decoder), dtype=torch.float32)
    runner = TorchRunner(decoder, memory=1 << 22)
    ids = np.random.default_rng(0).integers(0, decoder.config.vocab, length)
    for context in (50, 64, 10 * ROWS):
        found = mean_loss_on(runner, ids.tolist(), context=context)
        expected = mean_loss(decoder, ids, context=min(context, runner.context), batch=2)
        assert math.isclose(found, expected, rel_tol=1e-5)


def test_a_text_of_one_token_has_no_loss(tiny_decoder):
    runner = TorchRunner(load_decoder(Folder(tiny_decoder), dtype=torch.float32), memory=1 << 22)
    with pytest.raises(InputError, match="1 tokens; perplexity needs at least 2"):
        mean_loss_on(runner, [5])
