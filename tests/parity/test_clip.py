"""CLIP against transformers: the text tower in its three published kinds, the picture tower, and both together."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from qkv.errors import CheckpointError, ConfigError
from qkv.models.clip import CLIP, TextConfig, TextTower, VisionConfig
from qkv.weights.clip import (
    BOTH,
    TEXT,
    TEXT_TOWER,
    clip_configs,
    load_clip,
    load_text_tower,
    save_clip,
    text_config,
)
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder

SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
KINDS = {
    "sd1": (CLIPTextModel, {"hidden_act": "quick_gelu", "eos_token_id": 2, "pad_token_id": 1}),
    "sd2": (CLIPTextModel, {"hidden_act": "gelu", "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 0}),
    "projected": (
        CLIPTextModelWithProjection,
        {"hidden_act": "quick_gelu", "eos_token_id": 98, "projection_dim": 24, "layer_norm_eps": 1e-4},
    ),
}
IDS = torch.tensor([[97, 5, 7, 2, 98, 98, 98], [97, 1, 3, 2, 6, 9, 98]])


@pytest.fixture(params=KINDS)
def text(request, parity):
    kind, options = KINDS[request.param]
    theirs = parity.strong(kind(CLIPTextConfig(**SMALL | options)))
    config = text_config(theirs.config.to_dict(), options.get("projection_dim"))
    return parity.adopt(TextTower(config), TEXT, theirs), theirs


def states(tower, dtype):
    return tower(IDS)


def test_text_states(text, parity):
    ours, theirs = text
    parity.agree(ours, theirs, states, lambda model, dtype: model(IDS).last_hidden_state, TEXT)


def test_text_pooled(text, parity):
    ours, theirs = text

    def run_ours(tower, dtype):
        pooled = tower.pool(tower(IDS), IDS)
        return pooled if tower.project is None else tower.project(pooled)

    def run_theirs(model, dtype):
        out = model(IDS)
        return out.text_embeds if "text_embeds" in out else out.pooler_output

    parity.agree(ours, theirs, run_ours, run_theirs, TEXT)


def activation(tower):
    for block in tower.stack.blocks:
        block.ffn.activation = F.gelu


def scale(tower):
    for block in tower.stack.blocks:
        block.attention.scale = 1 / block.attention.head_dim


def unmasked(tower):
    object.__setattr__(tower.stack.config, "causal", False)


def post_norm(tower):
    tower.stack.blocks[-1].norm_first = False


def shifted(tower):
    tower.position.weight.data = tower.position.weight.data.roll(-1, dims=0)


def eps(tower):
    tower.stack.norm.eps = 1e-3


@pytest.mark.parametrize("mutate", [activation, scale, unmasked, post_norm, shifted, eps])
def test_parity_fails_on(mutate, parity):
    theirs = parity.strong(CLIPTextModel(CLIPTextConfig(**SMALL | KINDS["sd1"][1])))
    ours = parity.adopt(TextTower(text_config(theirs.config.to_dict())), TEXT, theirs)
    mutate(ours)
    with pytest.raises(pytest.fail.Exception, match=r"parity: differs by .*; first: (stack|position)|norm has eps"):
        parity.agree(ours, theirs, states, lambda model, dtype: model(IDS).last_hidden_state, TEXT)


@pytest.fixture(scope="module")
def both(parity, tmp_path_factory):
    text = SMALL | {"hidden_act": "gelu", "eos_token_id": 98}
    vision = {"image_size": 20, "patch_size": 6, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-4}
    theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    theirs = parity.strong(theirs, seed=1)
    folder = tmp_path_factory.mktemp("clip")
    theirs.save_pretrained(folder)
    return load_clip(Folder(folder)), theirs, folder


def test_both_towers(both, parity):
    ours, theirs, _ = both
    pictures = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    vision = {
        "states": (lambda clip, x: clip.vision(x), lambda model, x: model.vision_model(x).last_hidden_state),
        "pooled": (
            lambda clip, x: clip.vision.pool(clip.vision(x)),
            lambda model, x: model.vision_model(x).pooler_output,
        ),
        "embedded": (lambda clip, x: clip.vision.embed(x), lambda model, x: model(IDS, x).image_embeds),
        "texts": (lambda clip, x: clip.text.embed(IDS), lambda model, x: model(IDS, x).text_embeds),
        "logits": (lambda clip, x: clip.logits(x, IDS), lambda model, x: model(IDS, x).logits_per_image),
    }
    for run_ours, run_theirs in vision.values():
        parity.agree(
            ours,
            theirs,
            lambda model, dtype, run=run_ours: run(model, pictures.to(dtype)),
            lambda model, dtype, run=run_theirs: run(model, pictures.to(dtype)),
            BOTH,
        )


def flipped(clip):
    clip.vision.patch.weight.data = clip.vision.patch.weight.data.mT


def last(clip):
    clip.vision.pool = lambda states: clip.vision.norm(states[:, -1])


def unentered(clip):
    clip.vision.enter_norm = torch.nn.Identity()


def causal(clip):
    object.__setattr__(clip.vision.stack.config, "causal", True)


def other_gelu(clip):
    for block in clip.vision.stack.blocks:
        block.ffn.activation = F.gelu


def unscaled(clip):
    clip.log_scale.data.zero_()


@pytest.mark.parametrize("mutate", [flipped, last, unentered, causal, other_gelu, unscaled])
def test_parity_of_pictures_fails_on(mutate, both, parity):
    pictures = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    ours, theirs = copy.deepcopy(both[0]), both[1]
    mutate(ours)
    with pytest.raises(pytest.fail.Exception, match="parity: differs by"):
        parity.agree(
            ours,
            theirs,
            lambda clip, dtype: clip.logits(pictures.to(dtype), IDS),
            lambda model, dtype: model(IDS, pictures.to(dtype)).logits_per_image,
        )


def test_both_towers_come_back(both, tmp_path):
    ours, theirs, folder = both
    save_clip(ours, tmp_path)
    again = CLIPModel.from_pretrained(tmp_path)
    for (name, expected), (other, got) in zip(sorted(theirs.state_dict().items()), sorted(again.state_dict().items())):
        assert name == other
        assert got.equal(expected), name
    before, after = (CLIPConfig.from_pretrained(where).to_dict() for where in (folder, tmp_path))
    for tower in ("text_config", "vision_config"):
        for key in before[tower].keys() - {"_name_or_path", "dtype", "projection_dim"}:
            assert before[tower][key] == after[tower][key], key
    assert before["projection_dim"] == after["projection_dim"]


def test_what_a_file_leaves_out_is_as_transformers_has_it(tmp_path):
    """CLIPModel's file holds of its towers' settings only those that are not transformers' defaults."""
    theirs = CLIPConfig()
    theirs.save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    published |= {
        tower: {k: v for k, v in published[tower].items() if k == "model_type"}
        for tower in ("text_config", "vision_config")
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    with torch.device("meta"):
        state = CLIPModel(theirs).state_dict()
    text, vision = clip_configs(published)
    with torch.device("meta"):
        ours = CLIP(text, vision)
    assert {name: t.shape for name, t in BOTH.published(ours.state_dict()).items()} == {
        name: t.shape for name, t in state.items() if "position_ids" not in name
    }
    assert (text.activation, text.norm_eps, text.end) == (
        theirs.text_config.hidden_act,
        theirs.text_config.layer_norm_eps,
        theirs.text_config.eos_token_id,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_text_tower_comes_back(kind, parity, tmp_path):
    cls, options = KINDS[kind]
    theirs = parity.strong(cls(CLIPTextConfig(**SMALL | options)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_text_tower(Folder(tmp_path / "theirs"))
    save_component(tmp_path / "ours", TEXT_TOWER.export(ours))
    again = cls.from_pretrained(tmp_path / "ours")
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}
    assert again.state_dict().keys() == theirs.state_dict().keys()
    for name, expected in theirs.state_dict().items():
        assert again.state_dict()[name].equal(expected), name
    before, after = theirs.config.to_dict(), again.config.to_dict()
    for key in before.keys() - {"_name_or_path", "projection_dim"}:
        assert before[key] == after[key], key
    assert load_text_tower(Folder(tmp_path / "ours")).config == ours.config


def test_a_pipeline_can_keep_the_text_tower(tmp_path):
    """emblem's own CLIP is saved without the text tower that its pipeline holds anyway."""
    torch.manual_seed(0)
    tower = {"dim": 32, "layers": 1, "heads": 2, "ffn_dim": 64, "proj_dim": 16}
    clip = CLIP(TextConfig(vocab=50, end=49, **tower), VisionConfig(image_size=16, patch=8, **tower)).eval()
    alone = copy.deepcopy(clip.text)
    alone.project = None
    save_component(tmp_path / "pipeline/text_encoder", TEXT_TOWER.export(alone))
    save_clip(clip, tmp_path / "clip", text_elsewhere=True)
    again = load_clip(Folder(tmp_path / "clip"), texts=Folder(tmp_path / "pipeline"))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in clip.state_dict().items())
    with pytest.raises(CheckpointError, match="missing"):
        load_clip(Folder(tmp_path / "clip"))


def test_a_tower_alone_is_no_clip(tmp_path):
    CLIPTextModel(CLIPTextConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no text_config; it is no CLIPModel"):
        load_clip(Folder(tmp_path))


def test_full_size():
    """SD 1.x reads CLIP ViT-L/14's tower; SD 2.1 the first 23 layers of OpenCLIP's ViT-H/14."""
    with torch.device("meta"):
        sd1 = TextTower(TextConfig())
        sd2 = TextTower(TextConfig(dim=1024, layers=23, heads=16, ffn_dim=4096, activation="gelu", pad=0))
        large = CLIP(TextConfig(proj_dim=768), VisionConfig(proj_dim=768))
    counts = [sum(parameter.numel() for parameter in tower.parameters()) for tower in (sd1, sd2, large)]
    assert counts == [123_060_480, 340_387_840, 427_616_513]


def test_a_configuration_that_is_there_twice():
    """Old files hold a tower's settings under two names; the second is the whole truth, with defaults for the rest."""
    published = {
        "text_config": {"hidden_size": 64, "num_hidden_layers": 3, "hidden_act": "gelu", "num_attention_heads": 2},
        "text_config_dict": {"hidden_size": 32, "num_attention_heads": 4},
        "vision_config": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
        "vision_config_dict": None,
    }
    theirs = CLIPConfig(**copy.deepcopy(published))
    text, vision = clip_configs(published)
    for tower, config in ((text, theirs.text_config), (vision, theirs.vision_config)):
        assert (tower.dim, tower.layers, tower.heads) == (
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
        )
        assert tower.activation == config.hidden_act
