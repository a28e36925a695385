"""open_clip's names: there and back bit for bit, and the same network as under transformers' names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qkv.errors import CheckpointError, ConfigError
from qkv.models.clip import CLIP, PRESETS, TextConfig, VisionConfig
from qkv.models.preprocess import Preprocess
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.weights.clip import load_clip
from qkv.weights.files import save_tensors
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights
from qkv.weights.open_clip import (
    CONFIG,
    TABLE,
    clip_configs,
    load_open_clip,
    read_preprocess,
    unknown_keys,
)

MODEL = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1},
}


def state(prefix: str = "") -> dict[str, torch.Tensor]:
    """What the state_dict of open_clip 3.3's CLIP(**MODEL) holds, by name and shape; of its CustomTextCLIP with the
    prefix "text."."""

    def block(start: str, width: int) -> dict[str, tuple[int, ...]]:
        shapes = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        linear = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        return {f"{start}.{name}": shape for name, shape in shapes.items()}

    shapes = block(f"{prefix}transformer.resblocks.0", 32)
    for layer in range(2):
        shapes |= block(f"visual.transformer.resblocks.{layer}", 64)
    shapes |= {f"visual.{norm}.{kind}": (64,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    shapes |= {f"{prefix}ln_final.{kind}": (32,) for kind in ("weight", "bias")}
    shapes |= {
        f"{prefix}positional_embedding": (16, 32),
        f"{prefix}text_projection": (32, 24),
        f"{prefix}token_embedding.weight": (60, 32),
        "logit_scale": (),
        "visual.class_embedding": (64,),
        "visual.conv1.weight": (64, 3, 8, 8),
        "visual.positional_embedding": (17, 64),
        "visual.proj": (64, 24),
    }
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def config_of(text: TextConfig, vision: VisionConfig) -> dict[str, Any]:
    """The model_cfg of such towers."""
    return {
        "embed_dim": text.proj_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.layers,
            "width": vision.dim,
            "head_width": vision.dim // vision.heads,
            "patch_size": vision.patch,
            "mlp_ratio": vision.ffn_dim / vision.dim,
        },
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": text.vocab,
            "width": text.dim,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.ffn_dim / text.dim,
        },
    }


def publish(clip: CLIP, folder: Path, **preprocess: Any) -> None:
    """A folder as open_clip writes it."""
    config = {"model_cfg": config_of(clip.text.config, clip.vision.config), "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config))
    save_tensors(folder / "open_clip_model.safetensors", TABLE.published(export_weights(clip)))


def test_there_and_back():
    published = state()
    ours = TABLE.ours(published | {"attn_mask": torch.zeros(16, 16), "input_resolution": torch.tensor(32)})
    again = TABLE.published(ours)
    assert again.keys() == published.keys()
    for name, tensor in published.items():
        assert again[name].equal(tensor), name


def test_every_tensor_has_its_place():
    for prefix in ("", "text."):
        with torch.device("meta"):
            clip = CLIP(*clip_configs({"model_cfg": MODEL}))
        ours = TABLE.ours(state(prefix))
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in clip.state_dict().items()}
    weight = state()["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert TABLE.ours(state())["vision.stack.blocks.1.attention.k.weight"].equal(weight[64:128])
    assert TABLE.ours(state())["text.project.weight"].equal(state()["text_projection"].t())


def test_the_same_network_under_either_name(tiny_clip, tmp_path):
    clip = load_clip(Folder(tiny_clip))
    publish(clip, tmp_path, interpolation="bilinear")
    again = load_open_clip(Folder(tmp_path))
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in clip.state_dict().items())
    assert again.vision.config == clip.vision.config
    first, second = clip.text.config, again.text.config
    assert {name: value for name, value in vars(first).items() if name != "pad"} == {
        name: value
        for name, value in vars(second).items()
        if name != "pad"  # 0 there; it is never looked at
    }
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((tiny_clip / name).read_bytes())
    embedder = load_clip_embedder(tmp_path, dtype="float32")
    assert embedder.preprocess.resample == "bilinear"
    other = load_clip_embedder(tiny_clip, dtype="float32")
    texts = ["a dog", "a red cat and a blue fish"]
    assert embedder.embed_texts(texts).vectors == pytest.approx(other.embed_texts(texts).vectors, abs=1e-6)
    seen = [other.see(Image.new("RGB", (32, 32), "teal"))]
    assert embedder.embed_pixels(seen) == pytest.approx(other.embed_pixels(seen), abs=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_openais_shapes_come_back(name):
    text, vision = clip_configs({"model_cfg": config_of(*PRESETS[name])})
    assert vision == PRESETS[name][1]
    assert {**vars(text), "pad": 49_407} == vars(PRESETS[name][0])


def test_what_a_file_leaves_out_is_as_open_clip_has_it():
    text, vision = clip_configs({"model_cfg": {"embed_dim": 512, "text_cfg": {}, "vision_cfg": {"patch_size": 32}}})
    expected = {"activation": "gelu"}
    assert vars(vision) == vars(PRESETS["ViT-B/32"][1]) | expected
    assert vars(text) == vars(PRESETS["ViT-B/32"][0]) | expected | {"pad": 0}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext"}, "timm_model_name='convnext' is not supported"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "vision_cfg.layers"),
        ("vision_cfg", {"head_width": 60}, "width=64 is not divisible by head_width=60"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type='avg' is not supported"),
        ("vision_cfg", {"mlp_ratio": 1e9}, "is no width"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name='roberta-base' is not supported"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask=True is not supported"),
        ("text_cfg", {"vocab_size": "many"}, "text_cfg.vocab='many'"),
    ],
)
def test_what_our_towers_cannot_do_is_named(part, change, message):
    with pytest.raises(ConfigError, match=message):
        clip_configs({"model_cfg": MODEL | {part: MODEL[part] | change}})


def test_no_clip(tmp_path):
    with pytest.raises(ConfigError, match="has no model_cfg"):
        clip_configs({})
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": MODEL}))
    with pytest.raises(CheckpointError, match="has no weights"):
        load_open_clip(Folder(tmp_path))


def test_its_pictures():
    squashed = Preprocess(resize=(32, 32), crop=(32, 32), mean=(0.5, 0.5, 0.5))
    given = {"mean": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    assert read_preprocess({"preprocess_cfg": given}, 32) == squashed
    assert read_preprocess({}, 224) == Preprocess()
    with pytest.raises(ConfigError, match="resize_mode='longest' is not supported"):
        read_preprocess({"preprocess_cfg": {"resize_mode": "longest"}}, 32)


def test_unknown_keys_are_named():
    assert unknown_keys({"model_cfg": MODEL}) == []
    changed = {"model_cfg": MODEL | {"text_cfg": MODEL["text_cfg"] | {"gate": 1}}, "preprocess_cfg": {"blur": 2}}
    assert [warning.split(";")[0] for warning in unknown_keys(changed)] == [
        "unknown-keys: open_clip_config.json: text_cfg has gate",
        "unknown-keys: open_clip_config.json: preprocess_cfg has blur",
    ]


def test_a_logit_bias_is_refused():
    with pytest.raises(ConfigError, match="init_logit_bias=-10 is not supported"):
        clip_configs({"model_cfg": MODEL | {"init_logit_bias": -10}})


def test_a_size_that_is_not_the_towers_is_refused():
    for size in (32, [32, 32], None):
        assert read_preprocess({"preprocess_cfg": {"size": size}}, 32) == read_preprocess({}, 32)
    with pytest.raises(ConfigError, match="size=64 is not supported; the model reads 32"):
        read_preprocess({"preprocess_cfg": {"size": 64}}, 32)
