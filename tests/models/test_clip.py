"""OpenAI's shapes, by name."""

import pytest
import torch

from qkv.models.clip import CLIP, PRESETS

COUNTS = {
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_as_many_parameters_as_what_was_published(name):
    with torch.device("meta"):
        clip = CLIP(*PRESETS[name])
    assert sum(parameter.numel() for parameter in clip.parameters()) == COUNTS[name]
    towers = (clip.text.config, clip.vision.config)
    assert {(tower.dim // tower.heads, tower.ffn_dim // tower.dim, tower.activation) for tower in towers} == {
        (64, 4, "quick_gelu")
    }
    assert name.startswith(f"ViT-{'L' if clip.vision.config.layers == 24 else 'B'}/{clip.vision.config.patch}")
