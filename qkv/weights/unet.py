"""diffusers' `UNet2DConditionModel` <-> our U-Net: the names of its tensors, and its config.json."""

import re
from typing import Any

import torch
from torch import Tensor

from qkv.config import build
from qkv.errors import ConfigError, shorten
from qkv.models.unet import UNet, UNetConfig
from qkv.published import Keys, Published
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights, load_module
from qkv.weights.tables import Row, Table, fused, pointwise, same

FILE = "unet/config.json"
VERSION = "0.42.1"  # of the diffusers that our folders are tested with

# A residual block, a transformer layer and an attention are spelled alike wherever they stand.

RESIDUAL = [
    ("norm1.{}", "norm1.{}"),
    ("conv1.{}", "conv1.{}"),
    ("time.{}", "time_emb_proj.{}"),
    ("norm2.{}", "norm2.{}"),
    ("conv2.{}", "conv2.{}"),
    ("shortcut.{}", "conv_shortcut.{}"),
]
ATTENTION = [("q.{}", "to_q.{}"), ("k.{}", "to_k.{}"), ("v.{}", "to_v.{}"), ("out.{}", "to_out.0.{}")]
_LAYER = [
    ("attention_norm.{}", "norm1.{}"),
    *((f"attention.{a}", f"attn1.{b}") for a, b in ATTENTION),
    ("memory_norm.{}", "norm2.{}"),
    *((f"memory_attention.{a}", f"attn2.{b}") for a, b in ATTENTION),
    ("ffn_norm.{}", "norm3.{}"),
    ("ffn.down.{}", "ff.net.2.{}"),
]


def unet_table(config: UNetConfig) -> Table:
    """The rows of a UNet2DConditionModel; SD 1.x spells the transformers' outer projections as 1x1 convolutions."""
    projection = same if config.linear_projection else pointwise
    rows: list[Row | tuple[str, str]] = [
        ("time.0.{}", "time_embedding.linear_1.{}"),
        ("time.2.{}", "time_embedding.linear_2.{}"),
        ("summary.norm{}.{}", "add_embedding.norm{}.{}"),
        ("summary.position", "add_embedding.pool.positional_embedding"),
        *((f"summary.attention.{a}.{{}}", f"add_embedding.pool.{a}_proj.{{}}") for a in "qkv"),
        ("summary.attention.out.{}", "add_embedding.proj.{}"),
        ("enter.{}", "conv_in.{}"),
        ("norm.{}", "conv_norm_out.{}"),
        ("leave.{}", "conv_out.{}"),
        ("down.{}.resample.conv.{}", "down_blocks.{}.downsamplers.0.conv.{}"),
        ("up.{}.resample.conv.{}", "up_blocks.{}.upsamplers.0.conv.{}"),
    ]
    for ours, published in (("down.{}", "down_blocks.{}"), ("up.{}", "up_blocks.{}"), ("middle", "mid_block")):
        rows += [(f"{ours}.residuals.{{}}.{a}", f"{published}.resnets.{{}}.{b}") for a, b in RESIDUAL]
        ours, published = f"{ours}.transformers.{{}}", f"{published}.attentions.{{}}"
        layer, theirs = f"{ours}.stack.blocks.{{}}", f"{published}.transformer_blocks.{{}}"
        rows += [
            (f"{ours}.norm.{{}}", f"{published}.norm.{{}}"),
            Row((f"{ours}.enter.weight",), f"{published}.proj_in.weight", transform=projection),
            Row((f"{ours}.leave.weight",), f"{published}.proj_out.weight", transform=projection),
            (f"{ours}.enter.bias", f"{published}.proj_in.bias"),
            (f"{ours}.leave.bias", f"{published}.proj_out.bias"),
            *((f"{layer}.{a}", f"{theirs}.{b}") for a, b in _LAYER),
            Row(
                (f"{layer}.ffn.up.{{}}", f"{layer}.ffn.gate.{{}}"),
                f"{theirs}.ff.net.0.proj.{{}}",
                (),
                fused(2),
            ),
        ]
    return Table(rows)


