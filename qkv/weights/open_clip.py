"""open_clip's published names and configurations, which are OpenAI's own: `open_clip_config.json` and
`open_clip_model.safetensors`.

    attn.in_proj_weight (3D, D)  <->  q, k, v, each (D, D)
    visual.proj, text_projection (D, P)  <->  project.weight (P, D)

Read only: what is trained or exported here is written as transformers publishes it (weights/clip.py).
Left out: towers out of timm or Hugging Face, ResNets, and the newer blocks with norms of their own; a configuration
that asks for one is refused by name.
"""

from collections.abc import Mapping
from typing import Any

import torch

from qkv.config import build
from qkv.errors import ConfigError, shorten
from qkv.models.clip import CLIP, TextConfig, VisionConfig
from qkv.models.preprocess import MEAN, STD, Preprocess
from qkv.weights.configs import Keys
from qkv.weights.folder import Folder
from qkv.weights.load import load_module
from qkv.weights.tables import Row, Table, fused, transposed

CONFIG, STEM = "open_clip_config.json", "open_clip_model"

# What our towers cannot but do; other values of these keys are refused.
_PLAIN: dict[str, tuple[Any, ...]] = dict.fromkeys(
    [
        *("ls_init_value", "attentional_pool", "no_ln_pre", "final_ln_after_pool", "block_type", "qk_norm"),
        *("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "act_kwargs"),
        *("norm_kwargs", "timm_model_name", "hf_model_name", "embed_cls", "no_causal_mask", "proj_bias"),
    ],
    (False, None),
)
TEXT_KEYS = Keys(
    fields={
        "context_length": "context",
        "vocab_size": "vocab",
        "width": "dim",
        "heads": "heads",
        "layers": "layers",
    },
    fixed=_PLAIN | {"pool_type": ("argmax",), "proj_type": ("linear",)},
    absent={"width": 512, "heads": 8},
)
VISION_KEYS = Keys(
    fields={"image_size": "image_size", "patch_size": "patch", "width": "dim", "layers": "layers"},
    fixed=_PLAIN | {"pool_type": ("tok",), "pos_embed_type": ("learnable",)},
    absent={"width": 768, "layers": 12, "patch_size": 16},
)

_BLOCK = [
    ("attention.out.{}", "attn.out_proj.{}"),
    ("attention_norm.{}", "ln_1.{}"),
    ("ffn_norm.{}", "ln_2.{}"),
    ("ffn.up.{}", "mlp.c_fc.{}"),
    ("ffn.down.{}", "mlp.c_proj.{}"),
]


def _blocks(tower: str, published: str, *older: str) -> list[Row]:
    """A stack's rows. The text tower of a CustomTextCLIP has a prefix of its own."""
    ours, theirs = f"{tower}.stack.blocks.{{}}.", "transformer.resblocks.{}."
    rows = [_row(f"{ours}{a}", f"{theirs}{b}", published, *older) for a, b in _BLOCK]
    for kind in ("weight", "bias"):
        parts = tuple(f"{ours}attention.{part}.{kind}" for part in "qkv")
        fused_name = f"{theirs}attn.in_proj_{kind}"
        rows.append(Row(parts, published + fused_name, tuple(o + fused_name for o in older), fused(3)))
    return rows


def _row(ours: str, name: str, published: str, *older: str) -> Row:
    return Row((ours,), published + name, tuple(prefix + name for prefix in older))


TABLE = Table(
    [
        *_blocks("text", "", "text."),
        *_blocks("vision", "visual."),
        _row("text.token.weight", "token_embedding.weight", "", "text."),
        _row("text.position.weight", "positional_embedding", "", "text."),
        _row("text.stack.norm.{}", "ln_final.{}", "", "text."),
        Row(("text.project.weight",), "text_projection", ("text.text_projection",), transposed),
        ("vision.patch.weight", "visual.conv1.weight"),
        ("vision.first", "visual.class_embedding"),
        ("vision.position.weight", "visual.positional_embedding"),
        ("vision.enter_norm.{}", "visual.ln_pre.{}"),
        ("vision.norm.{}", "visual.ln_post.{}"),
        Row(("vision.project.weight",), "visual.proj", transform=transposed),
        ("log_scale", "logit_scale"),
    ],
    # A mask that can be computed, and what OpenAI's files say of themselves.
    ["attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"],
)


def clip_configs(published: Mapping[str, Any]) -> tuple[TextConfig, VisionConfig]:
    """The configurations of both towers from an open_clip_config.json. ConfigError."""
    model = _part(published, "model_cfg")
    text, vision = _part(model, "text_cfg"), _part(model, "vision_cfg")
    shared = {"proj_dim": model.get("embed_dim"), "activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    words = TEXT_KEYS.ours(text)
    words |= {"ffn_dim": _times("text_cfg", words.get("dim"), text.get("mlp_ratio", 4.0))} | _tokens(words)
    sight = VISION_KEYS.ours(vision)
    sight["heads"] = _heads(sight["dim"], vision.get("head_width", 64))
    sight["ffn_dim"] = _times("vision_cfg", sight["dim"], vision.get("mlp_ratio", 4.0))
    return build(TextConfig, words | shared, "text_cfg"), build(VisionConfig, sight | shared, "vision_cfg")


def _part(published: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = published.get(key)
    if not isinstance(part, dict):
        raise ConfigError(f"{CONFIG} has no {key}; it is no CLIP of open_clip's")
    return part


def _tokens(words: Mapping[str, Any]) -> dict[str, int]:
    """The last two tokens begin and end a text, and 0 fills it up, in every vocabulary of CLIP's kind."""
    vocab = words.get("vocab", TextConfig.vocab)
    return {"start": vocab - 2, "end": vocab - 1, "pad": 0} if isinstance(vocab, int) else {}


def _times(where: str, dim: Any, ratio: Any) -> int:
    if isinstance(dim, int) and isinstance(ratio, int | float) and 0 < dim * ratio <= 1_000_000:
        return int(dim * ratio)
    raise ConfigError(f"{where}: width={shorten(repr(dim))} times mlp_ratio={shorten(repr(ratio))} is no width")


def _heads(dim: Any, width: Any) -> int:
    if isinstance(dim, int) and isinstance(width, int) and width > 0 and dim > 0 and dim % width == 0:
        return dim // width
    raise ConfigError(f"vision_cfg: width={shorten(repr(dim))} is not divisible by head_width={shorten(repr(width))}")


def load_open_clip(folder: Folder, *, dtype: torch.dtype | None = None) -> CLIP:
    """Both towers from open_clip's folder. CheckpointError, ConfigError."""
    text, vision = clip_configs(folder.json(CONFIG))
    return load_module(lambda: CLIP(text, vision), TABLE.ours(folder.tensors(stems=(STEM,))), dtype=dtype)


def read_preprocess(published: Mapping[str, Any], size: int) -> Preprocess:
    """The `preprocess_cfg` of an open_clip_config.json, for a tower of `size` x `size` pixels. ConfigError."""
    given = published.get("preprocess_cfg") or {}
    modes = {"shortest": size, "squash": (size, size)}
    mode = given.get("resize_mode", "shortest")
    if mode not in modes:
        given_mode = shorten(repr(mode))
        raise ConfigError(f"{CONFIG}: resize_mode={given_mode} is not supported; it must be shortest or squash")
    values = {
        "resize": modes[mode],
        "crop": (size, size),
        "resample": given.get("interpolation", "bicubic"),
        "mean": given.get("mean", MEAN),
        "std": given.get("std", STD),
    }
    return build(Preprocess, values, "preprocess_cfg")
