"""diffusers' `AutoencoderKL` <-> our autoencoder: the names of its tensors, and its config.json."""

from typing import Any

import torch
from torch import Tensor

from qkv.config import build
from qkv.errors import ConfigError, shorten
from qkv.models.vae import VAE, VAEConfig
from qkv.published import Keys, Published
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights, load_module
from qkv.weights.tables import Row, Table
from qkv.weights.unet import ATTENTION, RESIDUAL, VERSION

FILE = "vae/config.json"

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _vae_table() -> Table:
    rows: list[Row | tuple[str, str]] = [
        ("after_encoder.{}", "quant_conv.{}"),
        ("before_decoder.{}", "post_quant_conv.{}"),
        ("encoder.levels.{}.resample.conv.{}", "encoder.down_blocks.{}.downsamplers.0.conv.{}"),
        ("decoder.levels.{}.resample.conv.{}", "decoder.up_blocks.{}.upsamplers.0.conv.{}"),
    ]
    for part, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        rows += [
            (f"{part}.enter.{{}}", f"{part}.conv_in.{{}}"),
            (f"{part}.norm.{{}}", f"{part}.conv_norm_out.{{}}"),
            (f"{part}.leave.{{}}", f"{part}.conv_out.{{}}"),
            *(
                (f"{part}.levels.{{}}.residuals.{{}}.{a}", f"{part}.{blocks}.{{}}.resnets.{{}}.{b}")
                for a, b in RESIDUAL
            ),
            *((f"{part}.middle.residuals.{{}}.{a}", f"{part}.mid_block.resnets.{{}}.{b}") for a, b in RESIDUAL),
        ]
        ours, published = f"{part}.middle.attention", f"{part}.mid_block.attentions.0"
        rows.append((f"{ours}.norm.{{}}", f"{published}.group_norm.{{}}"))
        for a, b in ATTENTION:
            old = b.removesuffix(".{}")
            rows.append(
                Row((f"{ours}.attention.{a}",), f"{published}.{b}", (f"{published}.{_OLD_ATTENTION[old]}.{{}}",))
            )
    return Table(rows)


VAE_TABLE = _vae_table()


VAE_KEYS = Keys(
    fields={
        "in_channels": "channels",
        "latent_channels": "latent_channels",
        "block_out_channels": "dims",
        "layers_per_block": "layers",
        "norm_num_groups": "groups",
        "scaling_factor": "scaling",
        "shift_factor": "shift",
        "use_quant_conv": "latent_convs",
        "mid_block_add_attention": "middle_attention",
        "sample_size": "sample_size",
    },
    read={"out_channels", "down_block_types", "up_block_types", "use_post_quant_conv"},
    fixed={"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)},
    harmless={"force_upcast"},  # a remedy for float16
    absent={
        "block_out_channels": [64],
        "layers_per_block": 1,
        "sample_size": 32,
        "out_channels": 3,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
)


def vae_config(published: Published) -> VAEConfig:
    """From vae/config.json."""
    published, values = VAE_KEYS.given(published), VAE_KEYS.ours(published)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        kinds = published.get(key, [kind])
        if not isinstance(kinds, list) or any(other != kind for other in kinds):
            raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {kind}")
    if published["use_post_quant_conv"] != published["use_quant_conv"]:
        raise ConfigError("use_post_quant_conv differs from use_quant_conv; such an autoencoder is not supported")
    config = build(VAEConfig, values, "vae")
    if (out := published["out_channels"]) != config.channels:
        raise ConfigError(
            f"out_channels={shorten(repr(out))} is not supported; it must be in_channels={config.channels}"
        )
    return config


def published_vae(vae: VAE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """vae/config.json and its tensors."""
    c = vae.config
    kinds = {
        "down_block_types": ["DownEncoderBlock2D"] * len(c.dims),
        "up_block_types": ["UpDecoderBlock2D"] * len(c.dims),
        "use_post_quant_conv": c.latent_convs,
        "out_channels": c.channels,
        "shift_factor": c.shift or None,
        "force_upcast": False,
    }
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": VERSION} | VAE_KEYS.published(c) | kinds
    return config, VAE_TABLE.published(export_weights(vae))


def load_vae(folder: Folder, *, dtype: torch.dtype | None = None, variant: str | None = None) -> VAE:
    """The autoencoder in the folder's `vae`."""
    config = vae_config(folder.json(FILE))
    tensors = VAE_TABLE.ours(folder.tensors("vae", variant=variant))
    return load_module(lambda: VAE(config), tensors, dtype=dtype)
