"""Our reader and our block formats against the gguf package, which wrote the files and opens them too."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.weights.gguf import open_gguf
from qkv.weights.quantised import KINDS, Blocks, dequantise


def their_numbers(kind: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3), blocks=st.integers(1, 4))
def test_blocks_stand_for_the_same_bits(kind: str, seed: int, rows: int, blocks: int) -> None:
    """Any bytes are blocks; NaN and infinite scales too."""
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks * KINDS[kind].bytes), np.uint8)
    ours = dequantise(Blocks(kind, (rows, blocks * KINDS[kind].numbers), data.reshape(-1)))
    theirs = their_numbers(kind, data)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    known = ~np.isnan(theirs)  # which of the many NaN it is may differ
    assert np.array_equal(known, ~np.isnan(ours))
    assert np.array_equal(ours[known].view(np.uint32), theirs[known].view(np.uint32))


def test_more_blocks_than_are_opened_at_once() -> None:
    data = np.random.default_rng(0).integers(0, 100, (9000, 34), np.uint8)
    ours = dequantise(Blocks("Q8_0", (9000, 32), data.reshape(-1)))
    assert np.array_equal(ours, their_numbers("Q8_0", data))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_blocks_are_close_to_what_went_in(kind: str) -> None:
    numbers = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    data = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    step = {"4": 1 / 6, "5": 1 / 12, "8": 1 / 100}.get(kind[1], 1 / 100)
    ours = dequantise(Blocks(kind, (4, 64), data.view(np.uint8).reshape(-1)))
    assert np.abs(ours - numbers).max() < step * np.abs(numbers).max()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Every type of metadata, and tensors of several kinds and shapes."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        **{"uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31)},
        **{"uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True},
    }
    for kind, number in numbers.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", number)
    writer.add_string("test.string", "naïve\n狗")
    writer.add_array("test.texts", ["a", "", "▁b"])
    writer.add_array("test.ints", [1, 2, 3])
    writer.add_array("test.floats", [0.5, -1.0])
    writer.add_array("test.bools", [True, False])
    draw = np.random.default_rng(0)
    writer.add_tensor("vector", draw.standard_normal(5, np.float32))
    writer.add_tensor("matrix", draw.standard_normal((3, 4), np.float32).astype(np.float16))
    blocks = gguf.quants.quantize(draw.standard_normal((6, 64), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("cube", draw.standard_normal((2, 3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check(path: Path) -> None:
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    fields = {key: value.contents() for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, value in fields.items():
        found = ours.metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value, key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        blocks = ours.tensors[tensor.name]
        assert blocks.kind == tensor.tensor_type.name
        assert blocks.shape == tuple(tensor.shape.tolist()[::-1])
        expected = their_numbers(blocks.kind, np.array(tensor.data).view(np.uint8)).reshape(blocks.shape)
        assert np.array_equal(dequantise(blocks), expected)


def test_everything_is_read(file: Path) -> None:
    check(file)


def test_version_2_is_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4] = 2
    file.write_bytes(data)
    check(file)


def test_another_alignment(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for i in range(3):
        writer.add_tensor(f"t{i}", np.arange(7 + i, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check(path)


def test_tensors_are_mapped_and_read_only(file: Path) -> None:
    blocks = open_gguf(file).tensors["blocks"]
    assert not blocks.data.flags.writeable
    assert not blocks.data.flags.owndata
    assert blocks.rows.shape == (6, 40)
    with pytest.raises(TypeError):
        open_gguf(file).metadata["test.int8"] = 1  # type: ignore[index]


def test_rows_are_taken_without_opening_blocks(file: Path) -> None:
    tensors = open_gguf(file).tensors
    order = np.array([4, 0, 0, 5])
    taken = tensors["blocks"].take(order)
    assert (taken.kind, taken.shape) == ("Q4_1", (4, 64))
    assert np.array_equal(dequantise(taken), dequantise(tensors["blocks"])[order])
    part = tensors["blocks"].take(slice(2, 5))
    assert np.array_equal(dequantise(part), dequantise(tensors["blocks"])[2:5])
    assert np.shares_memory(part.data, tensors["blocks"].data)
    vector = tensors["vector"].take(np.array([3, 1]))
    assert np.array_equal(dequantise(vector), dequantise(tensors["vector"])[[3, 1]])
