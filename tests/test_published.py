"""One table a kind of published file: what its columns do with a key, with `null`, and with a key that nobody knows."""

from dataclasses import dataclass

import pytest

from qkv.errors import ConfigError
from qkv.published import Keys


@dataclass(frozen=True)
class Config:
    dim: int = 4
    tied: bool | None = None


TABLE = Keys(
    fields={"hidden_size": "dim", "tie": "tied"},
    read={"rope"},
    fixed={"norm": ("rms", "rms2"), "flip": (True,), "skip": (False, True)},
    harmless={"dropout"},
    absent={"hidden_size": 8, "tie": True},
)


def test_fields():
    assert TABLE.ours({}) == {"dim": 8, "tied": True}
    assert TABLE.ours({"hidden_size": 16, "tie": False, "rope": 3, "dropout": 1, "new": 2}) == {
        "dim": 16,
        "tied": False,
    }


def test_null_is_absent_and_off_for_a_switch():
    assert TABLE.ours({"hidden_size": None, "norm": None, "skip": None}) == {"dim": 8, "tied": True}
    assert TABLE.ours({"tie": None}) == {"dim": 8, "tied": False}
    with pytest.raises(ConfigError, match="flip=False is not supported; it must be True"):
        TABLE.ours({"flip": None})


def test_what_cannot_be_honoured_is_refused():
    with pytest.raises(ConfigError, match="norm='layer' is not supported; it must be 'rms' or 'rms2'"):
        TABLE.ours({"norm": "layer"})


def test_what_nobody_knows_is_named():
    known = {"hidden_size": 1, "rope": 1, "norm": "rms", "dropout": 1, "dtype": "x", "_class_name": "y"}
    assert TABLE.unknown(known, "config.json") == []
    assert TABLE.unknown(known | {"gate": None}, "config.json") == []
    (warning,) = TABLE.unknown(known | {"gate": 0, "new\nline": 1}, "unet/config.json")
    assert warning.startswith("unknown-keys: unet/config.json has gate, new line; ")
    (warning,) = TABLE.unknown({f"k{i}": i for i in range(20)}, "config.json")
    assert "k7 and 12 more" in warning


def test_an_export_says_what_the_import_said():
    published = {"hidden_size": 16, "norm": "rms2", "dropout": 0.5, "gate": 3, "rope": {}, "dtype": "x", "_v": 1}
    assert TABLE.kept(published) == {"norm": "rms2", "dropout": 0.5, "gate": 3}
    written = TABLE.published(Config(dim=16)) | TABLE.kept(published)
    expected = {"hidden_size": 16, "tie": None, "norm": "rms2", "flip": True, "skip": False}
    assert written == expected | {"dropout": 0.5, "gate": 3}
