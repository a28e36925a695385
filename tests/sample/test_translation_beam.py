"""Beam search over batches: wide enough it is exhaustive, a batch equals its texts one by one."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.sample.translation_beam import Search, likeliest, search_texts

CONFIG = TranslatorConfig(vocab=6, context=16, dim=16, layers=1, heads=2, ffn_dim=16, start=5, pad=5, end=0)


@pytest.fixture(scope="module")
def translator():
    torch.manual_seed(1)
    model = Translator(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data *= 2
    return model


def logprob(model, source, ids):
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[5, *ids[:-1]]]))
    return float(logits.log_softmax(-1)[0, range(len(ids)), ids].sum())


@pytest.mark.parametrize("penalty", ["paper", "power"])
@pytest.mark.parametrize("source", [[1, 2, 0], [3, 0]])
def test_a_wide_beam_is_exhaustive(translator, penalty, source):
    """All texts of up to 3 tokens of 4 symbols; the end is forced, and free, as the last."""
    search = Search(beams=64, penalty=penalty, length_penalty=0.5, max_tokens=3, banned=(5,))
    found = dict(search_texts(translator, [source], search))[0][0]
    scores = {}
    for length in (1, 2, 3):
        for body in itertools.product(range(1, 5), repeat=length - 1):
            ids = [*body, 0]
            total = logprob(translator, source, ids)
            if length == 3:  # forced
                total = logprob(translator, source, [*body, 0]) - last(translator, source, ids)
            scores[tuple(ids)] = total / search.divisor(length)
    best = max(scores, key=scores.__getitem__)
    assert tuple(found.ids) == best
    assert math.isclose(found.score, scores[best], rel_tol=1e-4)


def last(model, source, ids):
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[5, *ids[:-1]]]))
    return float(logits.log_softmax(-1)[0, -1, ids[-1]])


def test_a_batch_equals_its_texts(translator):
    """Of so many some wait, done, for others: they leave an eighth at a time."""
    draw = random.Random(0)
    texts = [[*draw.choices(range(1, 5), k=draw.randrange(7)), 0] for _ in range(40)]
    search = Search(beams=3, max_tokens=10)
    together = dict(search_texts(translator, texts, search))
    for i, text in enumerate(texts):
        alone = dict(search_texts(translator, [text], search))[0]
        assert [each.ids for each in together[i]] == [each.ids for each in alone]
        assert [each.score for each in together[i]] == pytest.approx([each.score for each in alone], rel=1e-4)
    small = dict(search_texts(translator, texts, search, tokens=1))  # every text is a batch
    assert {i: found[0].ids for i, found in small.items()} == {i: found[0].ids for i, found in together.items()}


def test_banned_tokens_and_the_end(translator):
    found = dict(search_texts(translator, [[1, 2, 3, 0]], Search(beams=4, max_tokens=6, banned=(1, 2, 5))))[0]
    assert len(found) == 4
    for each in found:
        assert each.ids.index(0) == len(each.ids) - 1
        assert not {1, 2, 5} & set(each.ids)
        assert len(each.ids) <= 6
    assert sorted(found, key=lambda each: -each.score) == found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6000), st.integers(1, 8), st.integers(0, 99))
def test_likeliest_is_topk(rows, width, count, seed):
    scores = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    count = min(count, width)
    best, place = likeliest(scores, count)
    assert torch.equal(best, scores.topk(count).values)
    assert torch.equal(scores.gather(1, place), best)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"beams": 0}, "beams=0"), ({"length_penalty": math.nan}, "length_penalty"), ({"max_tokens": 0}, "max_tokens=0")],
)
def test_searches_that_cannot_be(values, words):
    with pytest.raises(InputError, match=words):
        Search(**values)
