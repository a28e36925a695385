"""Every key that the gguf package knows beside the architectures' stands in our table."""

import gguf
import numpy as np
import pytest

from qkv.errors import ConfigError
from qkv.loaded.gguf_keys import KEYS, read_keys
from qkv.sample.tokens import Sampling


@pytest.mark.parametrize("kind", ["General", "Tokenizer", "Split"])
def test_every_key_is_known(kind: str) -> None:
    theirs = {value for name, value in vars(getattr(gguf.constants.Keys, kind)).items() if name[0] != "_"}
    assert theirs - KEYS.names == set()


def test_how_it_would_be_drawn() -> None:
    said = {"temp": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "penalty_repeat": 1.1}
    metadata = {f"general.sampling.{key}": value for key, value in said.items()}
    sampling, warnings = read_keys(metadata)
    assert Sampling(**sampling) == Sampling(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.1)
    assert warnings == []
    with pytest.raises(ConfigError, match="penalty_last_n=64 is not supported"):
        read_keys(metadata | {"general.sampling.penalty_last_n": 64})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.type", "adapter"),
        ("general.sampling.mirostat", 2),
        ("general.sampling.xtc_probability", 0.5),
        ("tokenizer.ggml.add_eos_token", True),
        ("tokenizer.ggml.precompiled_charsmap", np.zeros(3)),
    ],
)
def test_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}=.* is not supported; it must be"):
        read_keys({key: value})


def test_what_nobody_knows_is_named() -> None:
    known = {"general.architecture": "llama", "llama.context_length": 4, "general.base_model.0.name": "a"}
    assert read_keys(known | {"tokenizer.chat_template.tool_use": "b"}) == ({}, [])
    (warning,) = read_keys(known | {"general.mood": "glad"})[1]
    assert warning.startswith("unknown-keys: its metadata has general.mood; ")
