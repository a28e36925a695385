"""Stable Diffusion's folders as diffusers publishes them: `model_index.json`, `unet/`, `vae/`, `text_encoder/`,
`tokenizer/`, `scheduler/`; read into our models and written from them.

The safety checker and its feature extractor are left out: they are models of their own beside the picture.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.config import build
from qkv.errors import CheckpointError, ConfigError, shorten
from qkv.models import noise
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE, VAEConfig
from qkv.text.tokenizer import Tokenizer
from qkv.weights.clip import load_text_tower, published_text_tower
from qkv.weights.configs import Keys, write_json
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_module
from qkv.weights.tables import Row, Table, fused, pointwise, same

VERSION = "0.42.1"  # of the diffusers that our folders are tested with

# Names. A residual block, a transformer layer and an attention are spelled alike wherever they stand.

_RESIDUAL = [
    ("norm1.{}", "norm1.{}"),
    ("conv1.{}", "conv1.{}"),
    ("time.{}", "time_emb_proj.{}"),
    ("norm2.{}", "norm2.{}"),
    ("conv2.{}", "conv2.{}"),
    ("shortcut.{}", "conv_shortcut.{}"),
]
_ATTENTION = [("q.{}", "to_q.{}"), ("k.{}", "to_k.{}"), ("v.{}", "to_v.{}"), ("out.{}", "to_out.0.{}")]
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_LAYER = [
    ("attention_norm.{}", "norm1.{}"),
    *((f"attention.{a}", f"attn1.{b}") for a, b in _ATTENTION),
    ("memory_norm.{}", "norm2.{}"),
    *((f"memory_attention.{a}", f"attn2.{b}") for a, b in _ATTENTION),
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
        rows += [(f"{ours}.residuals.{{}}.{a}", f"{published}.resnets.{{}}.{b}") for a, b in _RESIDUAL]
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
                for a, b in _RESIDUAL
            ),
            *((f"{part}.middle.residuals.{{}}.{a}", f"{part}.mid_block.resnets.{{}}.{b}") for a, b in _RESIDUAL),
        ]
        ours, published = f"{part}.middle.attention", f"{part}.mid_block.attentions.0"
        rows.append((f"{ours}.norm.{{}}", f"{published}.group_norm.{{}}"))
        for a, b in _ATTENTION:
            old = b.removesuffix(".{}")
            rows.append(
                Row((f"{ours}.attention.{a}",), f"{published}.{b}", (f"{published}.{_OLD_ATTENTION[old]}.{{}}",))
            )
    return Table(rows)


VAE_TABLE = _vae_table()


# Configurations.

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
        "addition_embed_type": (None, "text"),  # unet_config reads which, here and below
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
        "upcast_attention": (False, True),  # a remedy for float16, whose largest number attention may pass
    },
    absent={"cross_attention_dim": 1280},
)
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
    fixed={"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)},
    absent={"block_out_channels": [64], "layers_per_block": 1, "sample_size": 32},
)


def unet_config(published: Mapping[str, Any]) -> UNetConfig:
    """From unet/config.json."""
    values = UNET_KEYS.ours(published)
    down = _types(published, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")
    up = _types(published, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")
    if up != down[::-1]:
        raise ConfigError("up_block_types do not mirror down_block_types; such a U-Net is not supported")
    heads = published.get("attention_head_dim", 8)  # the number of heads: a misnomer that the format keeps
    heads = [heads] * len(down) if isinstance(heads, int) else heads
    summed_up = published.get("addition_embed_type") == "text"
    values |= {
        "attention": down,
        "heads": heads,
        "summary_heads": published.get("addition_embed_type_num_heads", 64) if summed_up else 0,
        "scaled": published.get("resnet_time_scale_shift") == "scale_shift",
    }
    return build(UNetConfig, values, "unet")


def _types(published: Mapping[str, Any], key: str, plain: str, attending: str) -> list[bool]:
    kinds = published.get(key)
    if not isinstance(kinds, list) or any(kind not in (plain, attending) for kind in kinds):
        raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {plain} and {attending}")
    return [kind == attending for kind in kinds]


def vae_config(published: Mapping[str, Any]) -> VAEConfig:
    """From vae/config.json."""
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        kinds = published.get(key, [kind])
        if not isinstance(kinds, list) or any(other != kind for other in kinds):
            raise ConfigError(f"{key}={shorten(repr(kinds))} is not supported; it must hold {kind}")
    if published.get("use_post_quant_conv", True) != published.get("use_quant_conv", True):
        raise ConfigError("use_post_quant_conv differs from use_quant_conv; such an autoencoder is not supported")
    return build(VAEConfig, VAE_KEYS.ours(published), "vae")


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


def published_vae(vae: VAE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """vae/config.json and its tensors."""
    c = vae.config
    kinds = {
        "down_block_types": ["DownEncoderBlock2D"] * len(c.dims),
        "up_block_types": ["UpDecoderBlock2D"] * len(c.dims),
        "use_post_quant_conv": c.latent_convs,
        "shift_factor": c.shift or None,
        "force_upcast": False,
    }
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": VERSION} | VAE_KEYS.published(c) | kinds
    return config, VAE_TABLE.published(export_weights(vae))


# Folders.


def load_unet(folder: Folder, *, dtype: torch.dtype | None = None, variant: str | None = None) -> UNet:
    """The U-Net in the folder's `unet`."""
    config = unet_config(folder.json("unet/config.json"))
    return load_module(
        lambda: UNet(config), unet_table(config).ours(folder.tensors("unet", variant=variant)), dtype=dtype
    )


