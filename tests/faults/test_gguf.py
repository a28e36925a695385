"""Broken and hostile GGUF files: each is refused in one line, at once, without memory."""

import os
import random
import struct
from pathlib import Path

import pytest

from qkv.errors import CheckpointError
from qkv.weights.gguf import open_gguf
from qkv.weights.quantised import dequantise


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def number(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + items


def tensor(name: str, sizes: list[int], kind: int = 0, begin: int = 0, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, begin)


def packed(
    keys: dict[str, bytes] | list[tuple[str, bytes]] = (),  # type: ignore[assignment]
    tensors: list[bytes] = (),  # type: ignore[assignment]
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    pairs = list(keys.items()) if isinstance(keys, dict) else list(keys)
    counts = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts)
    header += b"".join(text(key) + value for key, value in pairs) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


TWO_63, TWO_64 = 1 << 63, (1 << 64) - 1
FLOATS = bytes(128)

# name -> (the file's bytes, a piece of the reason)
HOSTILE = {
    "empty": (b"", "4 bytes are announced"),
    "four bytes": (b"GGUF", "4 bytes are announced"),
    "not GGUF": (b"PK\3\4" + bytes(99), "begins with"),
    "GGML of old": (b"lmgg" + bytes(99), "begins with"),
    "version 1": (packed(version=1), "version 1"),
    "version 4": (packed(version=4), "version 4"),
    "big-endian": (packed(version=3 << 24), "big-endian"),
    "2^64 keys": (packed(counts=(0, TWO_64)), "keys and"),
    "2^64 tensors": (packed(counts=(TWO_64, 0)), "tensors; at most"),
    "4,000 keys that are not there": (packed(counts=(0, 4000)), "the file ends"),
    "10,000 tensors that are not there": (packed(counts=(10_000, 0)), "the file ends"),
    "a key's length of 2^63": (packed(counts=(0, 1))[:24] + struct.pack("<Q", TWO_63) + bytes(64), "announced"),
    "a text of 2^63 bytes": (packed({"a": struct.pack("<IQ", 8, TWO_63)}), "announced"),
    "a text of 2^64 - 1 bytes": (packed({"a": struct.pack("<IQ", 8, TWO_64)}), "announced"),
    "a text that is not UTF-8": (packed({"a": struct.pack("<I", 8) + text(b"\xff")}), "codec"),
    "a key of 2,000 letters": (packed({"a" * 2000: number(1)}), "characters"),
    "a key that is not UTF-8": (packed(counts=(0, 1))[:24] + text(b"\xff") + number(1), "codec"),
    "a key twice": (packed([("a", number(1)), ("a", number(2))]), "twice"),
    "an unknown type": (packed({"a": struct.pack("<II", 99, 1)}), "unknown type 99"),
    "a truth of 2": (packed({"a": struct.pack("<IB", 7, 2)}), "truth"),
    "truths of 2": (packed({"a": array(7, 2, b"\1\2")}), "truth"),
    "an array of 2^63 bytes": (packed({"a": array(0, TWO_63)}), "items"),
    "an array of 2^61 doubles": (packed({"a": array(12, 1 << 61)}), "items"),
    "10^6 texts that are not there": (packed({"a": array(8, 1_000_000)}), "no room"),
    "10^6 numbers that are not there": (packed({"a": array(12, 1_000_000)}), "announced"),
    "2^20 texts, the last too long": (
        packed({"a": array(8, 1000, text("") * 999 + struct.pack("<Q", TWO_63))}),
        "announced",
    ),
    "an array of arrays": (packed({"a": array(9, 1, array(4, 1, bytes(4))[4:])}), "array of arrays"),
    "arrays nested 10^5 deep": (packed({"a": struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000}), "arrays"),
    "an array of an unknown type": (packed({"a": array(77, 1, bytes(99))}), "unknown type 77"),
    "alignment 0": (packed({"general.alignment": number(0)}), "power of two"),
    "alignment 3": (packed({"general.alignment": number(3)}), "power of two"),
    "alignment 2^31": (packed({"general.alignment": number(1 << 31)}), "power of two"),
    "alignment is a text": (packed({"general.alignment": struct.pack("<I", 8) + text("32")}), "power of two"),
    "alignment is an array": (packed({"general.alignment": array(4, 1, bytes(4))}), "power of two"),
    "a tensor past the end": (packed([], [tensor("a", [32], begin=128)], FLOATS), "ends at byte"),
    "a tensor far past the end": (packed([], [tensor("a", [32], begin=1 << 62)], FLOATS), "ends at byte"),
    "a tensor of nothing but a header": (packed([], [tensor("a", [32])]), "ends at byte 128 of 0"),
    "a tensor that wraps around": (packed([], [tensor("a", [32], begin=TWO_64 - 31)], FLOATS), "ends at byte"),
    "a tensor twice": (packed([], [tensor("a", [8]), tensor("a", [8], begin=32)], FLOATS), "twice"),
    "overlap": (packed([], [tensor("a", [16]), tensor("b", [16], begin=32)], FLOATS), "overlaps"),
    "the same place": (packed([], [tensor("a", [8]), tensor("b", [8])], FLOATS), "overlaps"),
    "not aligned": (packed([], [tensor("a", [8], begin=4)], FLOATS), "not aligned"),
    "2^64 numbers": (packed([], [tensor("a", [1 << 32, 1 << 32])], FLOATS), "ends at byte"),
    "2^256 numbers": (packed([], [tensor("a", [TWO_64] * 4)], FLOATS), "ends at byte"),
    "no numbers": (packed([], [tensor("a", [0, 8])], FLOATS), "rows of"),
    "no dimensions": (packed([], [tensor("a", [])], FLOATS), "dimensions"),
    "five dimensions": (packed([], [tensor("a", [1] * 5)], FLOATS), "dimensions"),
    "2^32 - 1 dimensions": (packed([], [tensor("a", [1], dimensions=(1 << 32) - 1)], FLOATS), "dimensions"),
    "an unknown format": (packed([], [tensor("a", [32], kind=12345)], FLOATS), "unknown format 12345"),
    "a format that is gone": (packed([], [tensor("a", [32], kind=4)], FLOATS), "unknown format 4"),
    "two bits a number": (packed([], [tensor("a", [256], kind=10)], FLOATS), "stored as Q2_K"),
    "half a block": (packed([], [tensor("a", [16], kind=8)], FLOATS), "rows of 16"),
    "a row of a block and a half": (packed([], [tensor("a", [48, 2], kind=8)], FLOATS), "rows of 48"),
    "a tensor's name of 2^63": (packed(counts=(1, 0))[:24] + struct.pack("<Q", TWO_63) + bytes(64), "announced"),
    "a safetensors file": (struct.pack("<Q", 2) + b"{}", "begins with"),
}

GOOD = packed(
    {"general.alignment": number(32), "a": struct.pack("<I", 8) + text("b"), "c": array(8, 2, text("d") + text("e"))},
    [tensor("a", [8, 2]), tensor("b", [32], kind=8, begin=64)],
    bytes(range(64)) + bytes(34),
)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, refusals):
    """What came of every hostile file, and by its path."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [folder / f"{i}.gguf" for i in range(len(HOSTILE))]
    for path, (data, _) in zip(paths, HOSTILE.values()):
        path.write_bytes(data)
    (folder / "good").write_bytes(GOOD)
    found = refusals("from qkv.weights.gguf import open_gguf as run", str(folder / "good"), map(str, paths))
    assert "torch" not in found.modules
    return found, dict(zip(HOSTILE, zip(paths, found.counts, found.reasons)))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_refused_at_once(name: str, refused) -> None:
    path, steps, reason = refused[1][name]
    assert str(path) in reason
    assert HOSTILE[name][1] in reason
    assert "\n" not in reason
    assert len(reason) < 400 + len(str(path))
    assert steps < 1000 + 4 * path.stat().st_size


def test_hostile_headers_take_no_memory(refused) -> None:
    assert refused[0].growth < 4 << 20


def test_good_counterpart_is_accepted(tmp_path: Path) -> None:
    """The parts that the files above are made of are fine by themselves."""
    (tmp_path / "a").write_bytes(GOOD)
    found = open_gguf(tmp_path / "a")
    assert found.metadata == {"general.alignment": 32, "a": "b", "c": ["d", "e"]}
    assert {name: (blocks.kind, blocks.shape) for name, blocks in found.tensors.items()} == {
        "a": ("F32", (2, 8)),
        "b": ("Q8_0", (32,)),
    }


def read_or_refuse(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        for blocks in open_gguf(path).tensors.values():
            dequantise(blocks)
    except CheckpointError:
        return False
    return True


def test_truncation_everywhere(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        assert not read_or_refuse(tmp_path / "a", GOOD[:length]), length
    assert read_or_refuse(tmp_path / "a", GOOD)


def test_a_thousand_bit_flips(tmp_path: Path) -> None:
    header = len(GOOD) - 64 - 34
    draw = random.Random(0)
    accepted = 0
    for i in range(1000):
        bit = draw.randrange(8 * (len(GOOD) if i % 2 else header))
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        read = read_or_refuse(tmp_path / "a", bytes(flipped))
        assert read or bit // 8 < header
        accepted += read and bit // 8 < header
    # A flipped letter of a name or of a text is a header as good as any.
    assert 0 < accepted < 500


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_gguf(path)
    for name in ("nothing", "a\0b", "x" * 300):
        with pytest.raises(CheckpointError, match="cannot read"):
            open_gguf(tmp_path / name)


def test_a_file_that_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    path = tmp_path / "a.gguf"
    path.write_bytes(GOOD)
    original = mmap.mmap

    def replaced(*args: object, **kwargs: object) -> mmap.mmap:
        (tmp_path / "b").write_bytes(GOOD)
        os.replace(tmp_path / "b", path)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("qkv.weights.gguf.mmap.mmap", replaced)
    with pytest.raises(CheckpointError, match="changed while"):
        open_gguf(path)
