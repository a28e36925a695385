"""Retrieval of held-out concepts: who knows them finds them, who guesses is at chance, errors count concepts."""

import json

import numpy as np
import pytest

from lab import cli
from lab.emblem import dataset
from lab.emblem.dataset import EmblemData
from lab.measure import retrieval as clip
from lab.measure.retrieval import LANGUAGES, clustered, measure, table


class Oracle:
    """Knows each concept by number: a picture's vector is that of the texts that name it, in some languages."""

    def __init__(self, data: EmblemData, knows: tuple[str, ...]) -> None:
        held = [item for item in data.items if item.split == "test" and not item.tone]
        self.bases = sorted({item.base for item in held})
        self.named = {item.name: item.base for item in held if "en" in knows}
        self.named |= {item.words[code].name: item.base for item in held for code in LANGUAGES if code in knows}
        self.at = {data.pictures[item.row].tobytes(): item.base for item in held}
        self.name = "oracle"

    def vector(self, base: str | None) -> np.ndarray:
        one = np.zeros(len(self.bases) + 1, np.float32)
        one[-1 if base is None else self.bases.index(base)] = 1
        return one

    def see(self, image):
        return self.vector(self.at[np.asarray(image).tobytes()])

    def embed_pixels(self, seen):
        return np.stack(seen)

    def embed_texts(self, texts):
        found = [self.named.get(text.partition(", ")[0].partition("，")[0]) for text in texts]
        return type("Read", (), {"vectors": np.stack([self.vector(base) for base in found])})


def test_who_knows_finds_and_who_guesses_does_not(world):
    result = measure(Oracle(world, ("en", "de")), world)
    assert [result[name]["r1"]["value"] for name in ("all", "en", "de", "fr", "zh-hant")] == [1, 1, 1, 0, 0]
    assert result["all"]["r5"] == {"value": 1, "noise": 0}
    held = {item.base for item in world.items if item.split == "test"}
    assert result["all"]["concepts"] == len(held)
    assert result["all"]["chance"] == {"r1": 1 / len(held), "r5": 5 / len(held)}
    assert result["all"]["pictures"] == sum(item.split == "test" and not item.tone for item in world.items)


def test_a_random_model_is_at_chance(world, tiny_clip):
    embedder = clip.load_clip_embedder(tiny_clip, dtype="float32")
    result = measure(embedder, world)
    for row in result.values():
        assert row["r1"]["value"] <= row["chance"]["r1"] + 4 * row["r1"]["noise"] + 0.1


def test_the_error_counts_concepts():
    """Ten equal pictures of a concept say no more than one."""
    hits = np.array([True, False, True, True, False, False])
    once = clustered(hits, [str(i) for i in range(6)])
    tenfold = clustered(hits.repeat(10), [str(i // 10) for i in range(60)])
    assert once.value == tenfold.value == 0.5
    assert once.noise == pytest.approx(tenfold.noise)
    assert once.noise == pytest.approx(hits.std(ddof=1) / 6**0.5)


def test_the_table(world):
    result = {"model": "oracle", "dtype": "float32"} | measure(Oracle(world, ("en",)), world)
    lines = table(result).splitlines()
    assert "oracle" in lines[0]
    assert lines[3].split()[:5] == ["all,", "asked", "in", "en", str(result["all"]["pictures"])]
    assert "100.0 ± 0.0 %" in lines[3]
    assert len(lines) == 3 + 1 + 4


def test_the_command(world, tiny_clip, monkeypatch, capsys, home):
    monkeypatch.setattr(dataset, "load", lambda: world)
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", "clip", "--model", str(tiny_clip), *options])
        assert ended.value.code == 0
    *_, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["all"]["concepts"] == result["de"]["concepts"]
    assert result["dtype"] == "float32"


def test_no_data_set(home, tiny_clip, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "clip", "--model", str(tiny_clip)])
    assert ended.value.code == 2
    assert "run: python -m lab data emblem" in capsys.readouterr().err
