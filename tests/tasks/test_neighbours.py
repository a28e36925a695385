"""A text's and a picture's numbers are the same bits alone and in any company, in each precision computed here.

Sizes are such that products of few rows have kernels of their own, and that threads' shares end within a row.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qkv import device as devices
from qkv.index.vectors import cosine
from qkv.models.bert import MaskedBert
from qkv.models.clip import CLIP, TextConfig, VisionConfig
from qkv.models.packed import can_pack
from qkv.models.preprocess import Preprocess
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.tasks.classify import classify
from qkv.tasks.embed import embed
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.tasks.fill import fill
from qkv.tasks.search import search
from qkv.tasks.translate import translate, translating
from qkv.text.pieces import learn_pieces
from qkv.text.tokenizer import train_tokenizer
from qkv.weights.clip import save_clip
from qkv.weights.preprocess import save_preprocess
from qkv.weights.translator import save_translator

pytestmark = pytest.mark.processor

WORDS = re.findall(r"\w+", "a dog in a suit riding a red horse on mars with two blue fish and the cat")
DTYPES = [name for name, dtype in devices.DTYPES.items() if can_pack(torch.device("cpu"), dtype)] or ["float32"]
SHAPE = {"dim": 48, "heads": 3, "layers": 2, "ffn_dim": 100}


@torch.no_grad()
def strengthen(module: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else noise * 0.1 + ("norm" in name))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with devices.threads(request.param):
        yield request.param


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def companies(things: int, seed: int = 0) -> list[list[int]]:
    """Alone, two, few, many, all; in any order, some more than once."""
    draw = random.Random(seed)
    sizes = [1, 1, 2, 3, 5, 8, 13, things]
    return [draw.choices(range(things), k=size) for size in sizes] + [draw.sample(range(things), things)]


def hold(make: Callable[[Sequence[int]], np.ndarray], things: int) -> None:
    """`make` gives a row for each number of a thing: the same row in every company."""
    alone = np.concatenate([make([i]) for i in range(things)])
    assert len(np.unique(alone, axis=0)) > things / 2, "they are told apart"
    for rows in companies(things):
        np.testing.assert_array_equal(make(rows), alone[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_texts(activation, dtype, threads, tiny_bert):
    folder, given = tiny_bert(activation=activation, context=90, **SHAPE), texts(40, 30)
    hold(lambda rows: embed([given[i] for i in rows], model=folder, dtype=dtype), len(given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_texts(dtype, threads, tiny_bert):
    """Above 128 tokens attention has another way."""
    folder, given = tiny_bert(context=400, **SHAPE), texts(8, 120)
    hold(lambda rows: embed([given[i] for i in rows], model=folder, dtype=dtype), len(given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_passages(dtype, tiny_bert, tmp_path, home):
    folder, given = tiny_bert(**SHAPE), list(dict.fromkeys(texts(40, 20)))
    seen: dict[str, float] = {}
    for number, rows in enumerate(companies(len(given))):
        (tmp_path / "notes.txt").write_text("\n\n".join({given[i]: None for i in rows}))
        found = search("a red fish", tmp_path / "notes.txt", model=folder, dtype=dtype, top=99)
        assert len(found.hits) == len(set(rows))
        for hit in found.hits:
            assert seen.setdefault(hit.passage.text, hit.score) == hit.score, number


def test_cosines():
    draw = np.random.default_rng(0)
    vectors, query = draw.standard_normal((50, 37), np.float32), draw.standard_normal(37, np.float32)
    hold(lambda rows: cosine(vectors[list(rows)], query)[:, None], len(vectors))


@pytest.fixture(scope="module")
def seer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "seer"
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, vocab=600)
    tower, end = SHAPE | {"proj_dim": 16}, tokenizer.vocab - 1
    text = TextConfig(vocab=tokenizer.vocab, context=20, start=end - 1, end=end, pad=end, **tower)
    clip = CLIP(text, VisionConfig(image_size=40, patch=8, **tower)).eval()
    strengthen(clip)
    save_clip(clip, folder)
    tokenizer.save(folder)
    save_preprocess(Preprocess(resize=40, crop=(40, 40)), folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip(dtype, threads, seer):
    embedder, given = load_clip_embedder(seer, dtype=dtype), list(dict.fromkeys(texts(60, 12)))
    hold(lambda rows: embedder.embed_texts([given[i] for i in rows]).vectors, len(given))
    pixels = np.random.default_rng(0).standard_normal((40, 3, 40, 40), np.float32)
    hold(lambda rows: embedder.embed_pixels([pixels[i] for i in rows]), len(pixels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_labels(dtype, seer):
    picture, given = Image.new("RGB", (40, 40), "teal"), list(dict.fromkeys(texts(20, 6)))
    seen: dict[str, float] = {}
    for rows in companies(len(given)):
        labels = list(dict.fromkeys([given[i] for i in rows] + ["yes", "no"]))
        for label in classify(picture, labels, model=seer, dtype=dtype).labels:
            assert seen.setdefault(label.label, label.score) == label.score


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(dtype, threads, tiny_bert):
    folder = tiny_bert(MaskedBert, activation="gelu_tanh", **SHAPE)
    given = [f"{text} [MASK]" for text in texts(12, 12)]

    def shares(rows: Sequence[int]) -> np.ndarray:
        found = [fill(given[i], model=folder, dtype=dtype, top=20).masks[0] for i in rows]
        return np.array([[guess.probability for guess in guesses] for guesses in found])

    hold(shares, len(given))


@pytest.fixture(scope="module", params=["silu"])
def translator(tmp_path_factory, request) -> Path:
    folder = tmp_path_factory.mktemp("models") / "paper"
    pieces = learn_pieces(texts(50, 12), 310)
    shape = {"context": 30, "dim": 48, "heads": 3, "layers": 2, "ffn_dim": 100, "activation": request.param}
    model = Translator(TranslatorConfig(vocab=pieces.vocab, start=pieces.vocab - 1, pad=pieces.vocab - 1, **shape))
    strengthen(model)
    model.bias[0] = 1.0  # some texts end before their limits
    save_translator(model, folder, also={"num_beams": 3})
    pieces.save(folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beams", [1, 3])
def test_translations(beams, dtype, threads, translator):
    """The words, and the score to its last bit."""
    given = list(dict.fromkeys(texts(6, 24)))
    alone = [translate(text, model=translator, dtype=dtype, beams=beams) for text in given]
    assert len({(one.text, one.score) for one in alone}) > len(alone) / 2
    for rows in companies(len(given)):
        lines = translating([given[i] for i in rows], model=translator, dtype=dtype, beams=beams)
        assert [(line.text, line.score) for line in lines] == [(alone[i].text, alone[i].score) for i in rows]
