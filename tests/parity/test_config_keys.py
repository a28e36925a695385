"""config.json of every family: each key that the installed transformers writes stands in a row; others are named."""

import json
import shutil

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qkv.loaded import generation
from qkv.tasks.complete import complete
from qkv.weights.families import FAMILIES, unknown_keys


@pytest.mark.filterwarnings("ignore")  # the reference's own
@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_transformers_is_known(name: str) -> None:
    """Those of a configuration of the class, at values that are something, too."""
    published = CONFIG_MAPPING[name]().to_dict()
    assert unknown_keys(dict.fromkeys(published, 1) | {"model_type": name}, generation.KEYS.names) == []
    assert published.keys() > {"model_type", "vocab_size"}


def test_a_key_that_nobody_knows_is_named_in_the_result(tiny_decoder, tmp_path) -> None:
    folder = shutil.copytree(tiny_decoder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"logit_softness": 3, "num_beams": 1}))
    (warning,) = complete("the", model=folder, max_tokens=2).warnings
    assert warning.startswith("unknown-keys: config.json has logit_softness; ")
