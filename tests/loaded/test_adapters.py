"""Adapters that PEFT writes, merged into our weights: the same logits, of every family; the rest is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from qkv.errors import CheckpointError, ConfigError
from qkv.loaded.adapters import KEYS, merge_adapter
from qkv.weights.decoder import load_decoder
from qkv.weights.folder import Folder

IDS = torch.tensor([[3, 20, 17, 5, 39, 25, 0, 12]])
SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": hf.LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=32),
    "gpt2": hf.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "neox": hf.GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=32),
    "bloom": hf.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


def adapted(folder: Path, model: str, **options: Any) -> torch.Tensor:
    """A model in folder/base and a strong adapter for it in folder/adapter; the logits of both together."""
    torch.manual_seed(0)
    base = hf.AutoModelForCausalLM.from_config(MODELS[model]).eval()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    base.save_pretrained(folder / "base")
    given = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "init_lora_weights": False} | options
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **given)).eval()
    theirs.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return theirs(IDS).logits


def merged(folder: Path, dtype: torch.dtype | None = None) -> torch.Tensor:
    decoder = load_decoder(Folder(folder / "base"), dtype=dtype)
    with torch.no_grad():
        before = decoder(IDS)
        assert merge_adapter(decoder, Folder(folder / "adapter"), family=decoder_family(folder)) == []
        after = decoder(IDS)
    assert (after - before).abs().max() > 0.1
    return after


def decoder_family(folder: Path) -> str:
    return str(json.loads((folder / "base/config.json").read_text())["model_type"])


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"use_rslora": True},
    "ranks and alphas of their own": {"rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 2}}
    | {"alpha_pattern": {"k_proj": 9, "mlp.up_proj": 1}, "target_modules": ["q_proj", "k_proj", "up_proj"]},
    "one layer of two": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1], "lora_alpha": 20},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_as_peft(name: str, tmp_path: Path) -> None:
    expected = adapted(tmp_path, "llama", **OPTIONS[name])
    torch.testing.assert_close(merged(tmp_path), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["gpt2", "neox", "bloom"])
def test_projections_that_are_fused_or_turned(model: str, tmp_path: Path) -> None:
    expected = adapted(tmp_path, model, **({"fan_in_fan_out": True} if model == "gpt2" else {}))
    torch.testing.assert_close(merged(tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_every_key_of_peft_is_known() -> None:
    assert {each.name for each in dataclasses.fields(peft.LoraConfig)} - KEYS.names == set()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type='IA3' is not supported"),
        (
            "init_lora_weights",
            "pissa",
            "init_lora_weights='pissa' is not .*; save it again by PEFT with path_",
        ),
        ("use_dora", True, "use_dora=True is not supported"),
        ("bias", "all", "bias='all' is not supported"),
        ("modules_to_save", ["lm_head"], "modules_to_save=.* is not supported"),
        ("alpha_pattern", {"q.*": 2}, "alpha_pattern: 'q.*' is an expression; only names of layers are read"),
        ("alpha_pattern", [1], "alpha_pattern"),
        ("r", 0, "r or lora_alpha is 0; it must be above 0"),
        ("r", 7, "not of rank 7, as adapter_config.json says"),
        ("lora_alpha", "many", "lora_alpha='many'"),
    ],
)
def test_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    adapted(tmp_path, "llama")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        merged(tmp_path)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    adapted(tmp_path, "llama")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_qora": True}))
    (warning,) = merge_adapter(load_decoder(Folder(tmp_path / "base")), Folder(tmp_path / "adapter"))
    assert warning.startswith("unknown-keys: adapter/adapter_config.json has use_qora; ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers.1.", "layers.7.", "layers.7.* no such layer"),
        ("q_proj", "w_proj", "w_proj.* belongs to no linear layer"),
        ("q_proj", "k_proj", ""),
        ("lora_A", "lora_magnitude", "belongs to no linear layer"),
    ],
)
def test_layers_that_the_model_has_not(old: str, new: str, message: str, tmp_path: Path) -> None:
    adapted(tmp_path, "llama", target_modules=["q_proj"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)
    decoder = load_decoder(Folder(tmp_path / "base"))
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(decoder, Folder(tmp_path / "adapter"))
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
