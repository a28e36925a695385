"""CLIP's published names and configurations: transformers' `CLIPModel`, `CLIPTextModel` and their folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from qkv.config import build
from qkv.errors import ConfigError
from qkv.models.clip import CLIP, TextConfig, TextTower, VisionConfig
from qkv.published import Keys, Published
from qkv.weights.configs import COMMON, GENERATION, spelled, write_json
from qkv.weights.family import Family, Joint
from qkv.weights.folder import Folder, write_tensors
from qkv.weights.load import export_weights, load_module
from qkv.weights.tables import Row, Table, rows

TEXT_KEYS = Keys(
    fields=spelled(start="bos_token_id", end="eos_token_id", pad="pad_token_id"),
    read={"projection_dim"},
    fixed={"model_type": ("clip_text_model",), "use_attention_mask": (False,)},
    harmless=COMMON | GENERATION,
    absent={"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "pad_token_id": 1},
)
VISION_KEYS = Keys(
    fields=spelled(vocab=None, context=None, image_size="image_size", patch="patch_size", channels="num_channels"),
    read={"projection_dim"},
    fixed={"model_type": ("clip_vision_model",)},
    harmless=COMMON | GENERATION,
    absent={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"patch_size": 32},
)
BOTH_KEYS = Keys(
    read={"text_config", "vision_config", "text_config_dict", "vision_config_dict", "projection_dim"},
    harmless=COMMON | GENERATION | {"logit_scale_init_value"},
    absent={"projection_dim": 512},
)

_BLOCK = [
    ("attention.(q|k|v|out).{}", "self_attn.(q|k|v|out)_proj.{}"),
    ("(attention_norm|ffn_norm).{}", "(layer_norm1|layer_norm2).{}"),
    ("ffn.(up|down).{}", "mlp.(fc1|fc2).{}"),
]
_TEXT = [
    ("(token|position).weight", "embeddings.(token|position)_embedding.weight"),
    ("stack.norm.{}", "final_layer_norm.{}"),
]
_VISION = [
    ("(patch|position).weight", "embeddings.(patch|position)_embedding.weight"),
    ("first", "embeddings.class_embedding"),
    ("(enter_norm|norm).{}", "(pre_layrnorm|post_layernorm).{}"),
]
_IGNORED = [f"{tower}embeddings.position_ids" for tower in ("", "text_model.", "vision_model.")]


def _tower(ours: str, published: str, pairs: list[tuple[str, str]], *older: str) -> list[Row]:
    layers = (prefix + "encoder.layers.{}." for prefix in older)
    layer = rows(_BLOCK, f"{ours}stack.blocks.{{}}.", f"{published}encoder.layers.{{}}.", *layers)
    return rows(pairs, ours, published, *older) + layer


# transformers 5 writes a single tower without its own prefix.
TEXT = Table([*_tower("", "text_model.", _TEXT, ""), ("project.weight", "text_projection.weight")], _IGNORED)
BOTH = Table(
    [
        *_tower("text.", "text_model.", _TEXT),
        *_tower("vision.", "vision_model.", _VISION),
        ("(text|vision).project.weight", "(text|visual)_projection.weight"),
        ("log_scale", "logit_scale"),
    ],
    _IGNORED,
)


def _settle(config: TextConfig, tensors: dict[str, Tensor]) -> TextConfig:
    projection = tensors.get("project.weight")
    return replace(config, proj_dim=None if projection is None else len(projection))


def _write(config: TextConfig) -> Published:
    """The dtype is float32: transformers would else load this part of a pipeline alone in half precision."""
    if config.proj_dim is None:
        return {"dtype": "float32"}
    return {"architectures": ["CLIPTextModelWithProjection"], "dtype": "float32", "projection_dim": config.proj_dim}


TEXT_TOWER = Family(
    kind=TextConfig,
    architecture="CLIPTextModel",
    keys=TEXT_KEYS,
    table=lambda config: TEXT,
    joints=(Joint((), lambda published: {}, _write),),
    refused={},
    settle=_settle,
    unsaid=lambda config: {"proj_dim": config.proj_dim},
)


def load_text_tower(folder: Folder, component: str = "", **options: Any) -> TextTower:
    """The tower of a CLIPTextModel (or ...WithProjection) folder; options as `Family.load`."""
    return TEXT_TOWER.load(folder, TextTower, component, **options)


def text_config(published: Published, proj_dim: Any = None) -> TextConfig:
    """The text tower's part of a CLIPModel's config.json."""
    return build(TextConfig, TEXT_KEYS.ours(published) | {"proj_dim": proj_dim}, "text_config")


def clip_configs(published: Published) -> tuple[TextConfig, VisionConfig]:
    """The configurations of both towers from a CLIPModel's config.json."""
    BOTH_KEYS.ours(published)
    text, vision = _parts(published)
    proj_dim = BOTH_KEYS.given(published)["projection_dim"]
    sight = VISION_KEYS.ours(vision) | {"proj_dim": proj_dim}
    return text_config(text, proj_dim), build(VisionConfig, sight, "vision_config")


def _parts(published: Published) -> list[Published]:
    """The configurations of both towers. Where an old file has one twice, transformers takes the other spelling."""
    parts = [published.get(f"{part}_config_dict") or published.get(f"{part}_config") for part in ("text", "vision")]
    for part, values in zip(("text", "vision"), parts):
        if not isinstance(values, dict):
            raise ConfigError(f"config.json has no {part}_config; it is no CLIPModel's")
    return cast(list[Published], parts)


def unknown_keys(published: Published) -> list[str]:
    """Warnings that name the keys of a CLIPModel's config.json which no table knows."""
    text, vision = _parts(published)
    return [
        *BOTH_KEYS.unknown(published, "config.json"),
        *TEXT_KEYS.unknown(text, "config.json: text_config"),
        *VISION_KEYS.unknown(vision, "config.json: vision_config"),
    ]


def load_clip(folder: Folder, *, texts: Folder | None = None, dtype: torch.dtype | None = None) -> CLIP:
    """Both towers from a CLIPModel folder. `texts` is a pipeline folder that keeps the text tower as its
    `text_encoder`, for a folder that was saved without it."""
    text, vision = clip_configs(folder.json("config.json"))
    tensors = BOTH.ours(folder.tensors())
    if texts is not None:
        tensors |= {f"text.{name}": tensor for name, tensor in TEXT.ours(texts.tensors("text_encoder")).items()}
    return load_module(lambda: CLIP(text, vision), tensors, dtype=dtype)


def published_clip(clip: CLIP) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a CLIPModel."""
    proj_dim = clip.text.config.proj_dim
    towers = {
        "text_config": TEXT_KEYS.published(clip.text.config) | {"projection_dim": proj_dim},
        "vision_config": VISION_KEYS.published(clip.vision.config) | {"projection_dim": proj_dim},
    }
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": proj_dim, "dtype": "float32"}
    return config | towers, BOTH.published(export_weights(clip))


def save_clip(clip: CLIP, folder: Path, *, text_elsewhere: bool = False, dtype: torch.dtype | None = None) -> None:
    """Writes config.json and model.safetensors of a CLIPModel; with `text_elsewhere` without its text tower, which a
    pipeline keeps already."""
    config, tensors = published_clip(clip)
    kept = {name: tensor for name, tensor in tensors.items() if not (text_elsewhere and name.startswith("text_model."))}
    write_json(folder / "config.json", config)
    write_tensors(folder, "model", kept, dtype=dtype)
