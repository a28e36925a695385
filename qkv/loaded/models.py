"""The models in memory, by what they are and where they compute: each once, within a budget of bytes.

    get(What("fill", folder), Where(device="cpu", dtype="float32"), load)

Whoever comes first loads, others who want the same wait for it; different models load at the same time. If there is no
room, the one goes whose last use is longest ago. A model is in use as long as anybody holds what `get` gave, and never
goes then; nobody has to say when he is done. A model whose files changed is another one.

A forked child starts empty: the parent's threads did not come along, and its models would wait for them.
"""

import gc
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qkv import registry
from qkv.errors import BusyError, ConfigError
from qkv.loaded import memory
from qkv.loaded.files import stamp, weight_bytes
from qkv.loaded.where import Where


class Loadable(Protocol):
    """What is kept: a model with all that its folder says about using it."""

    @property
    def bytes(self) -> int:
        """The memory that it takes now."""


M = TypeVar("M", bound=Loadable)


@dataclass(frozen=True)
class What:
    """A model: what it is for, the folder or file that it is made of, and folders of others that it shares."""

    kind: str
    path: Path
    beside: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.beside)


@dataclass(frozen=True)
class Loaded:
    """A model in memory, for showing it. `used`: somebody holds it, so it stays."""

    name: str
    kind: str
    path: Path
    device: str
    dtype: str
    bytes: int
    used: bool


Key = tuple[What, Where]


@dataclass(eq=False)
class _Slot:
    """The place of one model."""

    key: Key
    stamp: str
    loading: threading.Lock = field(default_factory=threading.Lock)  # whoever has it loads
    expected: int = 0  # bytes, while it is loaded
    model: Any = None
    left: weakref.ref[Any] | None = None  # instead of `model` once nobody is to find it any more

    @property
    def device(self) -> str:
        return self.key[1].device

    @property
    def here(self) -> Any:
        """The model, if it is in memory."""
        return self.model if self.left is None else self.left()

    @property
    def bytes(self) -> int:
        here = self.here
        return self.expected if here is None else here.bytes

    @property
    def used(self) -> bool:
        """Whether anybody else holds the model."""
        return self.left is not None or sys.getrefcount(self.model) > 2  # ours, and that of the question

    def free(self, *, rings: bool) -> bool:
        """Lets the model go, which is in memory; False if it outlives that: then somebody uses it, and it stays. With
        `rings` also one that only a ring of references holds."""
        here = weakref.ref(self.model)
        self.model = None
        if rings and here() is not None:
            gc.collect()
        self.model = here()
        return self.model is None


class Models:
    """`budget` says how many bytes may be taken on a device."""

    def __init__(self, budget: Callable[[str], int] = memory.budget) -> None:
        self._budget = budget
        self._slots: OrderedDict[Key, _Slot]  # the latest use last
        self._leaving: list[_Slot]  # out of date or unloaded, and somebody may hold them yet
        self.begin()

    def begin(self) -> None:
        """Nothing is here. What was is neither found nor freed: in a forked child, freeing might wait for threads that
        only the parent has."""
        self._abandoned = vars(self).get("_slots"), vars(self).get("_leaving")
        self._lock = threading.RLock()  # of the two lists below; never held while something is read
        self._slots, self._leaving = OrderedDict(), []

    def get(self, what: What, where: Where, load: Callable[[], M]) -> M:
        """The model, as `load` makes it, unless it is here. It stays for as long as the caller holds it, at least.

        Raises what `load` does, BusyError if models in use leave no room, ConfigError if there never is.
        """
        key, now = (what, replace(where, threads=None)), stamp(*what.paths)
        while True:
            slot = self._slot(key, now)
            with slot.loading:
                with self._lock:
                    found: M | None = slot.model
                    gone = self._slots.get(key) is not slot  # it failed, or had to go, while we waited
                if found is not None:
                    return found
                if not gone:
                    return self._load(slot, load)

    def _slot(self, key: Key, now: str) -> _Slot:
        with self._lock:
            slot = self._slots.get(key)
            if slot is None or slot.stamp != now:
                self._leave(slot)
                self._slots[key] = slot = _Slot(key, now)
            self._slots.move_to_end(key)
            return slot

    def _load(self, slot: _Slot, load: Callable[[], M]) -> M:
        try:
            self._make_room(slot)
            model = load()
        except BaseException:
            with self._lock:
                slot.expected = 0
                if self._slots.get(slot.key) is slot:
                    del self._slots[slot.key]
            raise
        with self._lock:
            slot.model, slot.expected = model, 0
            self._shrink(slot.device, self._budget(slot.device))  # it may be larger than its files
        memory.give_back()
        return model

    def _make_room(self, slot: _Slot) -> None:
        what, device = slot.key[0], slot.device
        need, most = weight_bytes(*what.paths), self._budget(device)
        if need > most:
            raise ConfigError(
                f"{what.path.name} has {memory.readable(need)}; models may take {memory.readable(most)} of memory; "
                "set QKV_MEMORY to more"
            )
        with self._lock:
            taken = self._shrink(device, most - need)
            if taken + need > most:
                raise BusyError(
                    f"{what.path.name} has {memory.readable(need)}, and models in use take {memory.readable(taken)} of "
                    f"{memory.readable(most)}; try again later, or set QKV_MEMORY to more"
                )
            slot.expected = need

    def _shrink(self, device: str, most: int) -> int:
        """Lets models go, the least recently used first, until `most` bytes are taken, or all that are here are in use.

        Gives how many are taken.
        """
        for rings in (False, True):
            for slot in [slot for slot in self._slots.values() if slot.device == device and slot.model is not None]:
                if self._taken(device) <= most:
                    break
                if slot.free(rings=rings):
                    del self._slots[slot.key]
        return self._taken(device)

    def _taken(self, device: str) -> int:
        return sum(slot.bytes for slot in self._all() if slot.device == device)

    def _all(self) -> Iterator[_Slot]:
        self._leaving = [slot for slot in self._leaving if slot.here is not None]
        yield from (*self._leaving, *self._slots.values())

    def _leave(self, slot: _Slot | None) -> None:
        """Nobody finds the model any more; it is freed once nobody uses it."""
        if slot is not None:
            self._slots.pop(slot.key, None)
            if slot.model is not None:
                slot.left = weakref.ref(slot.model)
                slot.model = None
                self._leaving.append(slot)

    def loaded(self) -> list[Loaded]:
        """What is in memory, the least recently used first."""
        with self._lock:
            return [_shown(slot) for slot in self._all() if slot.here is not None]

    def unload(self, model: str | Path | None = None) -> list[Loaded]:
        """Frees the model of that name or at that path, None: all; gives what was found. What somebody holds is freed
        when he lets it go, and is not found any more from now on."""
        place = None if model is None else (registry.here(model) or Path(model)).absolute()
        with self._lock:
            chosen = [slot for slot in self._slots.values() if slot.model is not None and _is(slot, place)]
            found = [_shown(slot) for slot in chosen]
            for slot in chosen:
                self._leave(slot)
        gc.collect()
        memory.give_back()
        return found


def _is(slot: _Slot, place: Path | None) -> bool:
    path = slot.key[0].path
    return place is None or place == path or place in path.parents


def _shown(slot: _Slot) -> Loaded:
    what, where = slot.key
    return Loaded(what.path.name, what.kind, what.path, where.device, where.dtype, slot.bytes, slot.used)


_models = Models()
get, loaded, unload = _models.get, _models.loaded, _models.unload
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_models.begin)
