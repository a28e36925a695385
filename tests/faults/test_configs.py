"""Configurations that are hostile, impossible or do not fit their weights: one clear line, at once, and no code run.

Rows 9 to 11 of the list of faults.
"""

import math
import sys
from pathlib import Path

import pytest
import torch

from qkv.models.clip import TextConfig, TextTower
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.weights.clip import TEXT_TOWER, load_text_tower
from qkv.weights.diffusers import save_component
from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder
from qkv.weights.unet import UNET
from qkv.weights.vae import AUTOENCODER, load_vae

LOAD = {
    "unet": lambda folder: UNET.load(folder, UNet, "unet"),
    "vae": load_vae,
    "text_encoder": lambda folder: load_text_tower(folder, "text_encoder"),
}
STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    unet = UNetConfig(
        dims=(16, 32), attention=(False, True), heads=(2, 4), groups=8, layers=1, memory_dim=16, sample_size=8
    )
    text = TextConfig(vocab=20, context=8, dim=16, layers=1, heads=2, ffn_dim=24, start=18, end=19, pad=19)
    save_component(folder / "unet", UNET.export(UNet(unet)))
    save_component(folder / "vae", AUTOENCODER.export(VAE(VAEConfig(dims=(16, 32), groups=8, layers=1))))
    save_component(folder / "text_encoder", TEXT_TOWER.export(TextTower(text)))
    return folder


def test_the_good_folder_loads(folder):
    for part, load in LOAD.items():
        assert next(load(Folder(folder)).parameters()).dtype is torch.float32, part


@pytest.mark.parametrize("part", LOAD)
def test_no_code_comes_out_of_a_folder(folder, part, monkeypatch, edit):
    """Keys that ask other libraries to run a folder's code, or name a module to import, mean nothing here."""
    canary = folder / "canary"
    code = f"import pathlib; pathlib.Path({str(canary)!r}).touch()\nclass Model: pass\n"
    for where in (folder, folder / part):
        for name in ("evil.py", "modeling_evil.py", "pipeline.py", "conftest.py", "__init__.py"):
            (where / name).write_text(code)
    monkeypatch.chdir(folder / part)
    monkeypatch.syspath_prepend(str(folder))
    call = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    hostile = {
        "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "modeling_evil--evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation_internal": f"evil/kernel:{call}",
        "_attn_implementation": "evil",
        "custom_pipeline": "evil",
        "_name_or_path": "evil",
        "quantization_config": {"quant_method": call},
        "_module": call,
        "__class__": call,
        "torch_dtype": call,
    }
    edit(folder / part / "config.json", hostile)
    loaded = set(sys.modules)
    LOAD[part](Folder(folder))
    assert not canary.exists()
    assert not {name for name in set(sys.modules) - loaded if "evil" in name or name in ("pipeline", part)}


def test_code_in_a_key_that_is_read_is_just_a_wrong_value(folder, edit, refuse):
    edit(folder / "text_encoder" / "config.json", {"hidden_act": "__import__('os').system('touch canary')"})
    refuse("unknown activation", LOAD["text_encoder"], Folder(folder))
    edit(folder / "unet" / "config.json", {"down_block_types": ["evil.Block", "evil.Block"]})
    refuse("down_block_types=.* is not supported", LOAD["unet"], Folder(folder))


