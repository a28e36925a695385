"""open_clip's published names and configurations, which are OpenAI's own: `open_clip_config.json` and
`open_clip_model.safetensors`.

    attn.in_proj_weight (3D, D)  <->  q, k, v, each (D, D)
    visual.proj, text_projection (D, P)  <->  project.weight (P, D)

Read only: what is trained or exported here is written as transformers publishes it (weights/clip.py).
Left out: towers out of timm or Hugging Face, ResNets, and the newer blocks with norms of their own; a configuration
that asks for one is refused by name.
"""

from typing import Any

import torch

from qkv.config import build
from qkv.errors import ConfigError, shorten
from qkv.models.clip import CLIP, TextConfig, VisionConfig
from qkv.models.preprocess import MEAN, STD, Preprocess
from qkv.published import Keys, Published
from qkv.weights.folder import Folder
from qkv.weights.load import load_module
from qkv.weights.tables import Pair, Table, fused, rows, transposed

CONFIG, STEM = "open_clip_config.json", "open_clip_model"

# What our towers cannot but do; other values of these keys are refused.
_NAMES = [
    *("ls_init_value", "attentional_pool", "no_ln_pre", "final_ln_after_pool", "block_type", "qk_norm", "act_kwargs"),
    *("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "norm_kwargs", "embed_cls"),
    *("timm_model_name", "hf_model_name", "hf_tokenizer_name", "no_causal_mask", "proj_bias"),
]
_PLAIN: dict[str, tuple[Any, ...]] = dict.fromkeys(_NAMES, (False, None))
# What training, and towers that are refused above, have beside them.
_OF_OTHERS = frozenset(
    {
        *("output_tokens", "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "tokenizer_kwargs"),
        *("pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "timm_model_pretrained"),
        *("timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    }
)
TEXT_KEYS = Keys(
    fields={"context_length": "context", "vocab_size": "vocab", "width": "dim", "heads": "heads", "layers": "layers"},
    read={"mlp_ratio"},
    fixed=_PLAIN | {"pool_type": ("argmax",), "proj_type": ("linear",)},
    harmless=_OF_OTHERS,
    absent={"width": 512, "heads": 8},
)
VISION_KEYS = Keys(
    fields={"image_size": "image_size", "patch_size": "patch", "width": "dim", "layers": "layers"},
    read={"mlp_ratio", "head_width"},
    fixed=_PLAIN | {"pool_type": ("tok",), "pos_embed_type": ("learnable",)},
    harmless=_OF_OTHERS,
    absent={"width": 768, "layers": 12, "patch_size": 16},
)

MODEL_KEYS = Keys(
    read={"embed_dim", "quick_gelu", "text_cfg", "vision_cfg"},
    fixed={"multimodal_cfg": (None,), "init_logit_bias": (None,), "nonscalar_logit_scale": (False,)},
    harmless={"custom_text", "init_logit_scale", "cast_dtype", "output_dict"},
)
PREPROCESS_KEYS = Keys(
    read={"size", "mean", "std", "interpolation", "resize_mode"},
    fixed={"mode": ("RGB",)},
    harmless={"fill_color"},  # of a mode of resizing that is refused
)

_BLOCK: list[Pair] = [
    ("attention.(q|k|v).{}", "attn.in_proj_{}", fused(3)),
    ("attention.out.{}", "attn.out_proj.{}"),
    ("(attention_norm|ffn_norm).{}", "(ln_1|ln_2).{}"),
    ("ffn.(up|down).{}", "mlp.(c_fc|c_proj).{}"),
]
_TEXT: list[Pair] = [
    ("text.token.weight", "token_embedding.weight"),
    ("text.position.weight", "positional_embedding"),
    ("text.stack.norm.{}", "ln_final.{}"),
    ("text.project.weight", "text_projection", transposed),
]
_VISION: list[Pair] = [
    ("vision.patch.weight", "conv1.weight"),
    ("vision.first", "class_embedding"),
    ("vision.position.weight", "positional_embedding"),
    ("vision.(enter_norm|norm).{}", "(ln_pre|ln_post).{}"),
    ("vision.project.weight", "proj", transposed),
]
TABLE = Table(
    [
        *rows(_TEXT, "", "", "text."),  # the text tower of a CustomTextCLIP has a prefix of its own
        *rows(_BLOCK, "text.stack.blocks.{}.", "transformer.resblocks.{}.", "text.transformer.resblocks.{}."),
        *rows(_VISION, "", "visual."),
        *rows(_BLOCK, "vision.stack.blocks.{}.", "visual.transformer.resblocks.{}."),
        ("log_scale", "logit_scale"),
    ],
    # A mask that can be computed, and what OpenAI's files say of themselves.
    ["attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"],
)


def clip_configs(published: Published) -> tuple[TextConfig, VisionConfig]:
    """The configurations of both towers from an open_clip_config.json. ConfigError."""
    model = _part(published, "model_cfg")
    MODEL_KEYS.ours(model)
    text, vision = _part(model, "text_cfg"), _part(model, "vision_cfg")
    shared = {"proj_dim": model.get("embed_dim"), "activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    words = TEXT_KEYS.ours(text)
    words |= {"ffn_dim": _times("text_cfg", words.get("dim"), text.get("mlp_ratio", 4.0))} | _tokens(words)
    sight = VISION_KEYS.ours(vision)
    sight["heads"] = _heads(sight["dim"], vision.get("head_width", 64))
    sight["ffn_dim"] = _times("vision_cfg", sight["dim"], vision.get("mlp_ratio", 4.0))
    return build(TextConfig, words | shared, "text_cfg"), build(VisionConfig, sight | shared, "vision_cfg")


def unknown_keys(published: Published) -> list[str]:
    """Warnings that name the keys of an open_clip_config.json which no table knows."""
    model = _part(published, "model_cfg")
    return [
        *Keys(read={"model_cfg", "preprocess_cfg"}).unknown(published, CONFIG),
        *MODEL_KEYS.unknown(model, f"{CONFIG}: model_cfg"),
        *TEXT_KEYS.unknown(_part(model, "text_cfg"), f"{CONFIG}: text_cfg"),
        *VISION_KEYS.unknown(_part(model, "vision_cfg"), f"{CONFIG}: vision_cfg"),
        *PREPROCESS_KEYS.unknown(published.get("preprocess_cfg") or {}, f"{CONFIG}: preprocess_cfg"),
    ]


def _part(published: Published, key: str) -> Published:
    part = published.get(key)
    if not isinstance(part, dict):
        raise ConfigError(f"{CONFIG} has no {key}; it is no CLIP of open_clip's")
    return part


def _tokens(words: Published) -> dict[str, int]:
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


def read_preprocess(published: Published, size: int) -> Preprocess:
    """The `preprocess_cfg` of an open_clip_config.json, for a tower of `size` x `size` pixels. ConfigError."""
    given = PREPROCESS_KEYS.given(published.get("preprocess_cfg") or {})
    PREPROCESS_KEYS.ours(given)
    if (given_size := given.get("size", size)) not in (size, [size, size]):
        raise ConfigError(f"{CONFIG}: size={shorten(repr(given_size))} is not supported; the model reads {size}")
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
