"""Measures of a language model: the perplexity of a text, the share of answers that are exactly right."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from qkv.engine.runner import Chunk, Runner
from qkv.errors import InputError
from qkv.models.decoder import Decoder
from qkv.sample.tokens import log_softmax
from qkv.text.chat import Message
from qkv.text.language import LanguageTokenizer
from qkv.train.conversations import Speaker
from qkv.train.language_model import encode, mean_loss

ROWS = 128  # whose logits are in memory at once


def perplexity(decoder: Decoder, tokenizer: LanguageTokenizer, text: str, *, context: int = 512) -> float:
    """exp of the mean loss in nats a token, the text read in windows of `context` tokens. InputError if it is empty."""
    ids = encode(tokenizer, text)
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; perplexity needs at least 2")
    return math.exp(mean_loss(decoder, ids, context=min(context, decoder.config.context), batch=1))


def mean_loss_on(runner: Runner, ids: Sequence[int], *, context: int = 512) -> float:
    """The mean loss in nats of every token but the first, as a runner computes it: with its own weights and arithmetic.

    Windows of `context` as for `perplexity`, which is exp of it on a decoder in PyTorch. InputError below 2 tokens.
    """
    if len(ids) < 2:
        raise InputError(f"there are {len(ids)} tokens; perplexity needs at least 2")
    context = min(context, runner.context)
    table, total = range(-(-context // runner.page)), 0.0
    for window in range(0, len(ids) - 1, context):
        stop = min(window + context, len(ids) - 1)
        for start in range(window, stop, ROWS):
            end = min(start + ROWS, stop)
            logits = runner.step([Chunk(ids[start:end], start - window, table, end - start)])[0]
            chances = log_softmax(logits)[np.arange(end - start), ids[start + 1 : end + 1]]
            total -= float(chances.sum(dtype=np.float64))
    return total / (len(ids) - 1)


@torch.no_grad()
def answer(decoder: Decoder, speaker: Speaker, messages: Sequence[Message], *, most: int = 64) -> str:
    """The likeliest answer, greedily, of at most `most` tokens."""
    given = speaker.template.encode(messages, speaker.tokenizer)
    cache, device, written = decoder.new_cache(len(given) + most), decoder.token.weight.device, list[int]()
    while len(written) < most:
        states = decoder.states(torch.tensor([given], device=device), cache=cache)
        token = int(decoder.logits(states[0, -1]).argmax())
        if token in speaker.tokenizer.stops:
            break
        written.append(token)
        given = [token]
    return speaker.tokenizer.decode(written)


def exact(decoder: Decoder, speaker: Speaker, conversations: Sequence[Sequence[Message]], *, most: int = 64) -> float:
    """The share of conversations whose last answer the model gives letter by letter."""
    right = [answer(decoder, speaker, turns[:-1], most=most) == turns[-1].content for turns in conversations]
    return sum(right) / len(right)