UNET_KEYS = Keys(
    fields={
        "in_channels": "channels",
        "out_channels": "out_channels",
        "block_out_channels": "dims",
        "layers_per_block": "layers",
        "transformer_layers_per_block": "transformer_layers",
        "cross_attention_dim": "memory_dim",
        "norm_num_groups": "groups",
        "norm_eps": "norm_eps",
        "use_linear_projection": "linear_projection",
        "sample_size": "sample_size",
    },
    fixed={
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "act_fn": ("silu",),
        "center_input_sample": (False,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "only_cross_attention": (False,),
        "dual_cross_attention": (False,),
        "reverse_transformer_layers_per_block": (None,),
        "num_attention_heads": (None,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text"),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    },
    read={
        *("down_block_types", "up_block_types", "attention_head_dim"),
        *("addition_embed_type", "addition_embed_type_num_heads", "resnet_time_scale_shift"),
    },
    harmless={
        "dropout",
        "upcast_attention",  # a remedy for float16, whose largest number attention may pass
        *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),  # of embeddings that are refused
    },
    absent={
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
)


def unet_config(published: Published) -> UNetConfig:
    """From unet/config.json."""
    published, values = UNET_KEYS.given(published), UNET_KEYS.ours(published)
    down = _types(published, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")
    up = _types(published, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")
    if up != down[::-1]:
        raise ConfigError("up_block_types do not mirror down_block_types; such a U-Net is not supported")
    heads = published["attention_head_dim"]  # the number of heads: a misnomer that the format keeps
    heads = [heads] * len(down) if isinstance(heads, int) else heads
    summed_up = published.get("addition_embed_type") == "text"
    values |= {
        "attention": down,
        "heads": heads,
        "summary_heads": published.get("addition_embed_type_num_heads", 64) if summed_up else 0,
        "scaled": published.get("resnet_time_scale_shift") == "scale_shift",
    }
    return build(UNetConfig, values, "unet")


def _types(published: Published, key: str, plain: str, attending: str) -> list[bool]:
    kinds = published.get(key)
    if not isinstance(kinds, list) or any(kind not in (plain, attending) for kind in kinds):
        raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {plain} and {attending}")
    return [kind == attending for kind in kinds]


def published_unet(unet: UNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """unet/config.json and its tensors."""
    c = unet.config
    kinds = {
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in c.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in c.attention[::-1]],
        "attention_head_dim": list(c.heads) if len(set(c.heads)) > 1 else c.heads[0],
        "addition_embed_type": "text" if c.summary_heads else None,
        "addition_embed_type_num_heads": c.summary_heads or 64,
        "resnet_time_scale_shift": "scale_shift" if c.scaled else "default",
    }
    config = {"_class_name": "UNet2DConditionModel", "_diffusers_version": VERSION} | UNET_KEYS.published(c) | kinds
    return config, unet_table(c).published(export_weights(unet))


def repaired(published: Published) -> dict[str, Any]:
    """What diffusers' StableDiffusionPipeline makes of a unet/config.json: before 0.9 every model was published with
    the size of a test's."""
    size, version = published.get("sample_size"), re.match(r"(\d+)\.(\d+)", str(published.get("_diffusers_version")))
    old = version and tuple(map(int, version.groups())) < (0, 9)
    return {**published, "sample_size": 64} if old and isinstance(size, int) and size < 64 else dict(published)


def load_unet(
    folder: Folder,
    *,
    config: UNetConfig | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> UNet:
    """The U-Net in the folder's `unet`, with `config` in place of its file's."""
    config = config or unet_config(folder.json(FILE))
    table = unet_table(config)
    return load_module(lambda: UNet(config), table.ours(folder.tensors("unet", variant=variant)), dtype=dtype)
