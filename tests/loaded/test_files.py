"""A model's fingerprint is of what its files hold, every byte; its stamp is of their sizes and times."""

import os
import shutil
from pathlib import Path

import pytest

from qkv import untrusted
from qkv.loaded import files
from qkv.loaded.drawer import load_drawer
from qkv.loaded.files import fingerprint, stamp, weight_bytes
from qkv.loaded.where import Where


@pytest.fixture
def model(tmp_path: Path, home: Path) -> Path:
    """Some megabytes of weights, and what stands beside them."""
    folder = tmp_path / "model"
    for name in ("unet", "scheduler", "tokenizer"):
        (folder / name).mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(os.urandom(3 << 20))
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"steps_offset": 1}')
    (folder / "tokenizer" / "merges.txt").write_text("a b\n")
    return folder


@pytest.mark.parametrize("place", [0, 100_000, 1_500_000, (3 << 20) - 1])
def test_every_byte_of_the_weights_counts(model: Path, place: int) -> None:
    before, file = fingerprint(model), model / "unet" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "tokenizer/merges.txt", "model_index.json"])
def test_so_do_scheduler_and_tokenizer(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).write_text("{ }")
    assert fingerprint(model) != before


def test_a_file_more_or_of_another_name_counts(model: Path) -> None:
    found = {fingerprint(model)}
    (model / "unet" / "more.safetensors").write_bytes(b"")
    found.add(fingerprint(model))
    (model / "unet" / "more.safetensors").rename(model / "unet" / "other.safetensors")
    found.add(fingerprint(model))
    assert len(found) == 3


def test_copies_have_the_same(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    shutil.copytree(model, tmp_path / "copy")
    for name in ("README.md", "LICENSE", "source.json"):  # which say nothing about results
        (tmp_path / "copy" / name).write_text("text")
    assert fingerprint(tmp_path / "copy") == before
    assert len(before) == files.DIGITS


def test_large_files_are_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, digest = [], files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *given: read.append(1) or digest(*given))
    first = fingerprint(model)
    assert (fingerprint(model), len(read)) == (first, 1)
    file = model / "unet" / "weights.safetensors"
    status = file.stat()
    file.write_bytes(os.urandom(3 << 20))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had not been changed
    assert fingerprint(model) != first
    assert len(read) == 2


def test_a_data_home_that_cannot_be_written_costs_time_only(model: Path, tmp_path: Path, monkeypatch) -> None:
    first = fingerprint(model)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKV_HOME", str(tmp_path / "file"))
    assert fingerprint(model) == first


def test_broken_notes_are_not_believed(model: Path, home: Path) -> None:
    first = fingerprint(model)
    for note in (home / "hashes").iterdir():
        note.write_bytes(b"\xff" * 64)
    assert fingerprint(model) == first


def test_a_stamp_changes_with_the_files(model: Path) -> None:
    found = {stamp(model)}
    (model / "tokenizer" / "merges.txt").write_text("a bc\n")
    found.add(stamp(model))
    (model / "more.json").write_text("{}")
    found.add(stamp(model))
    assert len(found) == 3
    assert stamp(model, model) != stamp(model)


def test_of_several_formats_one_counts(model: Path) -> None:
    (model / "unet" / "weights.bin").write_bytes(bytes(5 << 20))
    assert weight_bytes(model) == 5 << 20
    assert weight_bytes(model, model / "unet") == 10 << 20


def test_other_weights_in_the_middle_are_another_model(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    where = Where(dtype="float32")
    assert load_drawer(other, where).fingerprint == load_drawer(tiny, where).fingerprint
    file = next((other / "unet").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert load_drawer(other, where).fingerprint != load_drawer(tiny, where).fingerprint


def test_each_file_is_read_once_for_a_picture(tiny, tmp_path, monkeypatch):
    """Of its many readers each asks the folder, which remembers."""
    read, real = list[str](), untrusted.parse_json
    monkeypatch.setattr(
        untrusted, "parse_json", lambda text, where, *more: read.append(where) or real(text, where, *more)
    )
    folder = shutil.copytree(tiny, tmp_path / "model")
    load_drawer(folder, Where(device="cpu", dtype="float32"))
    assert {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"} <= {
        str(Path(file).relative_to(folder)) for file in read
    }
    assert sorted(set(read)) == sorted(read)
