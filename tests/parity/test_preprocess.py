"""Pictures as transformers' image processor with Pillow prepares them, to one grey level."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qkv.models.preprocess import Preprocess
from qkv.tasks.embed_clip import load_clip_embedder
from qkv.weights.folder import Folder
from qkv.weights.preprocess import KEYS, from_published, read_preprocess, save_preprocess

SETTINGS = {
    "as it is": {},
    "small": {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}},
    "margin": {"size": {"shortest_edge": 48}, "crop_size": 40},
    "wide": {"size": {"shortest_edge": 30}, "crop_size": {"height": 20, "width": 28}},
    "larger crop": {"size": {"shortest_edge": 30}, "crop_size": {"height": 41, "width": 36}},
    "squashed": {"size": {"height": 32, "width": 40}, "do_center_crop": False},
    "bilinear": {"resample": 2},
    "lanczos": {"resample": 1},
    "no resize": {"do_resize": False, "crop_size": 50},
    "no normalise": {"do_normalize": False},
    "no rescale": {"do_rescale": False, "do_normalize": False},
    "other numbers": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 1 / 200},
}
SIZES = [(64, 64), (200, 90), (91, 203), (300, 7), (30, 31), (17, 225)]


def pictures():
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
        noise = rng.integers(-20, 20, (height, width, 3))
        yield Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_to_a_grey_level(name):
    theirs = CLIPImageProcessorPil(**SETTINGS[name])
    ours = from_published(json.loads(theirs.to_json_string()))
    for image in pictures():
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        level = ours.factor / np.array(ours.std)[:, None, None]
        found = ours(image)
        assert found.shape == expected.shape
        assert (abs(found - expected) / level).max() <= 1.001


def test_grey_pictures_too():
    image = Image.fromarray(np.arange(50 * 60, dtype=np.uint32).reshape(50, 60).astype(np.uint8))
    expected = CLIPImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
    found = Preprocess()(image.convert("RGB"))
    assert abs(found - expected).max() <= 1.001 / 255 / min(Preprocess().std)


def test_its_keys():
    """Every key that the installed version has, so that a new release tells us."""
    assert set(CLIPImageProcessorPil().valid_kwargs.__annotations__) <= KEYS.names
    assert KEYS.unknown(CLIPImageProcessorPil().to_dict(), "") == []


@pytest.mark.parametrize("key", ["do_resize", "do_rescale", "do_normalize"])
def test_a_switch_that_is_null_is_off(key):
    theirs, image = CLIPImageProcessorPil(**{key: None}), next(pictures())
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    ours = from_published({key: None})
    level = ours.factor / np.array(ours.std)[:, None, None]
    assert (abs(ours(image) - expected) / level).max() <= 1.001


@pytest.mark.parametrize("name", SETTINGS)
def test_what_we_write_transformers_reads(name, tmp_path):
    ours = from_published(SETTINGS[name])
    save_preprocess(ours, tmp_path)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    assert from_published(json.loads(theirs.to_json_string())) == ours
    assert from_published(json.loads((tmp_path / "preprocessor_config.json").read_text())) == ours


def test_a_folder_from_picture_to_vector(parity, tmp_path, tiny_clip):
    """A CLIPModel with its processor, as transformers saves them, gives transformers' vectors of a picture."""
    tokens = json.loads((tiny_clip / "config.json").read_text())["text_config"]
    text = {"vocab_size": tokens["vocab_size"], "eos_token_id": tokens["eos_token_id"], "hidden_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    vision = {"image_size": 40, "patch_size": 10, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 3}
    theirs = parity.strong(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    processor = CLIPImageProcessorPil(**SETTINGS["margin"])
    for part in (theirs, processor):
        part.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((tiny_clip / name).read_bytes())
    assert read_preprocess(Folder(tmp_path), 40).resize == 48
    embedder = load_clip_embedder(tmp_path, device="cpu", dtype="float32")
    images = list(pictures())
    with torch.no_grad():
        out = theirs.get_image_features(processor(images, return_tensors="pt")["pixel_values"])
    expected = torch.nn.functional.normalize(getattr(out, "pooler_output", out), dim=-1).numpy()
    found = embedder.embed_pixels([embedder.see(image) for image in images])
    assert abs(found - expected).max() < 1e-4