def load_vae(folder: Folder, *, dtype: torch.dtype | None = None, variant: str | None = None) -> VAE:
    """The autoencoder in the folder's `vae`."""
    config = vae_config(folder.json("vae/config.json"))
    tensors = VAE_TABLE.ours(folder.tensors("vae", variant=variant))
    return load_module(lambda: VAE(config), tensors, dtype=dtype)


def load_latent_diffusion(
    path: Path, *, name: str | None = None, dtype: torch.dtype | None = None, variant: str | None = None
) -> LatentDiffusion:
    """A whole pipeline folder, on the CPU, memory-mapped where `dtype` is None or the file's own.

    CheckpointError or ConfigError says which part is missing, broken or of a kind that is not supported.
    """
    folder = Folder(path)
    if not folder.has("model_index.json"):
        raise CheckpointError(f"{path} has no model_index.json: it is no model that draws; name one of `qkv models`")
    index = folder.json("model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(f"{path} holds a {kind}; this reads {' and '.join(PIPELINES)}")
    model = LatentDiffusion(
        name=name or path.resolve().name,
        tokenizer=Tokenizer.load(path / "tokenizer"),
        text=load_text_tower(folder, "text_encoder", dtype=dtype, variant=variant),
        unet=load_unet(folder, dtype=dtype, variant=variant),
        vae=load_vae(folder, dtype=dtype, variant=variant),
        noise=noise.from_published(folder.json("scheduler/scheduler_config.json")),
    )
    _check_fit(model, path)
    return model


PIPELINES = ("StableDiffusionPipeline",)


def _check_fit(model: LatentDiffusion, path: Path) -> None:
    """The parts must speak to each other."""
    unet, vae, text = model.unet.config, model.vae.config, model.text.config
    if unet.channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise CheckpointError(
            f"{path}: the U-Net's {unet.channels} channels are not the {vae.latent_channels} of the vae"
        )
    if unet.memory_dim != text.dim:
        raise CheckpointError(
            f"{path}: the U-Net reads texts of width {unet.memory_dim}, its text encoder has {text.dim}"
        )
    if model.tokenizer.vocab > text.vocab:
        raise CheckpointError(
            f"{path}: the tokenizer has {model.tokenizer.vocab} tokens, the text encoder {text.vocab}; they do not fit"
        )


def save_component(
    folder: Path,
    published: tuple[dict[str, Any], dict[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and weights of one part, under the stem that its library looks for."""
    config, tensors = published
    stem = "model" if "architectures" in config else "diffusion_pytorch_model"
    write_json(folder / "config.json", config)
    whole = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    write_tensors(folder, stem, whole, max_shard_bytes=max_shard_bytes)


def save_latent_diffusion(
    model: LatentDiffusion, path: Path, *, dtype: torch.dtype | None = None, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that diffusers' `StableDiffusionPipeline.from_pretrained` opens. Raises OutputError."""
    parts = {
        "unet": published_unet(model.unet),
        "vae": published_vae(model.vae),
        "text_encoder": published_text_tower(model.text),
    }
    for name, published in parts.items():
        save_component(path / name, published, dtype=dtype, max_shard_bytes=max_shard_bytes)
    model.tokenizer.save(path / "tokenizer")
    scheduler = noise.to_published(model.noise)
    write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(path / "model_index.json", index)
