"""The data set: concepts, splits, and a whole build from small made-up packages."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.emblem import dataset, splits
from lab.emblem.concepts import TONES, base_of, gender_of, humanise, key_of, split_tone
from lab.emblem.dataset import build, load, notice, table
from lab.emblem.items import Item
from lab.emblem.raster import COLOURS
from qkv.errors import CheckpointError, NotFoundError
from qkv.fetch.npm import Package

SEED = 7


def item(row: int, style: str, base: str, **values: str) -> Item:
    blank = {"icon": "", "name": base, "group": "", "subgroup": "", "tone": "", "gender": "", "concept": base, **values}
    return Item(row=row, style=style, base=base, keywords=(), colours=("red",), split="train", weight=1.0, **blank)  # type: ignore[arg-type]


def world() -> list[Item]:
    """400 bases in six styles, 40 of them professions in six tones and three genders, and flags."""
    styles = ["noto", "flat", "3d", "blob", "twemoji", "firefox"]
    keys = [(style, f"thing{n}", "", "", "object") for style in styles for n in range(400)]
    looks = [(tone, gender) for tone in ("", *TONES.values()) for gender in ("", "man", "woman")]
    keys += [(s, f"job{n}", tone, gender, "person-role") for s in styles for n in range(40) for tone, gender in looks]
    keys += [(style, "flag", "", "", "country-flag") for style in styles for _ in range(200)]
    return [
        item(row, style, base, tone=tone, gender=gender, subgroup=subgroup, concept=f"{base}{gender}")
        for row, (style, base, tone, gender, subgroup) in enumerate(keys)
    ]


def test_splits_never_share_what_they_hold_out() -> None:
    items = splits.weigh(splits.assign(world(), SEED, {"firefox"}))
    groups = defaultdict(list)
    for one in items:
        groups[one.split].append(one)
    assert set(groups) == {"train", "validation", "test", "heldout_cell", "heldout_tone", "judge_style"}
    bases = {split: {one.base for one in group} for split, group in groups.items()}
    for held in ("validation", "test"):
        others = set().union(*(bases[split] for split in bases if split not in (held, "judge_style")))
        assert not bases[held] & others
    seen = groups["train"]
    assert not {(one.base, one.style) for one in groups["heldout_cell"]} & {(one.base, one.style) for one in seen}
    assert not {(one.base, one.tone) for one in groups["heldout_tone"]} & {(one.base, one.tone) for one in seen}
    assert bases["heldout_cell"] <= bases["train"]  # only the combination is new
    assert bases["heldout_tone"] <= bases["train"]
    assert {one.style for one in groups["judge_style"]} == {"firefox"}
    assert "flag" not in bases["test"] | bases["validation"] | bases["heldout_cell"]
    assert 0.02 < len(bases["test"]) / 440 < 0.08


def test_splits_do_not_depend_on_order_or_company() -> None:
    items = world()
    whole = {one.row: one.split for one in splits.assign(items, SEED, {"firefox"})}
    assert {one.row: one.split for one in splits.assign(items[::-1], SEED, {"firefox"})} == whole
    tests = [one for one in items if whole[one.row] == "test"]
    assert {one.split for one in splits.assign(tests, SEED, {"firefox"})} == {"test"}
    assert {one.row: one.split for one in splits.assign(items, SEED + 1, {"firefox"})} != whole


def test_weights_keep_tones_and_flags_rare() -> None:
    train = [one for one in splits.weigh(splits.assign(world(), SEED, {"firefox"})) if one.split == "train"]
    total = sum(one.weight for one in train)
    assert sum(one.weight for one in train if one.tone) / total == pytest.approx(0.10, abs=0.002)
    assert sum(one.weight for one in train if one.base == "flag") / total == pytest.approx(0.03, abs=0.002)


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        (("1F9D1-200D-1F692", "1F468-200D-1F692", "1F469-200D-1F692"), "people-body"),
        (("1F46E", "1F46E-200D-2642", "1F46E-200D-2640"), "people-body"),
        (("1F550", "1F55C", "1F567"), "travel-places"),
        (("1F1E9-1F1EA", "1F3F4-200D-2620"), "flags"),
        (("0031-20E3", "1F51F"), "symbols"),
        (("1F46A", "1F468-200D-1F469-200D-1F466", "1F9D1-200D-1F9D2"), "people-body"),
        (("1F491", "1F469-200D-2764-200D-1F469", "1F468-200D-2764-200D-1F468"), "people-body"),
        (("1F6B6", "1F6B6-200D-27A1", "1F6B6-200D-2640-200D-27A1"), "people-body"),
    ],
)
def test_variants_share_a_base(keys: tuple[str, ...], group: str) -> None:
    assert len({base_of(key, group) for key in keys}) == 1


def test_different_things_have_different_bases() -> None:
    keys = [
        "1F436",
        "1F415",
        "1F468-200D-1F692",
        "1F468-200D-1F52C",
        "1F491",
        "1F48F",
        "1F46A",
        "2640",
        "2642",
        "1F550",
    ]
    assert len({base_of(key, "people-body") for key in keys}) == len(keys)


def test_codes_and_labels() -> None:
    assert key_of("ae-fe0f") == "00AE"
    assert key_of("1f3f4-e0067_e0062") == key_of("1F3F4-E0067-E0062-E007F") == "1F3F4-E0067-E0062"
    assert split_tone("1f468-1f3fe-200d-1f692") == ("1F468-200D-1F692", "medium-dark")
    assert split_tone("1F469-1F3FB-200D-1F91D-200D-1F469-1F3FC")[1] is None
    assert split_tone("1F3FB") == ("1F3FB", "")
    assert (gender_of("1F469-200D-1F692"), gender_of("2640"), gender_of("1F436")) == ("woman", "", "")
    assert humanise("man: beard") == "man with beard"
    assert humanise("flag: Suriname") == "flag of Suriname"
    assert humanise("woman’s hat") == "woman's hat"


def test_the_table_pins_everything_and_is_not_share_alike() -> None:
    sources = (*table().sets, table().names)
    assert len({source.style for source in table().sets}) == len(table().sets)
    for source in sources:
        assert source.pin.folder
        assert "SA" not in source.licence
        for fact in (source.title, source.author, *source.licence.split("; "), source.url, source.version):
            assert fact in notice()


NAMES = {
    "en/data.json": [
        {"label": "dog face", "hexcode": "1F436", "tags": ["dog", "pet"], "group": 3, "subgroup": 34, "order": 1},
        {"label": "firefighter", "hexcode": "1F9D1-200D-1F692", "tags": ["fire"], "group": 1, "subgroup": 25,
         "order": 2, "skins": [{"label": "firefighter: dark skin tone", "hexcode": "1F9D1-1F3FF-200D-1F692"}]},
        {"label": "man firefighter", "hexcode": "1F468-200D-1F692", "tags": [], "group": 1, "subgroup": 25, "order": 3},
        {"label": "red heart", "hexcode": "2764-FE0F", "tags": ["love"], "group": 8, "subgroup": 14, "order": 4},
    ],
    "de/data.json": [{"label": "Hundegesicht", "hexcode": "1F436", "tags": ["Hund"], "group": 3}],
    "meta/groups.json": {
        "groups": {"1": "people-body", "3": "animals-nature", "8": "symbols"},
        "subgroups": {"34": "animal-mammal", "25": "person-role", "14": "heart"},
    },
    "meta/unicode-names.json": {"2764-FE0F": "HEAVY BLACK HEART"},
}  # fmt: skip
ICONS = {
    "width": 10,
    "height": 10,
    "icons": {
        "dog-face": {"body": '<circle cx="5" cy="5" r="4" fill="#a0643c"/>'},
        "heavyblackheart": {"body": '<circle cx="5" cy="5" r="3" fill="red"/>'},
        "man-firefighter": {"body": '<rect width="8" height="8" fill="#ffcc22"/>'},
        "firefighter": {"body": '<rect width="8" height="8" fill="#ffcc22"/>'},
        "firefighter-dark": {"body": '<rect width="8" height="8" fill="#5d4037"/>'},
        "people-wrestling": {"body": '<rect width="8" height="3" fill="#5d4037"/>'},
        "to-do": {"body": '<rect width="4" height="8" fill="blue"/>'},
        "nothing": {"body": "<g/>"},
        "asterisk": {"body": '<rect width="8" height="8" fill="#fafafa"/>'},
        "outdated": {"body": '<rect width="4" height="8" fill="blue"/>', "hidden": True},
    },
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where `fetch` finds two made-up sets and made-up names."""
    packages = tmp_path / "packages"
    for name, content in NAMES.items():
        path = packages / table().names.package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for code, animals in (("en", "animals & nature"), ("de", "Tiere")):
        words = [(1, "people & body"), (3, animals), (8, "symbols")]
        messages = {"groups": [{"order": n, "message": word} for n, word in words],
                    "skinTones": [{"key": "dark", "message": f"dark {code}"}]}  # fmt: skip
        (packages / table().names.package / code / "messages.json").write_text(json.dumps(messages))
    shortcodes = packages / table().names.package / "en" / "shortcodes"
    shortcodes.mkdir()
    for one in ("cldr", "emojibase", "emojibase-legacy", "joypixels", "iamcal", "github"):
        (shortcodes / f"{one}.json").write_text("{}")
    flat, solid = (icons for icons in table().sets if icons.style in ("flat", "3d"))
    (packages / flat.package).mkdir(parents=True)
    (packages / flat.package / "icons.json").write_text(json.dumps(ICONS))
    pair = "1f9d1-1f3fb-200d-1faef-200d-1f9d1-1f3fc"
    (packages / flat.package / "chars.json").write_text(json.dumps({pair: "people-wrestling"}))
    (packages / solid.package / "assets").mkdir(parents=True)
    Image.new("RGBA", (64, 64), "green").save(packages / solid.package / "assets" / "1f436.webp", lossless=True)
    monkeypatch.setattr(dataset, "table", lambda: replace(small, sets=(flat, solid)))
    small = table()
    monkeypatch.setattr(dataset, "fetch", lambda package, cache: packages / package.name)
    return tmp_path / "home"


