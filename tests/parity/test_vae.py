"""The autoencoder against diffusers' AutoencoderKL."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from qkv.errors import ConfigError
from qkv.models import residual
from qkv.models.vae import VAE, VAEConfig
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.vae import AUTOENCODER, VAE_TABLE, load_vae

SMALL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "sample_size": 32,
}
KINDS = {
    "sd1": {"layers_per_block": 2},
    "emblem": {"layers_per_block": 1, "latent_channels": 8, "scaling_factor": 0.7},
    "shifted": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.1},
    "plain": {"mid_block_add_attention": False},
}


def published(theirs):
    """The configuration as its file has it."""
    return json.loads(theirs.to_json_string())


def pair(parity, kind):
    theirs = parity.strong(AutoencoderKL(**SMALL | KINDS[kind]))
    return parity.adopt(VAE(AUTOENCODER.config(published(theirs))), VAE_TABLE, theirs), theirs


@pytest.fixture(scope="module")
def pairs(parity):
    return {kind: pair(parity, kind) for kind in KINDS}


def encode(parity, ours, theirs, size=(16, 16), loudness=1.0):
    pictures = loudness * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    parity.agree(
        ours,
        theirs,
        lambda vae, dtype: torch.cat(vae.distribution(pictures.to(dtype)), dim=1),
        lambda vae, dtype: _moments(vae.encode(pictures.to(dtype)).latent_dist),
        VAE_TABLE,
    )


def decode(parity, ours, theirs, size=(4, 4), loudness=1.0):
    latent = loudness * torch.randn(2, ours.config.latent_channels, *size, generator=torch.Generator().manual_seed(2))
    c = theirs.config
    parity.agree(
        ours,
        theirs,
        lambda vae, dtype: vae.decode(latent.to(dtype)),
        lambda vae, dtype: vae.decode(latent.to(dtype) / c.scaling_factor + (c.shift_factor or 0)).sample,
        VAE_TABLE,
    )


def _moments(distribution):
    return torch.cat((distribution.mean, distribution.logvar), dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_parity(kind, size, pairs, parity):
    encode(parity, *pairs[kind], size)
    decode(parity, *pairs[kind], (size[0] // 4, size[1] // 4))


def test_parity_of_faint_inputs(pairs, parity):
    encode(parity, *pairs["sd1"], loudness=1e-2)
    decode(parity, *pairs["sd1"], loudness=1e-3)


def test_a_sample_is_the_mean_and_noise(pairs):
    ours, theirs = pairs["shifted"]
    pictures, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        expected = theirs.encode(pictures).latent_dist
        latent, mean = ours.encode(pictures, noise), ours.encode(pictures)
    scaled = (expected.mean - 0.1) * 0.18215
    torch.testing.assert_close(mean, scaled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latent, scaled + expected.std * noise * 0.18215, rtol=1e-4, atol=1e-4)


def symmetric_pad(vae, monkeypatch):
    def above_and_left(x, sides):
        return F.pad(x, (1, 0, 1, 0))  # what padding=1 comes to where sizes are even

    monkeypatch.setattr(residual, "F", SimpleNamespace(pad=above_and_left, silu=F.silu))


def activation(vae, monkeypatch):
    monkeypatch.setattr(residual, "F", SimpleNamespace(pad=F.pad, silu=F.gelu))


def scale(vae, monkeypatch):
    vae.encoder.middle.attention.attention.scale = vae.decoder.middle.attention.attention.scale = 1.0


def norm_eps(vae, monkeypatch):
    vae.encoder.norm.eps = vae.decoder.norm.eps = 1e-5


@pytest.mark.parametrize("mutate", [symmetric_pad, activation, scale, norm_eps])
def test_parity_fails_on(mutate, parity, monkeypatch):
    ours, theirs = pair(parity, "sd1")
    mutate(ours, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"parity: (differs by .*; first: [a-z]+\.|.* has eps)"):
        encode(parity, ours, theirs)


FORMS = [*((kind, "plain") for kind in KINDS), ("sd1", "sharded"), ("sd1", "old names"), ("emblem", "fp16")]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_files_there_and_back(kind, form, pairs, tmp_path):
    _, theirs = pairs[kind]
    theirs.save_pretrained(
        tmp_path / "vae",
        variant="fp16" if form == "fp16" else None,
        max_shard_size="300KB" if form == "sharded" else "10GB",
    )
    if form == "old names":
        rename(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    ours = load_vae(Folder(tmp_path), variant="fp16" if form == "fp16" else None)
    save_component(
        tmp_path / "again", AUTOENCODER.export(ours), max_shard_bytes=300_000 if form == "sharded" else 10**9
    )
    again = AutoencoderKL.from_pretrained(tmp_path / "again")
    assert len(again.state_dict()) == len(theirs.state_dict())
    for name, expected in theirs.state_dict().items():
        assert again.state_dict()[name].equal(expected), name
    before, after = (json.loads((tmp_path / part / "config.json").read_text()) for part in ("vae", "again"))
    for key in after.keys() - {"_diffusers_version", "force_upcast"}:
        assert before[key] == after[key], key


def rename(file: Path) -> None:
    """Files of 2022 call the middle's four projections otherwise."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    save_file(tensors, file)


def test_export_of_import_is_the_same(pairs):
    for ours, theirs in pairs.values():
        config, tensors = AUTOENCODER.export(ours)
        assert AUTOENCODER.config(config) == ours.config
        assert tensors.keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert tensors[name].equal(tensor), name


def test_what_a_file_leaves_out_is_as_diffusers_has_it():
    with torch.device("meta"):
        theirs, ours = AutoencoderKL(), VAE(AUTOENCODER.config({}))
    shapes = {name: tensor.shape for name, tensor in AUTOENCODER.export(ours)[1].items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert ours.config.scaling == theirs.config.scaling_factor


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types=.* is not supported"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv differs from use_quant_conv"),
        ({"latents_mean": [0.0] * 4}, "latents_mean=.* is not supported"),
    ],
)
def test_what_we_cannot_honour_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        AUTOENCODER.config(given)


def test_full_size():
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    assert vae.config.factor == 8