HUGE, NAN = 10**12, math.nan
IMPOSSIBLE = {
    "text_encoder": [
        ({"num_attention_heads": 0}, "heads=0 is out of range"),
        ({"num_attention_heads": 3}, "dim=16 is not divisible by heads=3"),
        ({"num_attention_heads": 2.0}, "heads=2.0 is not a whole number"),
        ({"num_attention_heads": True}, "heads=True is not a whole number"),
        ({"vocab_size": -1}, "vocab=-1 is out of range"),
        ({"vocab_size": HUGE}, "vocab=1000000000000 is out of range"),
        ({"num_hidden_layers": 10**9}, "layers=1000000000 is out of range"),
        ({"num_hidden_layers": 10**300}, "layers=10+ is out of range"),
        ({"layer_norm_eps": NAN}, "norm_eps=nan is not a finite number"),
        ({"layer_norm_eps": -1e-5}, "norm_eps=-1e-05 is out of range"),
        ({"max_position_embeddings": HUGE}, "context=1000000000000 is out of range"),
        ({"max_position_embeddings": "8"}, "context='8' is not a whole number"),
        ({"intermediate_size": HUGE}, "ffn_dim=1000000000000 is out of range"),
        ({"hidden_size": [16]}, r"dim=\[16\] is not a whole number"),
        ({"eos_token_id": 20}, "end=20 is no token of a vocabulary of 20"),
        ({"eos_token_id": -1}, "end=-1 is no token"),
        ({"model_type": "bert"}, "model_type='bert' is not supported"),
    ],
    "unet": [
        ({"attention_head_dim": 0}, "dim=16 is not divisible by heads=0"),
        ({"attention_head_dim": [2, 3]}, "dim=32 is not divisible by heads=3"),
        ({"attention_head_dim": NAN}, "heads"),
        ({"block_out_channels": [16, HUGE]}, "dim=1000000000000 is out of range"),
        ({"block_out_channels": []}, "dims has 0 widths"),
        ({"block_out_channels": [16] * 10_000}, "dims has 10000 widths"),
        ({"block_out_channels": [16, 32, 64]}, "attention has 2 entries; dims has 3"),
        ({"block_out_channels": [16, 33]}, "dim=33 is not divisible by groups=8"),
        ({"norm_num_groups": 0}, "groups=0"),
        ({"norm_num_groups": None}, "dim=16 is not divisible by groups=32"),
        ({"layers_per_block": 10**9}, "layers=1000000000 is out of range"),
        ({"layers_per_block": [1, 1]}, r"layers=\[1, 1\] is not a whole number"),
        ({"transformer_layers_per_block": 10**9}, "transformer_layers=1000000000 is out of range"),
        ({"transformer_layers_per_block": 1000, "layers_per_block": 100}, "transformer_layers=1000 is out of range"),
        (
            {"transformer_layers_per_block": 90, "layers_per_block": 90},
            "over 2 resolutions they must make at most 1000",
        ),
        ({"norm_eps": NAN}, "norm_eps=nan is not a finite number"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0 is out of range"),
        ({"cross_attention_dim": HUGE}, "memory_dim=1000000000000 is out of range"),
        ({"sample_size": HUGE}, "sample_size=1000000000000 is out of range"),
        ({"down_block_types": "x" * 10**6}, "down_block_types='x+… is not supported"),
        ({"down_block_types": ["DownBlock2D"] * 10**4, "up_block_types": ["UpBlock2D"] * 10**4}, "entries"),
    ],
    "vae": [
        ({"latent_channels": 0}, "latent_channels=0 is out of range"),
        ({"latent_channels": HUGE}, "latent_channels=1000000000000 is out of range"),
        ({"block_out_channels": [16] * 17}, "dims has 17 widths"),
        ({"layers_per_block": 10**9}, "layers=1000000000 is out of range"),
        ({"scaling_factor": NAN}, "scaling=nan is not a finite number"),
        ({"scaling_factor": 0}, "scaling=0.0 is out of range"),
        ({"shift_factor": math.inf}, "shift=inf is not a finite number"),
        ({"norm_num_groups": -8}, "groups=-8"),
        ({"sample_size": -1}, "sample_size=-1 is out of range"),
    ],
}


@pytest.mark.parametrize(
    ("part", "values", "message"), [(part, *row) for part, rows in IMPOSSIBLE.items() for row in rows]
)
def test_impossible_configurations(folder, part, values, message, edit, refuse):
    edit(folder / part / "config.json", values)
    refuse(message, LOAD[part], Folder(folder))


def test_nothing_is_allocated_for_what_is_merely_large(folder, edit, refuse):
    """A configuration in range but of terabytes: the weights do not fit it, and only they would have taken memory."""
    edit(folder / "text_encoder" / "config.json", {"hidden_size": 10**6, "num_attention_heads": 1, "vocab_size": 10**7})
    refuse(r"of another shape: .*token.weight is \(20, 16\)", LOAD["text_encoder"], Folder(folder))
    edit(folder / "unet" / "config.json", {"block_out_channels": [65_536, 65_536]})
    refuse("of another shape", LOAD["unet"], Folder(folder))


@pytest.mark.parametrize("part", LOAD)
def test_tensors_that_are_missing_extra_or_of_another_shape_are_named(folder, part, refuse):
    file = folder / part / f"{STEM[part]}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    *_, first, second = (name for name in tensors if name.endswith("weight"))
    kept = {name: tensor for name, tensor in tensors.items() if name != first}

    save_tensors(file, kept)
    refuse(r"the weights do not fit \w+; 1 missing: [\w.]+weight \(", LOAD[part], Folder(folder))
    save_tensors(file, kept | {"evil.weight": tensors[first]})
    refuse("1 published tensors are not known to this model's table: .?evil.weight", LOAD[part], Folder(folder))
    save_tensors(file, tensors | {second: tensors[second][..., :-1].contiguous()})
    refuse(r"1 of another shape: [\w.]+ is \(.*\), expected \(|does not split", LOAD[part], Folder(folder))
    save_tensors(file, dict(list(tensors.items())[:2]))
    refuse(r"\d+ missing: ", LOAD[part], Folder(folder))
