"""Files and folders are there whole or not at all, whatever happens in between."""

import os
from pathlib import Path

import pytest

from qkv.atomic import new_folder, write_file
from qkv.errors import CheckpointError, OutputError


def test_a_file_is_replaced_or_left(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "config.json"
    write_file(file, b"one")
    write_file(file, b"two")
    assert file.read_bytes() == b"two"
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_file(file / "below-a-file", b"")


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with new_folder(folder) as made:
        (made / "unet").mkdir()
        (made / "unet" / "config.json").write_text("{}")
        assert not folder.exists()
        assert made.parent == folder.parent  # else the renaming could be a copy
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert (folder / "unet" / "config.json").read_text() == "{}"


def breaking(folder: Path, error: BaseException) -> None:
    with new_folder(folder, replace=True) as made:
        (made / "new").write_bytes(b"new")
        raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (CheckpointError("broken"), CheckpointError),
        (OSError(28, "No space left"), OutputError),
    ],
)
def test_what_breaks_leaves_nothing_and_what_was_there_stays(
    tmp_path: Path, error: BaseException, expected: type[BaseException]
) -> None:
    write_file(tmp_path / "model" / "old", b"old")
    with pytest.raises(expected):
        breaking(tmp_path / "model", error)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_folder_that_is_there_is_replaced_only_where_that_is_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_file(folder / "old", b"old")
    with pytest.raises(OutputError, match="cannot write .*not empty.*; try"), new_folder(folder, advice="; try"):
        pass
    with new_folder(folder, replace=True) as made:
        (made / "new").write_bytes(b"new")
    assert os.listdir(folder) == ["new"]


def below_a_file(folder: Path) -> None:
    with new_folder(folder) as made:
        write_file(made / "file", b"")
        write_file(made / "file" / "below", b"")


def test_no_message_names_the_hidden_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as raised:
        below_a_file(tmp_path / "model")
    assert str(raised.value) == f"cannot write {tmp_path / 'model'}: File exists"