def test_a_whole_build(home: Path) -> None:
    folder = build(home, progress=False)
    data = load(home)
    tinted = load(home, tinted=True).items[6:]
    assert data.pictures.shape == (6 + len(tinted), 128, 128, 3)
    assert data.pictures.dtype == np.uint8
    assert isinstance(data.pictures, np.memmap)
    found = {(one.style, one.icon): one for one in data.items}
    # Man and person are one picture, which shows a person; "nothing" and "asterisk" are blank; "outdated" is hidden;
    # the wrestlers have two tones.
    assert [one.row for one in data.items] == list(range(6))
    assert set(found) == {("3d", "1f436"), *(("flat", name) for name in
                          ("dog-face", "heavyblackheart", "firefighter", "firefighter-dark", "to-do"))}  # fmt: skip
    dog = found["flat", "dog-face"]
    assert (dog.concept, dog.name, dog.keywords, dog.colours) == ("1F436", "dog face", ("dog", "pet"), ("brown",))
    assert (dog.group, dog.subgroup, dog.words["de"].name) == ("animals & nature", "animal-mammal", "Hundegesicht")
    assert found["3d", "1f436"].concept == "1F436"
    assert found["flat", "heavyblackheart"].name == "red heart"
    dark = found["flat", "firefighter-dark"]
    assert (dark.concept, dark.tone, dark.name, dark.tones["de"]) == (
        "1F9D1-200D-1F692",
        "dark",
        "firefighter",
        "dark de",
    )
    assert (found["flat", "to-do"].concept, found["flat", "to-do"].name) == ("name:to-do", "to do")
    assert data.pictures[dog.row, 64, 64].tolist() == pytest.approx([0xA0, 0x64, 0x3C], abs=2)
    assert data.pictures[dog.row, 0, 0].tolist() == [255, 255, 255]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert build(home, progress=False) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert {one.name for one in tinted} == set(COLOURS)
    assert [one.row for one in tinted] == list(range(6, 6 + len(tinted)))
    assert next(one for one in tinted if one.name == "red").words["de"].name == "rot"
    assert sorted(first) == ["NOTICE", "items.jsonl", "manifest.json", "pictures.npy", "words.json"]


def test_an_interrupted_build_leaves_no_data_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(home, progress=False)
    assert {path.name for path in (home / "data").iterdir()} == {"drawn"}
    with pytest.raises(NotFoundError, match="run: python -m lab data emblem"):
        load(home)


def test_a_damaged_data_set_is_named(home: Path) -> None:
    folder = build(home, progress=False)
    lines = (folder / "items.jsonl").read_text().splitlines()
    (folder / "items.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(CheckpointError, match=rf"for {len(lines) - 1} items; run: python -m lab data emblem"):
        load(home)
    (folder / "items.jsonl").write_text("{}")
    with pytest.raises(CheckpointError, match="is broken"):
        load(home)


def test_without_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKV_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"no emblem data set in .*; run: python -m lab data emblem"):
        load()
    assert isinstance(table().names.pin, Package)
