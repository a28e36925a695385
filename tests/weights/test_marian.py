"""Marian folders: what is not supported is refused by name, and what Marian cannot say is not written."""

from dataclasses import replace

import pytest
import torch

from qkv.core.position import sinusoidal
from qkv.errors import CheckpointError, ConfigError
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.weights.families import published_config
from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights
from qkv.weights.marian import MARIAN
from qkv.weights.translator import load_translator, save_translator

CONFIG = TranslatorConfig(
    vocab=20, context=12, dim=16, layers=2, decoder_layers=1, heads=2, ffn_dim=24, start=19, pad=19, activation="silu"
)
PUBLISHED = published_config(CONFIG)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_translator(Translator(CONFIG), tmp_path)
    return tmp_path


def test_config_there_and_back():
    assert MARIAN.config(PUBLISHED) == CONFIG
    assert PUBLISHED["activation_function"] == "swish"
    assert MARIAN.config(published_config(replace(CONFIG, decoder_layers=None))) == replace(CONFIG, decoder_layers=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "bart"}, "model_type"),
        ({"normalize_before": True}, "normalize_before"),
        ({"static_position_embeddings": False}, "static_position_embeddings"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ({"decoder_vocab_size": 7}, "decoder_vocab_size=7"),
        ({"decoder_ffn_dim": 7}, "decoder_ffn_dim=7"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads=4"),
        ({"activation_function": "mish"}, "mish"),
        ({"pad_token_id": 20}, "pad=20"),
        ({"eos_token_id": [0, 1]}, "end="),
        ({"d_model": 10**12}, "dim="),
        ({"vocab_size": "many", "decoder_vocab_size": None}, "vocab="),
    ],
)
def test_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        MARIAN.config(PUBLISHED | values)


@pytest.mark.parametrize(
    "values", [{"norm_first": True}, {"position": "learned"}, {"head_dim": 4}, {"value_dim": 4, "head_dim": 8}]
)
def test_what_marian_cannot_say(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        published_config(replace(CONFIG, **values))


def rewrite(folder, change):
    tensors = {name: tensor.clone() for name, tensor in open_tensors(folder / "model.safetensors").items()}
    change(tensors)
    save_tensors(folder / "model.safetensors", tensors)


def test_copies_of_the_embedding_and_stored_sines(folder):
    before = export_weights(load_translator(Folder(folder)))

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.shared.weight"].clone()
        sines = sinusoidal(torch.arange(CONFIG.context), CONFIG.dim, interleaved=False)
        tensors["model.encoder.embed_positions.weight"] = sines.half()
        del tensors["final_logits_bias"]

    rewrite(folder, add)
    after = export_weights(load_translator(Folder(folder)))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["model.encoder.embed_tokens.weight", "lm_head.weight"])
def test_another_embedding(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: tensors["model.shared.weight"] + 1}))
    with pytest.raises(CheckpointError, match=name):
        load_translator(Folder(folder))


def test_other_positions(folder):
    name = "model.decoder.embed_positions.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(12, 16)}))
    with pytest.raises(CheckpointError, match=name):
        load_translator(Folder(folder))


def test_missing_and_unknown(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.shared.weight"))
    with pytest.raises(CheckpointError, match="token.weight"):
        load_translator(Folder(folder))
    rewrite(folder, lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="model.extra"):
        load_translator(Folder(folder))
