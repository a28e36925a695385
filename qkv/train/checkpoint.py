"""Training states on disk: a checkpoint is a folder that exists whole or not at all.

    RUN/checkpoints/00001000/model.safetensors      one file a group of tensors
                             ema.safetensors
                             optimizer.safetensors
                             state.json             step, configuration, SHA-256 of the files

A save is whole or not at all (qkv/atomic.py), so that whatever kills the process leaves the previous checkpoint as
it was; hidden leftovers go with the next save. No pickle is
written or read. A run folder has one trainer at a time (`lock`). POSIX only: `flock` and folder renames.
Left out: sharded states of several processes (torch's distributed checkpoint does that).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv.atomic import new_folder
from qkv.errors import CheckpointError, InputError, NotFoundError, OutputError

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `load` read: groups of named tensors (on the CPU) and the facts saved beside them."""

    path: Path
    step: int
    groups: dict[str, Tensors]
    facts: dict[str, Any]


def save(run: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint of `step` and drop all but the newest `keep`; returns its folder.

    Raises OutputError where the disk is full or read-only; the checkpoints before are then untouched.
    """
    room = run / "checkpoints"
    final = room / f"{step:08d}"
    try:
        room.mkdir(parents=True, exist_ok=True)
        clean(room)
        if final.exists():  # everything is a function of the step: this state is on the disk already
            return final
        with new_folder(final) as made:
            files = {}
            for name, tensors in groups.items():
                file = made / f"{name}.safetensors"
                save_file(_separate(tensors), file)
                files[name] = _digest(file)
            state = json.dumps({"step": step, "files": files, "facts": facts}, indent=1)
            (made / "state.json").write_text(state, encoding="utf-8")
        for old in _complete(run)[:-keep]:
            old.rename(room / f".{old.name}.old")  # a half-deleted folder must not look like a checkpoint
        clean(room)
    except (OSError, SafetensorError) as error:
        kept, reason = newest(run), error.__cause__ if isinstance(error, OutputError) else error
        raise OutputError(
            f"cannot save step {step} in {room}: {reason}; make room there and resume from {kept or 'the start'}"
        ) from error
    return final


def load(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, every file checked against its SHA-256; None where there is none.

    Raises CheckpointError that names a file that is missing or was changed.
    """
    path = newest(run)
    if path is None:
        return None
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        groups = {}
        for name, digest in state["files"].items():
            file = path / f"{name}.safetensors"
            if _digest(file) != digest:
                raise CheckpointError(
                    f"{file} was changed after it was saved; delete {path} to resume from the one before"
                )
            groups[name] = load_file(file)
        return Checkpoint(path=path, step=state["step"], groups=groups, facts=state["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a training checkpoint ({error}); delete it to resume from the one before"
        ) from error


def mean_weights(run: Path, count: int) -> Tensors:
    """The mean of the weights in the newest `count` checkpoints, or as many as there are: "Attention Is All You Need"
    (1706.03762), section 6.1. Raises NotFoundError, CheckpointError.
    """
    paths = _complete(run)[-count:]
    if not paths:
        raise NotFoundError(f"{run} holds no checkpoint yet")
    try:
        states = [load_file(path / "model.safetensors") for path in paths]
        return {name: sum((state[name] for state in states[1:]), states[0][name]) / len(states) for name in states[0]}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"cannot average the checkpoints of {run}: {error}") from error


def newest(run: Path) -> Path | None:
    """The folder of the newest complete checkpoint, or None."""
    return next(reversed(_complete(run)), None)


def clean(room: Path) -> None:
    """Remove what a killed process left half-written in `room`; only for the holder of the run's lock."""
    for leftover in room.glob(".*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run folder, made where missing; InputError where another process trains in it.

    The kernel drops a `flock` with its holder, whatever killed it: there are no stale locks to judge by
    process ids, which mean nothing across containers. The id in the file is for the message only.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write in {run}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{run} is in use by {holder}; wait, stop it, or train in another folder") from error
        except OSError as error:
            raise OutputError(f"cannot lock {run}: {error.strerror}; train on a local disk") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _complete(run: Path) -> list[Path]:
    return sorted((path for path in run.glob("checkpoints/*") if path.name.isdigit()), key=lambda path: int(path.name))


def _separate(tensors: Mapping[str, Tensor]) -> Tensors:
    """Each tensor dense and in a storage of its own, as the format wants it (tied weights, channels-last)."""
    separate: Tensors = {}
    storages = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().contiguous()
        if dense.untyped_storage().data_ptr() in storages:
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        separate[name] = dense
    return separate


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
