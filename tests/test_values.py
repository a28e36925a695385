"""Values as programs have them: numpy's and PyTorch's numbers, arrays, dtypes, lists, and None for the default."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkv.config import plain
from qkv.device import find_device, find_dtype
from qkv.errors import ConfigError, InputError, QkvError
from qkv.fetch.pull import find
from qkv.loaded.where import Where
from qkv.pictures.request import Request
from qkv.tasks.chat import ChatRequest, as_messages
from qkv.tasks.complete import CompleteRequest
from qkv.tasks.draw import draw
from qkv.writing.options import Options

NUMBERS = [True, -1, 10**5000, 1.5, float("nan"), Decimal(1), 1j, np.int64(3), np.float32(0.5), np.float64("nan")]
TEXTS = ["x", "\ud800", b"x", np.str_("x"), Path("x")]
SEVERAL = [[], [1], (), ("a", 2), {}, {"a": 1}, {1}, range(3), np.arange(3), np.array([]), torch.tensor([1.5])]
OTHERS = [None, object(), np.bool_(True), np.array(2), torch.tensor(3), torch.float16, torch.device("cpu"), len, int]
ODD: list[Any] = [*NUMBERS, *TEXTS, *SEVERAL, *OTHERS, np.float32, torch.nn.Identity()]


def test_what_is_pythons_own_stays():
    kept = object()
    for value in (None, 1, 1.5, "x", Path("x"), kept, int, np.float32):
        assert plain(value) is value
    assert plain([np.int64(1), [np.float32(0.5)]]) == (1, (0.5,))
    assert plain({np.int64(1): np.float32(0.5), "type": ["a"]}) == {1: 0.5, "type": ["a"]}
    assert (plain(torch.float16), plain(torch.device("cuda:0")), plain(np.array([[1]]))) == (
        "float16",
        "cuda:0",
        ([1],),
    )
    assert [type(plain(x)) for x in (np.int8(1), np.float16(1), np.bool_(1), torch.tensor(1))] == [
        int,
        float,
        bool,
        int,
    ]


def test_numbers_of_numpy_and_lists_are_taken():
    options = Options(
        max_tokens=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stop=["a", "b"],
        logit_bias={np.int64(3): np.float32(1)},
        n=None,  # type: ignore[arg-type]
    )
    assert options == Options(max_tokens=5, temperature=0.5, seed=2**64 - 1, stop=("a", "b"), logit_bias={3: 1.0})
    assert type(options.max_tokens) is int
    request = Request(prompts=["a"], seeds=np.array([3]), size=[64, 32], steps=np.int32(2), guidance=np.float64(3))  # type: ignore[arg-type]
    assert request == Request(prompts=("a",), seeds=(3,), size=(64, 32), steps=2, guidance=3.0)
    assert CompleteRequest(prompt=torch.tensor([1, 2])) == CompleteRequest(prompt=(1, 2))  # type: ignore[arg-type]
    assert Where(device=torch.device("cpu"), dtype=torch.float16, threads=np.int64(2)) == Where(  # type: ignore[arg-type]
        device="cpu", dtype="float16", threads=2
    )
    assert Where(device=None, dtype=None) == Where()  # type: ignore[arg-type]
    assert find_device(torch.device("cpu")).type == "cpu"
    assert find_dtype(torch.float16, torch.device("cpu")) is torch.float16
    assert find_dtype(None, torch.device("cpu")) is find_dtype("auto", torch.device("cpu"))


def test_a_memory_is_a_size():
    for given in (1 << 31, "2G", "2 GiB", np.int64(1 << 31), Where(memory="2048m").memory):
        assert Where(memory=given).pool == 1 << 31  # type: ignore[arg-type]
    assert Where().pool is None
    for odd in (-1, True, 1.5, "much", "1e9", ""):
        with pytest.raises(ConfigError, match="memory=.* is no size; give bytes, or such as 500M or 2G"):
            Where(memory=odd)  # type: ignore[arg-type]


def test_draw_takes_them(tiny):
    given = {"count": np.int64(1), "seed": np.array([5]), "steps": np.int16(2), "size": [32, 32], "eta": None}
    one = draw(["a dog"], model=tiny, device=torch.device("cpu"), dtype=torch.float32, **given)  # type: ignore[arg-type]
    other = draw("a dog", model=tiny, seed=5, steps=2, size=(32, 32), device="cpu", dtype="float32", count=None)
    assert one[0].image.tobytes() == other[0].image.tobytes()
    assert one[0].settings == other[0].settings


FIELDS: dict[str, Callable[[Any], object]] = {
    **{f"Options.{name}": lambda value, name=name: Options(**{name: value}) for name in Options.__dataclass_fields__},
    **{
        f"Request.{name}": lambda value, name=name: Request(**{"prompts": ("a",)} | {name: value})
        for name in Request.__dataclass_fields__
    },
    "complete": lambda value: CompleteRequest(prompt=value),
    "suffix": lambda value: CompleteRequest(prompt="a", suffix=value),
    "messages": as_messages,
    "message": lambda value: as_messages([{"role": "user", "content": value}]),
    "role": lambda value: as_messages([{"role": value, "content": "a"}]),
    "chat": lambda value: ChatRequest(messages=as_messages("a"), options=Options(stop=value)),
    "prompt": lambda value: draw(value, model="no such model"),
    "negative": lambda value: draw("a", negative=value, model="no such model"),
    "seed": lambda value: draw("a", seed=value, model="no such model"),
    "model": lambda value: find(value, offline=True),
    "device": find_device,
    "dtype": lambda value: find_dtype(value, torch.device("cpu")),
    "memory": lambda value: Where(memory=value),
}


@pytest.mark.parametrize("name", FIELDS)
def test_nothing_ends_in_a_bare_error(name):
    """Each is taken or refused in one line; no TypeError, whatever a program gives."""
    for value in ODD:
        try:
            FIELDS[name](value)
        except QkvError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 1000  # noqa: PT017


def test_a_wrong_value_is_named():
    with pytest.raises(InputError, match="prompt=5 is not a text"):
        draw(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"seed=1\.5 is not a whole number"):
        draw("a", seed=1.5)  # type: ignore[arg-type]
