"""Checkpoints: what is saved is read back, the newest few are kept, broken ones are named."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import CheckpointError, InputError, NotFoundError
from qkv.train.checkpoint import load, lock, mean_weights, newest, save

GROUPS = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "ema": {"w": torch.ones(2, 3)}}


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    assert newest(tmp_path) is None
    with pytest.raises(NotFoundError, match="no checkpoint yet"):
        mean_weights(tmp_path, 3)


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 7, GROUPS, {"config": {"lr": 0.1}, "window": [0.1, 1 / 3]}, keep=2)
    read = load(tmp_path)
    assert read is not None
    assert (read.path, read.step, read.facts) == (path, 7, {"config": {"lr": 0.1}, "window": [0.1, 1 / 3]})
    assert torch.equal(read.groups["model"]["w"], GROUPS["model"]["w"])
    assert torch.equal(read.groups["ema"]["w"], GROUPS["ema"]["w"])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
    transposed=st.booleans(),
)
def test_every_kind_of_tensor(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: torch.dtype, transposed: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    tensor = (torch.randn(shape) * 3).to(dtype)
    if transposed and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    tensors = {"one": tensor, "tied": tensor, "part": tensor.flatten()[:1]}
    save(run, 1, {"model": tensors}, {}, keep=1)
    read = load(run)
    assert read is not None
    for name, given_ in tensors.items():
        back = read.groups["model"][name]
        assert back.dtype == given_.dtype
        assert torch.equal(back, given_)


def test_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    room = tmp_path / "checkpoints"
    (room / ".00000003.partial").mkdir(parents=True)
    (room / ".00000003.partial" / "model.safetensors").write_bytes(b"half")
    for step in (1, 2, 10, 9):
        save(tmp_path, step, GROUPS, {}, keep=2)
    assert sorted(path.name for path in room.iterdir()) == ["00000009", "00000010"]
    assert newest(tmp_path) == room / "00000010"


def test_saving_a_step_again_keeps_it(tmp_path: Path) -> None:
    assert save(tmp_path, 1, GROUPS, {}, keep=2) == save(tmp_path, 1, GROUPS, {}, keep=2)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "state", "not json", "list"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 3, GROUPS, {}, keep=2)
    file, state = path / "model.safetensors", path / "state.json"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-5])
    elif damage == "missing":
        file.unlink()
    elif damage == "state":
        state.unlink()
    else:
        state.write_text({"not json": "{", "list": "[]"}[damage])
    with pytest.raises(CheckpointError, match="00000003"):
        load(tmp_path)


def test_a_lock_in_the_same_process(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(InputError, match=r"is in use by process \d+ since 20\d\d-"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_a_stale_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 since 2020-01-01 00:00:00\n")
    with lock(tmp_path):
        assert "process 1 " not in (tmp_path / "lock").read_text()
