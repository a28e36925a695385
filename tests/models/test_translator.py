"""The paper's Table 3, and what a translator must hold to whatever its weights."""

from dataclasses import replace

import pytest
import torch

from qkv.core.cache import Cache
from qkv.errors import ConfigError, InputError
from qkv.models.translator import Translator
from qkv.models.translator_config import PRESETS, TranslatorConfig

# Table 3's column "params", in millions; (A), (D) and (E) have none.
COUNTS = {
    **{"base": 65, "b-keys-16": 58, "b-keys-32": 60, "c-2-layers": 36, "c-4-layers": 50, "c-8-layers": 80},
    **{"c-dim-256": 28, "c-dim-1024": 168, "c-ffn-1024": 53, "c-ffn-4096": 90, "big": 213},
}
TINY = TranslatorConfig(vocab=20, context=12, dim=16, layers=2, heads=2, ffn_dim=24, start=19, pad=19)


@pytest.mark.parametrize("name", PRESETS)
def test_table_3(name):
    with torch.device("meta"):
        translator = Translator(PRESETS[name])
    row = name.removeprefix("transformer-")
    if row in COUNTS:
        assert round(sum(p.numel() for p in translator.parameters()) / 1e6) == COUNTS[row]
    assert PRESETS[name].vocab == (36_000 if row == "big" else 41_100)


def test_table_3_has_all_its_rows():
    shapes = {(c.heads, c.head_dim, c.layers, c.dim, c.ffn_dim, c.dropout, c.position) for c in PRESETS.values()}
    assert len(shapes) == len(PRESETS) == 1 + 4 + 2 + 7 + 2 + 1 + 1
    assert COUNTS.keys() <= {name.removeprefix("transformer-") for name in PRESETS}


def variants():
    return [TINY, replace(TINY, norm_first=True), replace(TINY, position="learned"), replace(TINY, decoder_layers=1)]


@pytest.fixture(params=variants(), ids=["paper", "norm first", "learned positions", "one decoder layer"])
def translator(request):
    torch.manual_seed(0)
    return Translator(request.param).eval()


SOURCE = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 0, 19, 19]])
TARGET = torch.tensor([[19, 5, 6, 7, 8], [19, 9, 10, 11, 12]])


@torch.no_grad()
def test_padding_changes_nothing(translator):
    together = translator(SOURCE, TARGET, mask=SOURCE != 19)
    torch.testing.assert_close(translator(SOURCE[1:, :3], TARGET[1:]), together[1:])


@torch.no_grad()
def test_cached_equals_full(translator):
    source = translator.encode(SOURCE, SOURCE != 19)
    full = translator.states(TARGET, source)
    read, cache = translator.remember(source), Cache(translator.config.decoder.layers, 5)
    pieces = [translator.states(TARGET[:, :2], read, cache=cache), translator.states(TARGET[:, 2:], read, cache=cache)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full)


@torch.no_grad()
def test_beams_in_one_cache_do_not_see_each_other(translator):
    """Three beginnings of one text's translation, grown together, against each on its own."""
    source = translator.encode(SOURCE[:1])
    read, cache = translator.remember(source), Cache(translator.config.decoder.layers, 9)
    tokens = torch.tensor([[19, 19, 19], [5, 6, 7], [8, 9, 10]])
    seen = torch.eye(3, dtype=torch.bool)[None]
    for position, row in enumerate(tokens):
        states = translator.grow(row[None], read, position=position, seen=seen.repeat(1, 1, position + 1), cache=cache)
    alone = translator.states(tokens.T.contiguous(), translator.encode(SOURCE[:1].repeat(3, 1)))[:, -1]
    torch.testing.assert_close(states[0], alone)


def test_dropout_only_in_training(translator):
    first, second = (translator.train()(SOURCE, TARGET) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (translator.eval()(SOURCE, TARGET) for _ in range(2))
    assert torch.equal(first, second)


def test_too_long(translator):
    with pytest.raises(InputError, match="13 tokens"):
        translator(torch.ones(1, 13, dtype=torch.long), TARGET[:1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"end": 19}, "end=19"),
        ({"pad": 20}, "pad=20"),
        ({"dim": 15, "heads": 3}, "odd"),
        ({"vocab": 0}, "vocab=0"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_shapes_that_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **values)
