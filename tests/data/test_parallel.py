"""Line-aligned files, plain and compressed, and those that are not."""

import gzip

import pytest

from qkv.data.parallel import Pair, read_pairs, write_pairs
from qkv.errors import InputError, NotFoundError

PAIRS = [Pair("one", "eins"), Pair("two\u2028three", "zwei drei")]  # not every separator ends a line


def test_there_and_back(tmp_path):
    write_pairs(tmp_path, "train", "en", "de", PAIRS)
    assert read_pairs(tmp_path, "train", "en", "de") == PAIRS
    assert read_pairs(tmp_path, "train", "de", "en") == [Pair(b, a) for a, b in PAIRS]


def test_compressed_and_empty_lines(tmp_path):
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(b"one\n\n  three \n"))
    (tmp_path / "val.de").write_bytes(b"eins\r\nzwei\r\ndrei\r\n")
    assert read_pairs(tmp_path, "val", "en", "de") == [Pair("one", "eins"), Pair("three", "drei")]


def test_unequal(tmp_path):
    write_pairs(tmp_path, "train", "en", "de", PAIRS)
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(InputError, match="train.en has 2 lines and train.de has 1"):
        read_pairs(tmp_path, "train", "en", "de")


def test_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="train.en"):
        read_pairs(tmp_path, "train", "en", "de")


@pytest.mark.parametrize(
    ("name", "data"), [("train.en", b"\xff\xfe\xff"), ("train.en.gz", b"no gzip"), ("train.en.gz", b"")]
)
def test_no_text(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "train.de").write_text("x\n")
    if data:
        with pytest.raises(InputError, match="train.en"):
            read_pairs(tmp_path, "train", "en", "de")
