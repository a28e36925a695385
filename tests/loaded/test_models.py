"""The models in memory: each once, whoever asks; within the budget; none freed that is used; none out of date."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import qkv
from qkv.errors import BusyError, CheckpointError, ConfigError
from qkv.loaded import memory
from qkv.loaded.files import weight_bytes
from qkv.loaded.models import Models, What
from qkv.loaded.where import Where

CPU = Where(device="cpu", dtype="float32")


class Paper:
    """A model of `bytes`."""

    def __init__(self, size: int) -> None:
        self.bytes = size


class Shelf:
    """Models on disk, and how often each was read."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.read = folder, list[str]()
        self.models = Models(lambda device: budget)

    def put(self, name: str, size: int = 10) -> Path:
        """The folder of a model, made if need be."""
        folder = self.folder / name
        if not folder.is_dir():
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(bytes(size))
        return folder

    def get(self, name: str, *, size: int = 10, real: int | None = None, where: Where = CPU, wait: float = 0) -> Paper:
        folder = self.put(name, size)

        def load() -> Paper:
            self.read.append(name)
            time.sleep(wait)
            return Paper(size if real is None else real)

        return self.models.get(What("paper", folder), where, load)

    @property
    def here(self) -> list[str]:
        return [each.name for each in self.models.loaded()]


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[[int], Shelf]:
    return lambda budget=100: Shelf(tmp_path, budget)


def at_once(count: int, run: Callable[[int], object]) -> list[object]:
    """What `run` gives to threads that all begin at the same moment."""
    start = threading.Barrier(count)

    def wait(number: int) -> object:
        start.wait(10)
        return run(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait, range(count), timeout=30))


def test_first_calls_at_once_load_one_model(shelf):
    shelf = shelf()
    shelf.put("a")
    found = at_once(8, lambda _: shelf.get("a", wait=0.2))
    assert len(set(map(id, found))) == 1
    assert shelf.read == ["a"]


def test_different_models_load_at_the_same_time(shelf):
    shelf = shelf()
    both = threading.Barrier(2)

    def load() -> Paper:
        both.wait(10)  # breaks if the other waits for us
        return Paper(10)

    def get(number: int) -> Paper:
        return shelf.models.get(What("paper", shelf.put(str(number))), CPU, load)

    assert len(set(map(id, at_once(2, get)))) == 2


def test_threads_share_one_copy_and_dtypes_and_pools_do_not(shelf):
    shelf = shelf()
    assert shelf.get("a", where=Where(device="cpu", dtype="float32", threads=2)) is shelf.get("a")
    assert shelf.get("a", where=Where(device="cpu", dtype="bfloat16")) is not shelf.get("a")
    assert shelf.get("a", where=replace(CPU, memory="2K")) is shelf.get("a", where=replace(CPU, memory=2048))
    assert shelf.read == ["a", "a", "a"]


def test_the_one_used_longest_ago_goes(shelf):
    shelf = shelf(30)
    for name in ("a", "b", "c", "a", "d"):
        shelf.get(name)
    assert shelf.here == ["c", "a", "d"]
    shelf.get("b")
    assert shelf.read == ["a", "b", "c", "d", "b"]


def test_what_is_used_never_goes(shelf):
    shelf = shelf(30)
    held = shelf.get("a")
    for name in ("b", "c", "d", "e"):
        shelf.get(name)
    assert shelf.get("a") is held
    assert [each.used for each in shelf.models.loaded()] == [False, False, True]
    more = [shelf.get(name) for name in ("b", "c")]
    with pytest.raises(BusyError, match="d has 10 bytes, and models in use take 30 bytes of 30 bytes; try again later"):
        shelf.get("d")
    del more
    assert shelf.get("d").bytes == 10
    del held
    assert "a" in shelf.here


def test_a_ring_of_references_is_no_use(shelf):
    shelf = shelf(20)
    gc.disable()
    try:
        for name in "abc":
            model = shelf.get(name)
            model.ring = [model]
            del model
    finally:
        gc.enable()
    assert shelf.here == ["b", "c"] or shelf.here == ["c"]


def test_a_model_that_never_fits_is_refused(shelf):
    shelf = shelf(30)
    shelf.get("a")
    with pytest.raises(ConfigError, match="QKV_MEMORY"):
        shelf.get("large", size=31)
    assert shelf.here == ["a"]
    assert shelf.read == ["a"]


def test_a_model_larger_than_its_files(shelf):
    shelf = shelf(40)
    for name in ("a", "b", "c"):
        shelf.get(name)
    large = shelf.get("large", size=10, real=25)
    assert shelf.here == ["c", "large"]
    assert large.bytes == 25


def test_a_changed_file_is_another_model(shelf):
    shelf = shelf(20)
    first = shelf.get("a")
    (shelf.folder / "a" / "model.safetensors").write_bytes(bytes(9))
    second = shelf.get("a", size=9)
    assert second is not first
    assert shelf.get("a") is second
    assert sorted(each.bytes for each in shelf.models.loaded()) == [9, 10]  # somebody still uses the old one
    with pytest.raises(BusyError):
        shelf.get("b")
    del first
    assert [each.bytes for each in shelf.models.loaded()] == [9]
    shelf.get("b")


