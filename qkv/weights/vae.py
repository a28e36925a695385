"""diffusers' `AutoencoderKL` <-> our autoencoder: the names of its tensors, and its config.json."""

from dataclasses import replace
from typing import Any

from qkv.errors import ConfigError, shorten
from qkv.models.vae import VAE, VAEConfig
from qkv.published import Keys, Published
from qkv.weights.family import Family, Joint
from qkv.weights.folder import Folder
from qkv.weights.tables import Table, rows
from qkv.weights.unet import ATTENTION, RESIDUAL

FILE = "vae/config.json"

_ENDS = [
    ("(after_encoder|before_decoder).{}", "(quant_conv|post_quant_conv).{}"),
    ("encoder.levels.{}.resample.conv.{}", "encoder.down_blocks.{}.downsamplers.0.conv.{}"),
    ("decoder.levels.{}.resample.conv.{}", "decoder.up_blocks.{}.upsamplers.0.conv.{}"),
]


def _vae_table() -> Table:
    found = rows(_ENDS)
    for part, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        found += rows([("(enter|norm|leave).{}", "(conv_in|conv_norm_out|conv_out).{}")], f"{part}.", f"{part}.")
        found += rows(RESIDUAL, f"{part}.levels.{{}}.residuals.{{}}.", f"{part}.{blocks}.{{}}.resnets.{{}}.")
        found += rows(RESIDUAL, f"{part}.middle.residuals.{{}}.", f"{part}.mid_block.resnets.{{}}.")
        ours, published = f"{part}.middle.attention.", f"{part}.mid_block.attentions.0."
        found += rows([("norm.{}", "group_norm.{}")], ours, published)
        old = rows([(ATTENTION[0], "(query|key|value|proj_attn).{}")], f"{ours}attention.", published)
        for row, older in zip(rows([ATTENTION], f"{ours}attention.", published), old):
            found.append(replace(row, aliases=(older.published,)))
    return Table(found)


VAE_TABLE = _vae_table()


VAE_KEYS = Keys(
    fields={
        **{"in_channels": "channels", "latent_channels": "latent_channels", "block_out_channels": "dims"},
        **{"layers_per_block": "layers", "norm_num_groups": "groups", "scaling_factor": "scaling"},
        **{"shift_factor": "shift", "use_quant_conv": "latent_convs", "mid_block_add_attention": "middle_attention"},
        "sample_size": "sample_size",
    },
    read={"out_channels", "down_block_types", "up_block_types", "use_post_quant_conv"},
    fixed={"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)},
    harmless={"force_upcast"},  # a remedy for float16
    absent={
        **{"block_out_channels": [64], "layers_per_block": 1, "sample_size": 32, "in_channels": 3, "out_channels": 3},
        **dict.fromkeys(("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), True),
    },
)


def _read(published: Published) -> dict[str, Any]:
    published = VAE_KEYS.given(published)
    for key, kind in _KINDS.items():
        kinds = published.get(key, [kind])
        if not isinstance(kinds, list) or any(other != kind for other in kinds):
            raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {kind}")
    if published["use_post_quant_conv"] != published["use_quant_conv"]:
        raise ConfigError("use_post_quant_conv differs from use_quant_conv; such an autoencoder is not supported")
    out, channels = (shorten(repr(published[key])) for key in ("out_channels", "in_channels"))
    if out != channels:
        raise ConfigError(f"out_channels={out} is not supported; it must be in_channels={channels}")
    return {}


_KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def _write(c: VAEConfig) -> Published:
    return {
        **{key: [kind] * len(c.dims) for key, kind in _KINDS.items()},
        **{"use_post_quant_conv": c.latent_convs, "out_channels": c.channels},
        **{"shift_factor": c.shift or None, "force_upcast": False},
    }


AUTOENCODER = Family(
    kind=VAEConfig,
    architecture="AutoencoderKL",
    keys=VAE_KEYS,
    table=lambda config: VAE_TABLE,
    joints=(Joint((), _read, _write),),
    refused={},
)


def load_vae(folder: Folder, **options: Any) -> VAE:
    """The autoencoder in the folder's `vae`; options as `Family.load`."""
    return AUTOENCODER.load(folder, VAE, "vae", **options)
