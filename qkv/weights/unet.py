"""diffusers' `UNet2DConditionModel` <-> our U-Net: the names of its tensors, and its config.json."""

import re
from typing import Any

from qkv.errors import ConfigError, shorten
from qkv.models.unet import UNetConfig
from qkv.published import Keys, Published, only
from qkv.weights.family import Family, Joint
from qkv.weights.tables import Pair, Table, fused, pointwise, rows, same

FILE = "unet/config.json"

# A residual block, a transformer layer and an attention are spelled alike wherever they stand.
RESIDUAL = [
    ("(norm1|conv1|norm2|conv2).{}", "(norm1|conv1|norm2|conv2).{}"),
    ("(time|shortcut).{}", "(time_emb_proj|conv_shortcut).{}"),
]
ATTENTION = ("(q|k|v|out).{}", "(to_q|to_k|to_v|to_out.0).{}")
_LAYER: list[Pair] = [
    *(
        (f"{a}.{ATTENTION[0]}", f"{b}.{ATTENTION[1]}")
        for a, b in (("attention", "attn1"), ("memory_attention", "attn2"))
    ),
    ("(attention_norm|memory_norm|ffn_norm).{}", "(norm1|norm2|norm3).{}"),
    ("ffn.(up|gate).{}", "ff.net.0.proj.{}", fused(2)),
    ("ffn.down.{}", "ff.net.2.{}"),
]
_ENDS = [
    ("time.(0|2).{}", "time_embedding.linear_(1|2).{}"),
    ("summary.norm{}.{}", "add_embedding.norm{}.{}"),
    ("summary.position", "add_embedding.pool.positional_embedding"),
    ("summary.attention.(q|k|v).{}", "add_embedding.pool.(q|k|v)_proj.{}"),
    ("summary.attention.out.{}", "add_embedding.proj.{}"),
    ("(enter|norm|leave).{}", "(conv_in|conv_norm_out|conv_out).{}"),
    ("(down|up).{}.resample.conv.{}", "(down_blocks.{}.downsamplers|up_blocks.{}.upsamplers).0.conv.{}"),
]


def unet_table(config: UNetConfig) -> Table:
    """The rows of a UNet2DConditionModel; SD 1.x spells the transformers' outer projections as 1x1 convolutions."""
    transformer: list[Pair] = [
        ("norm.{}", "norm.{}"),
        ("(enter|leave).weight", "proj_(in|out).weight", same if config.linear_projection else pointwise),
        ("(enter|leave).bias", "proj_(in|out).bias"),
    ]
    found = rows(_ENDS)
    for ours, published in (("down.{}", "down_blocks.{}"), ("up.{}", "up_blocks.{}"), ("middle", "mid_block")):
        found += rows(RESIDUAL, f"{ours}.residuals.{{}}.", f"{published}.resnets.{{}}.")
        ours, published = f"{ours}.transformers.{{}}.", f"{published}.attentions.{{}}."
        found += rows(transformer, ours, published)
        found += rows(_LAYER, f"{ours}stack.blocks.{{}}.", f"{published}transformer_blocks.{{}}.")
    return Table(found)


UNET_KEYS = Keys(
    fields={
        **{"in_channels": "channels", "out_channels": "out_channels", "block_out_channels": "dims"},
        **{"layers_per_block": "layers", "transformer_layers_per_block": "transformer_layers"},
        **{"cross_attention_dim": "memory_dim", "norm_num_groups": "groups", "norm_eps": "norm_eps"},
        **{"use_linear_projection": "linear_projection", "sample_size": "sample_size"},
    },
    fixed={
        **only(None, "reverse_transformer_layers_per_block", "num_attention_heads", "cross_attention_norm"),
        **only(None, "class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"),
        **only(None, "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim"),
        **only(False, "center_input_sample", "only_cross_attention", "dual_cross_attention"),
        **only(False, "resnet_skip_time_act", "class_embeddings_concat"),
        **{"mid_block_type": ("UNetMidBlock2DCrossAttn",), "mid_block_only_cross_attention": (None, False)},
        **{"act_fn": ("silu",), "flip_sin_to_cos": (True,), "freq_shift": (0,), "downsample_padding": (1,)},
        **{"mid_block_scale_factor": (1,), "resnet_out_scale_factor": (1.0,), "attention_type": ("default",)},
        **{"addition_embed_type": (None, "text"), "resnet_time_scale_shift": ("default", "scale_shift")},
        **{"time_embedding_type": ("positional",), "conv_in_kernel": (3,), "conv_out_kernel": (3,)},
    },
    read={
        *("down_block_types", "up_block_types", "attention_head_dim"),
        *("addition_embed_type", "addition_embed_type_num_heads", "resnet_time_scale_shift"),
    },
    # A remedy for float16, whose largest number attention may pass; and what is of embeddings that are refused.
    harmless={"dropout", "upcast_attention", "addition_time_embed_dim", "projection_class_embeddings_input_dim"},
    absent={
        **{"cross_attention_dim": 1280, "attention_head_dim": 8},
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
)


def _read(published: Published) -> dict[str, Any]:
    published = UNET_KEYS.given(published)
    down, up = (_types(published, f"{way}_block_types", *_KINDS[way]) for way in ("down", "up"))
    if up != down[::-1]:
        raise ConfigError("up_block_types do not mirror down_block_types; such a U-Net is not supported")
    heads = published["attention_head_dim"]  # the number of heads: a misnomer that the format keeps
    summed_up = published.get("addition_embed_type") == "text"
    return {
        "attention": down,
        "heads": [heads] * len(down) if isinstance(heads, int) else heads,
        "summary_heads": published.get("addition_embed_type_num_heads", 64) if summed_up else 0,
        "scaled": published.get("resnet_time_scale_shift") == "scale_shift",
    }


_KINDS = {way: (f"{way.title()}Block2D", f"CrossAttn{way.title()}Block2D") for way in ("down", "up")}


def _types(published: Published, key: str, plain: str, attending: str) -> list[bool]:
    kinds = published.get(key)
    if not isinstance(kinds, list) or any(kind not in (plain, attending) for kind in kinds):
        raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {plain} and {attending}")
    return [kind == attending for kind in kinds]


def _write(c: UNetConfig) -> Published:
    return {
        "down_block_types": [_KINDS["down"][attends] for attends in c.attention],
        "up_block_types": [_KINDS["up"][attends] for attends in c.attention[::-1]],
        "attention_head_dim": list(c.heads) if len(set(c.heads)) > 1 else c.heads[0],
        "addition_embed_type": "text" if c.summary_heads else None,
        "addition_embed_type_num_heads": c.summary_heads or 64,
        "resnet_time_scale_shift": "scale_shift" if c.scaled else "default",
    }


UNET = Family(
    kind=UNetConfig,
    architecture="UNet2DConditionModel",
    keys=UNET_KEYS,
    table=unet_table,
    joints=(Joint((), _read, _write),),
    refused={},
)


def repaired(published: Published) -> dict[str, Any]:
    """What diffusers' StableDiffusionPipeline makes of a unet/config.json: before 0.9 every model was published with
    the size of a test's."""
    size, version = published.get("sample_size"), re.match(r"(\d+)\.(\d+)", str(published.get("_diffusers_version")))
    old = version and tuple(map(int, version.groups())) < (0, 9)
    return {**published, "sample_size": 64} if old and isinstance(size, int) and size < 64 else dict(published)
