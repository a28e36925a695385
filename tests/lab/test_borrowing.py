"""What a text without a picture borrows: pictures of the names nearest to it, in one style, the nearer the more."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.emblem.captions import Mix
from lab.emblem.items import Item, Words
from lab.train import borrowing
from lab.train.batches import Draw
from lab.train.borrowing import LENDERS, TEMPERATURE, Borrowed, Borrowers
from lab.train.draft import Batches, Draft, Drafter, Drafts, errors
from lab.train.latents import Captioned, Source
from qkv.errors import InputError
from qkv.models.clip import TextConfig, TextTower
from qkv.text.tokenizer import train_tokenizer

DEGREES = {"beaver": 0, "badger": 10, "dog": 25, "wolf": 30, "otter": 2, "sofa": 175, "justice": 95, "under": 270}


def unit(degrees: float) -> list[float]:
    angle = np.deg2rad(degrees)
    return [float(np.cos(angle)), float(np.sin(angle))]


def item(row: int, name: str, style: str, tone: str = "") -> Item:
    return Item(
        row=row, style=style, icon=name, concept=name, base=name, name=name, keywords=("wet",),
        group="animals", subgroup="", tone=tone,
        gender="", colours=(), split="train", weight=1.0, words={"de": Words("Tier", (), "")},
    )  # fmt: skip


ITEMS = [
    item(0, "beaver", "flat"), item(1, "badger", "flat"), item(2, "dog", "flat"), item(3, "wolf", "flat"),
    item(4, "beaver", "3d"), item(5, "dog", "3d"), item(6, "badger", "flat", "dark"),
]  # fmt: skip


@pytest.fixture
def borrowers(monkeypatch: pytest.MonkeyPatch) -> Borrowers:
    monkeypatch.setattr(borrowing, "wordnet_texts", lambda synsets: ["otter", "sofa", "justice"][:synsets])
    monkeypatch.setattr(
        borrowing, "vectors", lambda teacher, texts, progress: np.array([unit(DEGREES[t]) for t in texts], np.float16)
    )
    return Borrowers.of(ITEMS, Path("teacher"), 3)


def test_what_is_near_to_nothing_borrows_nothing(borrowers: Borrowers) -> None:
    assert borrowers.texts == ["otter"]
    with pytest.raises(InputError, match="no text of synsets=3 is near the name of a picture"):
        Borrowers.of([item(0, "under", "flat")], Path("teacher"), 3)


def test_the_nearest_lend_in_one_style(borrowers: Borrowers) -> None:
    rng = random.Random(0)
    loans = [borrowers.pick(rng) for _ in range(200)]
    assert Counter(loan.item.style for loan in loans).keys() == {"flat", "3d"}
    for loan in loans:
        assert loan.item.name == "otter"
        assert not loan.item.words  # no beaver's German
        assert len(loan.rows) <= LENDERS
        assert loan.shares.sum() == pytest.approx(1)
        names = {"flat": ["beaver", "badger", "dog"], "3d": ["beaver", "dog"]}[loan.item.style]
        assert [ITEMS[row].name for row in loan.rows] == names
        assert not any(ITEMS[row].tone for row in loan.rows)
        cosines = [np.cos(np.deg2rad(DEGREES[name] - DEGREES["otter"])) for name in names]
        ratios = np.exp((np.array(cosines) - cosines[0]) / TEMPERATURE)
        np.testing.assert_allclose(loan.shares / loan.shares[0], ratios, rtol=0.03)  # vectors are float16


LATENTS = np.random.default_rng(0).normal(size=(7, 3, 4, 4)).astype(np.float16)


def captioned(items: list[Item]) -> Captioned:
    return Captioned(LATENTS, items, Draw.of(range(7), [1.0] * 7, 4, 0), Mix(foreign=0, unstyled=0))


def batches(*sources: Source, context: int) -> Batches:
    drafts = Drafts.of(torch.from_numpy(LATENTS).float(), torch.ones(7), components=5, patch=2)
    tokenizer = train_tokenizer(["a wet otter, 3d style, flat style"] * 3, 600)
    return Batches(sources, drafts, tokenizer, context)


def test_a_batch_wants_of_a_text_what_its_lenders_show(borrowers: Borrowers) -> None:
    pictures, texts = captioned(ITEMS), Borrowed(LATENTS, borrowers, 3, 0, seed=0)
    made = batches(pictures, texts, context=16)
    ids, wanted = made(0)
    assert ids.shape == (7, 16)
    rng = random.Random(0)  # whatever chance picks: a mean of these rows' drafts, for drafts are linear
    loans = {tuple(loan.rows): loan for loan in (borrowers.pick(rng) for _ in range(50))}.values()
    shown = [torch.tensordot(torch.from_numpy(loan.shares), made.drafts(latents(loan.rows)).whole, 1) for loan in loans]
    for row in wanted.whole[4:]:
        assert min(float((row - mean).abs().max()) for mean in shown) < 1e-2
    seen = made.drafts(latents(pictures.draw.at(0)))
    torch.testing.assert_close(wanted.whole[:4], seen.whole)
    torch.testing.assert_close(wanted.patches[:4], seen.patches)


def latents(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(LATENTS[rows].astype(np.float32))


def test_captions_longer_than_a_draft_still_end() -> None:
    endless = [replace(item, name=" ".join(["otter"] * 40)) for item in ITEMS]
    made = batches(captioned(endless), context=8)
    ids, wanted = made(0)
    end = made.tokenizer.end
    assert ids.shape == (4, 8)
    assert (ids[:, -1] == end).all()
    config = TextConfig(vocab=600, context=12, dim=16, layers=1, heads=2, ffn_dim=24, start=0, end=end, pad=end)
    drafter = Drafter(TextTower(config), components=5, patches=4, patch_dim=12, begin=4)
    with torch.no_grad():
        found = errors(drafter, drafter.text, ids, Draft(wanted.whole, wanted.patches))
    assert all(error.isfinite().all() for error in found)
