"""Batches of scenes and drawings: their shares, their captions, and the units of their latents."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.emblem.captions import Mix
from lab.scenes import mix
from lab.scenes.latents import SceneLatents
from lab.scenes.mix import Channels, Mixed, Pool, Shares, fold, kind
from lab.scenes.scene import SHIRT, Actor, Scene, line
from qkv.errors import ConfigError, InputError
from qkv.models.vae import VAE, VAEConfig

COUNT = 2000
DRAWN = 10_000.0  # added to the latents of drawings


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fewer pictures are held and measured than in a real pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "SAMPLE", 1000)
        yield


@pytest.fixture(scope="module")
def pool(scenes, words, world) -> Pool:
    """Latents that hold their row's number, in drawings and DRAWN."""
    lines = [line(scenes.facts(number)) for number in range(COUNT)]
    items = [replace(item, split="validation") if item.row % 50 == 3 else item for item in world.items[:300]]
    numbers = np.broadcast_to(np.arange(COUNT, dtype=np.float32)[:, None, None, None], (COUNT, 2, 2, 2))
    shards = [numbers[start : start + 1000] for start in range(0, COUNT, 1000)]
    return Pool.of(SceneLatents(shards, lines, numbers[:300] + DRAWN), items, words)


def source(pool, shares=None, **more):
    said = Mix(**{"foreign": 0.0, "unstyled": 0.5, "house": ("noto", "gradient"), **more})
    return Mixed(pool, shares or Shares(), said, batch=400, seed=3, house=4.0)


def raw(pool, latents):
    """The numbers that the fixture put in."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (pool.channels.mean, pool.channels.std))
    return (latents * std + mean)[:, 0, 0, 0]


def test_kinds_of_scenes(many):
    assert set(map(kind, many["ride"])) == {"riding"}
    assert {kind(scene) for scene in many["alone"]} == {"ground", "place", "dressed", "recoloured", "people"}
    alone = Scene(event="alone", actors=(Actor(concept="1F436"),), style="noto")
    assert kind(alone) == "ground"
    assert kind(replace(alone, place="beach")) == "place"
    assert kind(replace(alone, actors=(), event="scenery", place="beach")) == "place"
    assert kind(replace(alone, event="count", count=3)) == "several"
    assert kind(replace(alone, event="cards", count=3)) == "doing"
    for kinds, actor in {
        "dressed": Actor(concept="1F436", outfit="1F935"),
        "recoloured": Actor(concept="1F436", colour="blue"),
        "people": Actor(concept="1F9D1", outfit=SHIRT, colour="red", worn="1F3A9"),
    }.items():
        assert kind(replace(alone, actors=(actor,))) == kinds


def test_a_batch_has_its_shares_in_any_order(pool):
    drawn, found, first = 0, Counter(), 0
    for step in range(20):
        _, latents = source(pool).at(step)
        numbers = raw(pool, latents)
        drawn += int((numbers > DRAWN - 1).sum())
        first += int((numbers[:200] > DRAWN - 1).sum())
        rows = [round(float(number)) for number in numbers if number < DRAWN - 1]
        found.update(kind(pool.latents.scene(row)) for row in rows)
        assert min(rows) >= mix.HELD  # the first ones are for measuring
    shares = Shares().all()
    assert drawn / 8000 == pytest.approx(0.25, abs=0.02)
    assert first / drawn == pytest.approx(0.5, abs=0.05)  # times are spread over a batch in its order
    assert {name: found[name] / 8000 for name in shares if name != "drawing"} == pytest.approx(
        {name: share for name, share in shares.items() if name != "drawing"}, abs=0.02
    )


def test_captions_are_those_of_their_latents(pool):
    texts, latents = source(pool, Shares(drawing=0.5), plain=1.0).at(0)
    for text, number in zip(texts, raw(pool, latents)):
        if number > DRAWN - 1:
            item = pool.items[round(float(number) - DRAWN)]
            assert text.startswith(item.name)
            assert ("style" in text) or item.style == "noto"
            assert item.split == "train"
        else:
            scene = pool.latents.scene(round(float(number)))
            assert ("style" in text) or scene.style in ("noto", "gradient")
            assert scene.event != "alone" or pool.vocabulary.name(scene.actors[0].concept, "en") in text


def test_the_houses_drawings_come_more_often(pool):
    texts, _ = source(pool, Shares(**dict.fromkeys(Shares().all(), 0.0) | {"drawing": 1.0}), unstyled=0.0).at(0)
    noto = sum("noto" in text for text in texts) / len(texts)
    before = sum(item.style == "noto" for item in pool.drawings("train")) / len(pool.drawings("train"))
    weighed = 4 * before / (4 * before + 1 - before)
    assert noto == pytest.approx(weighed, abs=0.12)


def test_some_captions_are_empty_or_foreign(pool):
    texts, _ = source(pool, empty=0.3).at(1)
    assert sum(not text for text in texts) / 400 == pytest.approx(0.3, abs=0.08)
    texts, _ = source(pool, foreign=1.0, languages=("de",)).at(1)
    assert sum("de" in text for text in texts) / 400 > 0.9


def test_what_was_appended_changes_no_unit(pool, words):
    more = SceneLatents(
        [*pool.latents.shards, np.full((1000, 2, 2, 2), 9e3, np.float16)], pool.latents.lines, pool.drawn
    )
    assert Pool.of(more, pool.items, words).channels == pool.channels


def test_a_folder_without_drawings_is_refused(pool, words):
    with pytest.raises(InputError, match="lacks drawings"):
        Pool.of(replace(pool.latents, drawings=None), pool.items, words)


def test_shares_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="no share may be below 0"):
        Shares(riding=-1.0)


def test_a_folded_autoencoder_draws_the_same_in_unit_latents():
    """Mean 0 and deviation 1 in every channel, the same pictures, the same distribution; 1e-5 of float32."""
    torch.manual_seed(0)
    config = VAEConfig(latent_channels=3, dims=(8, 8), layers=1, groups=2, scaling=0.3, shift=0.2, sample_size=16)
    vae = VAE(config).double().eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pictures = torch.rand(6, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.inference_mode():
        mean, spread = vae.distribution(pictures)
        channels = Channels.of(mean.numpy())
        folded = fold(vae.float(), channels).double()
        unit, unit_spread = folded.distribution(pictures)
        vae.double()
        assert folded.config.scaling == 1
        assert folded.config.shift == 0
        assert torch.allclose(unit.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-4)
        assert torch.allclose(unit.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
        assert torch.allclose(channels.apply(mean.numpy()).double(), unit, atol=1e-4)
        std = torch.tensor(channels.std)[:, None, None]
        assert torch.allclose(unit_spread, spread - 2 * std.log(), atol=1e-4)
        assert torch.allclose(folded.decode(folded.encode(pictures)), vae.decode(vae.encode(pictures)), atol=1e-4)
    with pytest.raises(ConfigError, match="latent_convs"):
        fold(VAE(replace(config, latent_convs=False)), channels)
