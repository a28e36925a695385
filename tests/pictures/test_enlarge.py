"""Tiles: the result is that of the whole picture, in little memory, whatever the picture's sides."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from qkv.errors import CheckpointError, InputError
from qkv.models.upscaler import RRDB, Compact, CompactConfig, RRDBConfig, Upscaler
from qkv.pictures import enlarge as module
from qkv.pictures.enlarge import Enlarged, cut, enlarge
from tests.conftest import strengthen


def compact(**config: int) -> Compact:
    network = Compact(CompactConfig(**{"dim": 8, "layers": 3} | config)).eval()
    strengthen(network, 1)
    return network


def rrdb(**config: int) -> RRDB:
    network = RRDB(RRDBConfig(**{"dim": 8, "layers": 1, "growth": 4} | config)).eval()
    strengthen(network, 2)
    return network


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(pixels, mode)


def last(network: Upscaler, image: Image.Image) -> Image.Image:
    *_, (done, total, large) = enlarge(network, image)
    assert done == total
    return large


def tiled(network: Upscaler, image: Image.Image, side: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Image.Image, int]:
    """Enlarged in tiles of that side, and how many there were."""
    monkeypatch.setattr(module, "BUDGET", 4 * network.numbers * side**2)
    events = list(enlarge(network, image))
    return events[-1].image, len(events)


@pytest.mark.parametrize("size", [(97, 61), (8, 200), (64, 64), (31, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("network", [compact(), compact(scale=2, layers=1)], ids=["x4", "x2"])
def test_tiles_give_what_the_whole_gives(network, size, mode, monkeypatch) -> None:
    image = noise(*size, mode)
    whole = last(network, image)
    assert whole.mode == mode
    assert whole.size == (network.config.scale * size[0], network.config.scale * size[1])
    parts, count = tiled(network, image, 24, monkeypatch)
    assert count > 1 or math.prod(size) <= 24**2
    assert np.abs(np.asarray(parts).astype(int) - np.asarray(whole)).max() <= 1
    assert np.asarray(whole)[..., :3].std() > 20


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_so_does_the_network_that_looks_far(scale: int, monkeypatch) -> None:
    """Its tiles see a quarter of their side around them, here 24 pixels and more; it looks 19 squares far."""
    network, image = rrdb(scale=scale), noise(150, 90)
    whole = last(network, image)
    parts, count = tiled(network, image, 96 * network.unit, monkeypatch)
    assert count > 1 or scale < 4
    assert np.abs(np.asarray(parts).astype(int) - np.asarray(whole)).max() <= 1


def test_the_overlap_is_needed(monkeypatch) -> None:
    network, image = compact(), noise(97, 61)
    whole = last(network, image)
    monkeypatch.setattr(Compact, "reach", 2)
    parts, _ = tiled(network, image, 24, monkeypatch)
    assert np.abs(np.asarray(parts).astype(int) - np.asarray(whole)).max() > 3


@pytest.mark.parametrize("network", [compact(), compact(layers=1), rrdb(), rrdb(scale=2)])
def test_reach_is_how_far_a_pixel_counts(network: Upscaler) -> None:
    """Exactly, where the network is one row of convolutions; for the other no pixel beyond it counts."""
    side = 2 * (2 * network.reach // 2 + 4 * network.unit)
    x = torch.rand(1, 3, side, side)
    x.requires_grad_()
    scale, middle = network.config.scale, side // 2
    network(x)[0, :, scale * middle, scale * middle].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    far = max(middle - int(rows.min()), int(rows.max()) - middle)
    assert far <= network.reach
    assert far >= network.reach - 3 * network.unit
    if isinstance(network, Compact):
        assert far == network.reach


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (500, 400), (10_000, 10), (999, 1001)])
@pytest.mark.parametrize("network", [compact(dim=64, layers=32), rrdb(dim=64, layers=23), rrdb(dim=64, scale=2)])
def test_tiles_cover_every_pixel_once(network: Upscaler, size: tuple[int, int]) -> None:
    seen = np.zeros((size[1], size[0]), int)
    limit = module.BUDGET // (4 * network.numbers)
    for kept, read in cut(size, network):
        seen[kept[1] : kept[3], kept[0] : kept[2]] += 1
        assert read[0] <= kept[0] < kept[2] <= read[2] <= size[0]
        assert read[1] <= kept[1] < kept[3] <= read[3] <= size[1]
        assert [start % network.unit for start in read[:2]] == [0, 0]
        width, height = (-(-(read[i + 2] - read[i]) // network.unit) * network.unit for i in (0, 1))
        assert width * height <= limit * 1.15
    assert (seen == 1).all()


def test_sides_that_do_not_fit_the_network() -> None:
    network, image = rrdb(scale=2), noise(15, 9)
    larger = Image.fromarray(np.pad(np.asarray(image), [(0, 1), (0, 1), (0, 0)], mode="edge"))
    expected = last(network, larger).crop((0, 0, 30, 18))
    assert last(network, image).tobytes() == expected.tobytes()


def test_each_tile_is_told() -> None:
    network = compact(dim=64, layers=16)
    events = list(enlarge(network, noise(300, 300)))
    assert all(isinstance(event, Enlarged) for event in events)
    assert [event.done for event in events] == list(range(1, events[0].total + 1))
    assert len(events) > 1


def test_a_result_that_is_too_large() -> None:
    with pytest.raises(InputError, match=r"3000x3000 would become 12000x12000; at most 80 million pixels are made"):
        next(enlarge(compact(), Image.new("RGB", (3000, 3000))))


def test_broken_weights_are_told() -> None:
    network = compact()
    with torch.no_grad():
        network.body[0].weight.fill_(math.inf)
    with pytest.raises(CheckpointError, match="the upscaler gave NaN or infinity"):
        last(network, noise(8, 8))


MEMORY = """
import resource, sys, torch
from PIL import Image
from qkv.models.upscaler import *
from qkv.pictures.enlarge import enlarge
name, side = sys.argv[1:]
compact = name == "compact"
network = Compact(CompactConfig(dim=64, layers=4)) if compact else RRDB(RRDBConfig(layers=1))
network = network.eval().to(memory_format=torch.channels_last)
image = Image.new("RGB", (int(side), int(side)), "red")
for _ in enlarge(network, image.crop((0, 0, 16, 16))): pass  # what the first convolution sets up
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for event in enlarge(network, image): pass
picture = event.image.width * event.image.height * 4  # as Pillow keeps it
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - picture)
"""


@pytest.mark.parametrize(("name", "side"), [("compact", "600"), ("rrdb", "150")])
def test_a_large_picture_needs_little_memory(name: str, side: str) -> None:
    """64 MiB above the pictures. Glibc's arenas and oneDNN's own buffers are in it."""
    done = subprocess.run([sys.executable, "-c", MEMORY, name, side], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 64 << 20
