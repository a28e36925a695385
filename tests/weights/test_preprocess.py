"""preprocessor_config.json: every spelling is read, what cannot be honoured is named."""

import json

import pytest

from qkv.errors import ConfigError
from qkv.models.preprocess import MEAN, Preprocess
from qkv.weights.folder import Folder
from qkv.weights.preprocess import KEYS, from_published, read_preprocess, unknown_keys


def test_openais_own_file():
    """As it lies beside the weights of ViT-L/14 on the hub: with numbers where newer files have tables."""
    published = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(MEAN),
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    assert from_published(published) == Preprocess()
    newer = published | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    assert from_published(newer) == Preprocess()


def test_a_folder_without_one_is_openais(tmp_path):
    assert read_preprocess(Folder(tmp_path), 336) == Preprocess(resize=336, crop=(336, 336))


def test_the_newer_place(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": 0.5}}))
    assert read_preprocess(Folder(tmp_path), 224).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"resample": 9}, "resample=9 is no filter"),
        ({"resample": "bicubic"}, "resample='bicubic' is no filter"),
        ({"size": {"longest_edge": 5}}, "size={'longest_edge': 5} is not supported"),
        ({"crop_size": {"shortest_edge": 5}}, "crop_size={'shortest_edge': 5} is not supported"),
        ({"do_center_crop": 1}, "do_center_crop=1 is not true or false"),
        ({"image_std": [1, 1]}, "has 2 values; it needs 3"),
        ({"image_mean": "grey"}, "mean='grey' is not"),
        ({"rescale_factor": float("nan")}, "is not a finite number"),
        ({"size": "224"}, "size='224' is not supported"),
        ({"default_to_square": True}, "default_to_square=True is not supported"),
        ({"do_pad": True}, "do_pad=True is not supported"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type='ViTImageProcessor' is not supported"),
        ({"size": {"shortest_edge": "x"}}, "resize='x' is not"),
        ({"crop_size": 10**9}, "is out of range"),
        ({"do_center_crop": False}, "would keep a shape of their own"),
        ({"crop_size": 200}, "makes pictures of 200 x 200 pixels; the model reads 224 x 224"),
    ],
)
def test_what_cannot_be_honoured(published, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    with pytest.raises(ConfigError, match=message):
        read_preprocess(Folder(tmp_path), 224)


def test_null_is_absent():
    assert from_published(dict.fromkeys(KEYS.names - KEYS.absent.keys())) == Preprocess()


def test_unknown_keys_are_named(tmp_path):
    assert unknown_keys(Folder(tmp_path)) == []
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"crop_pct": 0.9, "size": 224}))
    assert unknown_keys(Folder(tmp_path))[0].startswith("unknown-keys: preprocessor_config.json has crop_pct;")