def test_unloading(shelf):
    shelf = shelf()
    held = shelf.get("a")
    shelf.get("b")
    assert [each.name for each in shelf.models.unload(shelf.folder / "b")] == ["b"]
    assert shelf.here == ["a"]
    assert [each.name for each in shelf.models.unload()] == ["a"]
    assert shelf.here == ["a"]  # it is used, but
    assert shelf.get("a") is not held  # found no more
    del held
    assert shelf.models.unload("nothing") == []
    assert len(shelf.models.unload()) == 1
    assert shelf.here == []


def test_a_failure_fails_each_and_leaves_nothing(shelf):
    shelf = shelf()
    (shelf.folder / "bad").mkdir()
    tried = []

    def load() -> Paper:
        tried.append(1)
        time.sleep(0.05)
        raise CheckpointError("broken")

    def get(_: int) -> str:
        with pytest.raises(CheckpointError, match="broken") as caught:
            shelf.models.get(What("paper", shelf.folder / "bad"), CPU, load)
        return str(caught.value)

    assert at_once(4, get) == ["broken"] * 4
    assert len(tried) == 4
    assert shelf.here == []
    shelf.get("whole", size=100)  # no room stays taken


def test_many_threads_many_models(shelf):
    """Whatever happens at once, nobody's model goes while it is used, and no more is taken than may be."""
    shelf = shelf(60)
    for name in "abcdefghi":
        shelf.get(name)

    def run(number: int) -> int:
        refused = 0
        for turn in range(60):
            name = "abcdefghi"[(number * 5 + turn * (number + 1)) % 9]
            try:
                model = shelf.get(name)
            except BusyError:
                refused += 1
                continue
            assert sum(each.bytes for each in shelf.models.loaded()) <= 60
            assert shelf.get(name) is model
            del model
        return refused

    assert sum(at_once(5, run)) == 0  # five hold a model each
    shelf.models.unload()
    assert shelf.here == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("123", 123), ("2K", 2048), ("1.5G", 3 << 29), ("8g", 8 << 30), ("500 MiB", 500 << 20), ("1TB", 1 << 40)],
)
def test_the_budget_is_what_the_environment_says(text, expected, monkeypatch):
    monkeypatch.setenv("QKV_MEMORY", text)
    assert memory.budget("cpu") == expected


@pytest.mark.parametrize("text", ["much", "-1", "8GG", "1e9", "8 G B", "nan"])
def test_a_size_that_is_none(text, monkeypatch):
    monkeypatch.setenv("QKV_MEMORY", text)
    with pytest.raises(ConfigError, match="QKV_MEMORY=.* is no size; give bytes, or such as 500M or 2G"):
        memory.budget("cpu")


def test_by_default_it_is_a_share_of_what_there_is(monkeypatch):
    monkeypatch.delenv("QKV_MEMORY", raising=False)
    assert 0 < memory.budget("cpu") < memory.total("cpu")


# With models.


def test_what_is_here(tiny, tiny_decoder):
    qkv.unload()
    assert qkv.loaded() == []
    held = qkv.load(tiny, dtype="float32")
    qkv.complete("the", model=tiny_decoder, max_tokens=1, threads=2)
    qkv.complete("the", model=tiny_decoder, max_tokens=1, threads=1)
    found = {each.kind: each for each in qkv.loaded()}
    assert set(found) == {"pictures", "text"}
    assert len(qkv.loaded()) == 2
    assert found["pictures"].used and not found["text"].used  # noqa: PT018
    size = sum(file.stat().st_size for file in Path(tiny).rglob("*.safetensors"))
    assert size / 2 < found["pictures"].bytes < 2.5 * size
    assert [each.kind for each in qkv.unload(tiny_decoder)] == ["text"]
    assert [each.kind for each in qkv.unload(tiny)] == ["pictures"]
    assert held.size
    del held
    assert qkv.loaded() == []


def test_a_budget_makes_room(tiny, tiny_decoder, monkeypatch):
    qkv.unload()
    qkv.draw("a dog", model=tiny, steps=1, dtype="float32")
    qkv.complete("the", model=tiny_decoder, max_tokens=1)
    kinds = [each.kind for each in qkv.loaded()]
    assert kinds == ["pictures", "text"]
    monkeypatch.setenv("QKV_MEMORY", str(weight_bytes(tiny) + 1000))
    qkv.draw("a dog", model=tiny, steps=1, dtype="bfloat16")
    assert "float32" not in {each.dtype for each in qkv.loaded()}
    monkeypatch.setenv("QKV_MEMORY", "1K")
    with pytest.raises(ConfigError, match="models may take 1,024 bytes of memory; set QKV_MEMORY to more"):
        qkv.draw("a dog", model=tiny, steps=1, dtype="float16")


def test_first_pictures_at_once_read_the_model_once(tiny, monkeypatch):
    from qkv.loaded import drawer

    read, real = [], drawer.load_latent_diffusion
    monkeypatch.setattr(drawer, "load_latent_diffusion", lambda *a, **o: read.append(1) or real(*a, **o))
    qkv.unload()
    drawn = at_once(6, lambda _: qkv.draw("a dog", model=tiny, steps=1, seed=1)[0].image.tobytes())
    assert len(set(drawn)) == 1
    assert len(read) == 1
