"""safetensors files against the safetensors package: what one writes the other reads, and nothing it refuses passes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch as package
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.errors import CheckpointError, OutputError
from qkv.weights.files import DTYPES, open_tensors, release, save_tensors

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__")


@st.composite
def tensor_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    tensors = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = torch.Size(shape).numel() * dtype.itemsize
        data = draw(st.lists(st.integers(0, 1 if dtype == torch.bool else 255), min_size=count, max_size=count))
        tensors[name] = torch.tensor(data, dtype=torch.uint8).view(dtype).reshape(shape)
    return tensors


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Comparable bit by bit, NaNs and all."""
    plain = {name: tensor.contiguous().reshape(-1).view(torch.uint8) for name, tensor in tensors.items()}
    return {name: (t.dtype, tuple(t.shape), plain[name].numpy().tobytes()) for name, t in tensors.items()}


@quick
@given(tensor_dicts())
def test_bytes_are_those_of_the_package(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors)
    assert path.read_bytes() == package.save(tensors, {"format": "pt"})
    assert bits(open_tensors(path)) == bits(tensors)


@quick
@given(tensor_dicts(), st.dictionaries(NAMES, NAMES, max_size=3))
def test_reads_the_package(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(package.save(tensors, metadata or None))  # {} and no tensors: its own reader refuses that
    assert bits(open_tensors(path)) == bits(tensors)
    save_tensors(path, tensors, metadata or None)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == (metadata or {"format": "pt"})


GOOD = package.save({"a": torch.arange(6.0).reshape(2, 3), "b.ü": torch.arange(5), "c": torch.tensor(True)}, {"k": "v"})


@settings(quick, max_examples=500)
@given(st.data())
def test_what_the_package_refuses_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of a good header replaced, removed and put in; whatever passes must mean the same to the package."""
    mutated = bytearray(GOOD[8:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        new = data.draw(
            st.sampled_from([b"", b" ", b"0", b"1", b"9", b"-", b",", b'"', b"{", b"}", b"[", b"]", b"\\", b"\xff"])
        )
        mutated[at : at + data.draw(st.integers(0, 1))] = new
    header = int.from_bytes(GOOD[:8], "little") + len(mutated) - len(GOOD[8:])
    raw = header.to_bytes(8, "little") + bytes(mutated)
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    try:
        ours = open_tensors(path)
    except CheckpointError:
        return
    assert bits(ours) == bits(package.load(raw))


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_other_writers_spellings(tmp_path: Path) -> None:
    """Spaces, another order of the fields and escaped letters are JSON too."""
    header = (
        b'{ "\\u0061\\"b" :\n{"data_offsets": [ 0 , 4 ], "shape":[ 2, 1 ] ,\t"dtype":"I16" } , "__metadata__":{ } }  '
    )
    tensors = open_tensors(raw_file(tmp_path / "a.safetensors", header, b"\1\0\2\0"))
    assert list(tensors) == ['a"b']
    assert tensors['a"b'].tolist() == [[1], [2]]


@pytest.mark.parametrize("pad", range(9))
def test_data_of_old_writers_may_be_unaligned(tmp_path: Path, pad: int) -> None:
    entry = {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}
    data = torch.arange(3, dtype=torch.float64)
    text = json.dumps({"a": entry}).encode() + b" " * pad
    assert open_tensors(raw_file(tmp_path / "a", text, data.numpy().tobytes()))["a"].equal(data)


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3), "b": torch.zeros(5000), "c": torch.ones(3)})
    before = path.read_bytes()
    tensors = open_tensors(path)
    tensors["a"].fill_(7)
    tensors["c"].fill_(7)
    release(tensors["b"])  # not the pages that it shares with its neighbours
    assert tensors["a"].eq(7).all()
    assert tensors["b"].eq(0).all()
    assert tensors["c"].eq(7).all()
    assert path.read_bytes() == before


def test_release_of_other_tensors_does_nothing() -> None:
    tensor = torch.ones(100_000)
    release(tensor)
    release(torch.empty(0))
    assert tensor.eq(1).all()


def test_strides_do_not_matter(tmp_path: Path) -> None:
    picture = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    save_tensors(tmp_path / "a.safetensors", {"a": picture, "b": picture[0, 0].t()})
    read = package.load_file(tmp_path / "a.safetensors")
    assert read["a"].equal(picture)
    assert read["b"].equal(picture[0, 0].t())


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    read_header = sys.modules["qkv.weights.files"]._read_header

    def replaced_meanwhile(*arguments: object) -> object:
        found = read_header(*arguments)
        save_tensors(path, {"a": torch.ones(3)})
        return found

    monkeypatch.setattr("qkv.weights.files._read_header", replaced_meanwhile)
    with pytest.raises(CheckpointError, match="changed while"):
        open_tensors(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel stops the write in the middle
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save_tensors(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_may_be_written_but_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save_tensors(tmp_path / "no" / "a.safetensors", {"a": torch.zeros(3)})


PEAK = """
import sys, torch
torch.set_num_threads(1)
with torch.device("meta"):
    module = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(int(sys.argv[3])))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
start = peak()
from qkv.weights.files import open_tensors
from qkv.weights.load import load_weights
tensors = open_tensors(sys.argv[1])
opened = peak() - start
load_weights(module, tensors, dtype=getattr(torch, sys.argv[2]), check_finite=True)
for parameter in module.parameters():
    assert parameter.device.type == "cpu" and parameter.dtype == getattr(torch, sys.argv[2])
    parameter.sum()
print(opened, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")]
)
def test_peak_memory_is_the_size_of_the_file(tmp_path: Path, stored: str, wanted: str) -> None:
    """Converted tensors too: what was mapped for them is dropped one by one, else the last case would take twice."""
    dtype = getattr(torch, stored)
    count = (64 << 20) // (dtype.itemsize << 20)
    path = tmp_path / "a.safetensors"
    save_tensors(path, {f"{i}.weight": torch.ones(1024, 1024, dtype=dtype) for i in range(count)})
    command = [sys.executable, "-c", PEAK, str(path), wanted, str(count)]
    opened, loaded = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert opened < 6 << 20  # the modules' code
    assert loaded < 1.15 * path.stat().st_size
