"""Which way a language model computes: compiled kernels for what a file holds, PyTorch where it is asked for."""

import os
import shutil

import pytest
import torch

from qkv.cli import main
from qkv.engine.native_runner import NativeRunner
from qkv.engine.torch_runner import TorchRunner
from qkv.errors import ConfigError, NotFoundError
from qkv.kernels import build, library
from qkv.loaded.language import load_language
from qkv.loaded.models import unload
from qkv.tasks.chat import chat
from qkv.tasks.complete import complete
from qkv.train.lora import LoraConfig, add_lora, lora_layers, merge, save_adapter
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.folder import Folder

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


@pytest.mark.parametrize("dtype", ["float32", pytest.param("auto", marks=native)])
def test_memory_for_keys_and_values(tiny_decoder, dtype, monkeypatch):
    for memory, size in {"1M": 1 << 20, 300_000: 300_000}.items():
        language = load_language(tiny_decoder, dtype=dtype, memory=memory)
        pages, bytes = language.engine.runner.pages, language.engine.runner.page_bytes
        assert pages * bytes <= size < (pages + 1) * bytes
        assert load_language(tiny_decoder, dtype=dtype, memory=size, threads=1).engine is language.engine
    assert load_language(tiny_decoder, dtype=dtype).engine.runner.pages != pages
    with pytest.raises(ConfigError, match="memory=7 bytes hold no page of keys and values"):
        complete("the", model=tiny_decoder, dtype=dtype, memory=7)
    with pytest.raises(ConfigError, match="memory='much' is no size"):
        chat("the", model=tiny_decoder, dtype=dtype, memory="much")


def test_the_command_line_asks_for_it(tiny_decoder, monkeypatch):
    asked, before = list[object](), dict(os.environ)

    def load(*_: object, memory: object, **others: object) -> None:
        asked.append(memory)
        raise NotFoundError("no more is needed")

    for verb in ("chat", "complete"):
        monkeypatch.setattr(f"qkv.tasks.{verb}.load_language", load)
        with pytest.raises(SystemExit):
            main([verb, "the", "--memory", "2G", "--model", str(tiny_decoder)])
    assert asked == [2 << 30] * 2
    assert dict(os.environ) == before


@pytest.fixture(scope="module")
def adapter(tiny_decoder, tmp_path_factory):
    """A strong adapter for the tiny decoder, and the model that it makes of it."""
    folder = tmp_path_factory.mktemp("adapter")
    decoder = load_decoder(Folder(tiny_decoder), dtype=torch.float32)
    torch.manual_seed(3)
    add_lora(decoder, LoraConfig(rank=2))
    for layer in lora_layers(decoder).values():
        layer.b.data.normal_(std=0.3)
    save_adapter(decoder, folder / "lora", base="tiny")
    merge(decoder)
    shutil.copytree(tiny_decoder, folder / "merged")
    save_decoder(decoder, folder / "merged")
    return folder


@pytest.mark.parametrize("dtype", ["float32", pytest.param("auto", marks=native), pytest.param("int8", marks=native)])
def test_with_an_adapter(tiny_decoder, adapter, dtype):
    said = {"max_tokens": 24, "dtype": dtype}
    found = complete("the name of", model=tiny_decoder, lora=adapter / "lora", **said)
    expected = complete("the name of", model=adapter / "merged", **said)
    same = 8 if dtype == "int8" else 24  # what was rounded before it is rounded to 8 bits is rounded otherwise
    assert found.texts[0].ids[:same] == expected.texts[0].ids[:same]
    assert found.text != complete("the name of", model=tiny_decoder, **said).text
    assert found.model == f"{tiny_decoder.name}+lora"


def test_an_adapter_at_the_command_line(tiny_decoder, adapter, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "complete",
                "the name of",
                "--model",
                str(tiny_decoder),
                "--lora",
                str(adapter / "lora"),
                "--max-tokens",
                "9",
            ]
        )
    assert ended.value.code == 0
    expected = complete("the name of", model=tiny_decoder, lora=str(adapter / "lora"), max_tokens=9).text
    assert capsys.readouterr().out == expected + "\n"
    with pytest.raises(NotFoundError, match="there is no folder .*nothing' with an adapter; name the one that PEFT"):
        complete("the", model=tiny_decoder, lora="nothing", max_tokens=2)
