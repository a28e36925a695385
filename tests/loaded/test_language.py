"""Which way a language model computes: compiled kernels for what a file holds, PyTorch where it is asked for."""

import pytest

from qkv.engine.native_runner import NativeRunner
from qkv.engine.torch_runner import TorchRunner
from qkv.errors import ConfigError
from qkv.kernels import build, library
from qkv.loaded.language import load_language
from qkv.loaded.models import unload
from qkv.tasks.complete import complete

native = pytest.mark.skipif(build.available() is not None, reason=str(build.available()))


@native
@pytest.mark.parametrize("dtype", ["auto", "int8", "int4"])
def test_a_folder_runs_on_the_kernels(tiny_decoder, dtype):
    language = load_language(tiny_decoder, dtype=dtype, threads=1)
    assert isinstance(language.engine.runner, NativeRunner)
    assert not language.warnings


def test_a_named_dtype_runs_in_pytorch(tiny_decoder):
    assert isinstance(load_language(tiny_decoder, dtype="float32", device="cpu").engine.runner, TorchRunner)


@native
def test_both_ways_write_the_same(tiny_decoder):
    texts = {
        dtype: complete("the name of", model=tiny_decoder, dtype=dtype, max_tokens=24).text
        for dtype in ("auto", "float32")
    }
    assert texts["auto"] == texts["float32"]
    assert texts["auto"]


def test_without_kernels_pytorch_does_and_says_so(tiny_decoder, monkeypatch):
    def absent(*_: object) -> None:
        raise build.KernelError("no C++ compiler is here")

    monkeypatch.setattr(library, "functions", absent)
    unload(tiny_decoder)
    language = load_language(tiny_decoder, threads=2)
    assert isinstance(language.engine.runner, TorchRunner)
    assert language.warnings == ("slow: the compiled kernels do not run here: no C++ compiler is here; PyTorch does",)
    with pytest.raises(ConfigError, match="dtype=int8: the compiled kernels do not run here: no C"):
        load_language(tiny_decoder, dtype="int8", threads=2)
    unload(tiny_decoder)
