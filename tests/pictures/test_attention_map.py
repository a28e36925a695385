"""Heat maps: each word's own, from the recorded weights, and without any effect on the picture."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkv.core.record import record
from qkv.loaded.drawer import load
from qkv.models.unet import UNet, UNetConfig
from qkv.pictures.attention_map import AttentionMaps, heat_sheet
from qkv.tasks.draw import draw
from qkv.text.weighting import parse


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_watching_changes_nothing(tiny: Path, sampler: str) -> None:
    given = {"prompt": "a (red:1.2) dog, in a suit", "model": tiny, "steps": 3, "seed": 1, "sampler": sampler}
    for dtype in ("float32", "auto"):
        watched, plain = (draw(**given, dtype=dtype, attention=wanted)[0] for wanted in (True, False))
        assert watched.image.tobytes() == plain.image.tobytes()
        assert plain.attention is None
        assert watched.attention is not None


SIZES = [(64, 64), (64, 128), (128, 64), (128, 128), (64, 192), (192, 64), (128, 192), (192, 128)]


def test_threads_get_their_own_maps(tiny: Path) -> None:
    """Eight draw at once with one model, each another size."""

    def run(size: tuple[int, int]) -> tuple[bytes, bytes]:
        drawn = draw("a red dog", model=tiny, steps=3, seed=1, size=size, dtype="float32", attention=True)[0]
        assert drawn.attention is not None
        return drawn.image.tobytes(), drawn.attention.tobytes()

    alone = [run(size) for size in SIZES]
    assert len(set(alone)) == len(SIZES)
    with ThreadPoolExecutor(len(SIZES)) as pool:
        assert list(pool.map(run, SIZES, timeout=120)) == alone


def test_a_map_is_not_seen_by_who_draws_beside_it(tiny: Path) -> None:
    drawn = []
    with ThreadPoolExecutor(2) as pool:
        for wanted in [True, False] * 4:
            drawn.append(pool.submit(draw, "a dog", model=tiny, steps=2, seed=1, dtype="float32", attention=wanted))
    assert [each.result()[0].attention is not None for each in drawn] == [True, False] * 4


def maps_of(tiny: Path, prompt: str, size: tuple[int, int] = (8, 8)):
    model = load(tiny, dtype="float32")
    words = model.tokenizer.chunks(parse(prompt))
    maps = AttentionMaps(size)
    with torch.no_grad(), maps.watching(model.unet):
        read = model.remember(model.text(torch.from_numpy(words.ids)).flatten(0, 1)[None])
        model.predict(torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0)), 500.0, read)
    return words, maps


def test_one_map_a_word(tiny: Path) -> None:
    words, maps = maps_of(tiny, "a photo of an astronaut, riding a horse")
    found = maps.words(words)
    assert [word for word, _ in found] == ["a", "photo", "of", "an", "astronaut", "riding", "a", "horse"]
    for _, heat in found:
        assert heat.shape == (8, 8)
        assert heat.min() == 0
        assert heat.max() == pytest.approx(1)
    first, second = found[0][1], found[6][1]
    assert not torch.equal(first, second)  # the same word at two places


@pytest.mark.parametrize("size", [(8, 8), (5, 12), (8, 3)])
def test_odd_sizes(tiny: Path, size: tuple[int, int]) -> None:
    words, maps = maps_of(tiny, "a dog", size)
    assert [heat.shape for _, heat in maps.words(words)] == [size, size]


def test_long_prompts(tiny: Path) -> None:
    words, maps = maps_of(tiny, "a dog, " * 60)
    assert len(maps.words(words)) == 120


def test_maps_are_the_mean_of_the_recorded_weights() -> None:
    """One resolution, one layer: nothing but the mean over heads."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(dims=(8,), attention=(False,), heads=(2,), layers=1, memory_dim=6, groups=4)).eval()
    latent, memory = torch.randn(2, 4, 6, 6), torch.randn(2, 9, 6)
    maps = AttentionMaps((6, 6))
    with torch.no_grad(), record(unet, weights=True) as out, maps.watching(unet):
        unet(latent, torch.tensor([3.0, 3.0]), memory)
    with torch.no_grad(), record(unet, weights=True) as out:
        unet(latent, torch.tensor([3.0, 3.0]), memory)
    weights = out["middle.transformers.0.stack.blocks.0.memory_attention.weights"]
    expected = weights[1].mean(0).mT.reshape(9, 6, 6)  # the second row is the prompt's
    torch.testing.assert_close(maps.sums, expected)


def test_the_sheet_is_bright_where_the_map_is() -> None:
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    sheet = np.asarray(heat_sheet(Image.new("RGB", (128, 128), "gray"), [("dog", heat)])).astype(int)
    right = sheet[:, sheet.shape[1] // 2 :]
    assert right[20:50, 40:90].mean() > right[90:120, 40:90].mean() + 50
