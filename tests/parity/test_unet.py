"""The U-Net against diffusers' UNet2DConditionModel in the kinds that Stable Diffusion 1, 2 and emblem have."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from qkv.core.position import sinusoidal
from qkv.errors import ConfigError
from qkv.models import unet as module
from qkv.models.residual import Residual
from qkv.models.unet import PixelTransformer, UNet, UNetConfig
from qkv.weights.diffusers import save_component
from qkv.weights.folder import Folder
from qkv.weights.unet import UNET, unet_table

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SMALL = {"norm_num_groups": 8, "cross_attention_dim": 24, "sample_size": 8}
KINDS = {
    "sd1": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP),
        "attention_head_dim": 8,
    },
    "sd2": {
        "block_out_channels": (32, 64),
        "down_block_types": (CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
    },
    "emblem": {
        "block_out_channels": (24, 32, 64),
        "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, UP),
        "attention_head_dim": (3, 4, 8),
        "layers_per_block": 1,
        "in_channels": 8,
        "out_channels": 8,
        "norm_eps": 1e-4,
    },
    "summary": {
        "block_out_channels": (32, 64),
        "down_block_types": (DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, UP),
        "attention_head_dim": 4,
        "layers_per_block": 1,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 6,
        "resnet_time_scale_shift": "scale_shift",
    },
}


def published(theirs):
    """The configuration as its file has it."""
    return json.loads(theirs.to_json_string())


@pytest.fixture(scope="module")
def pairs(parity):
    """Each kind once: our U-Net and the reference with the same weights."""

    def pair(kind):
        theirs = parity.strong(UNet2DConditionModel(**SMALL | KINDS[kind]))
        config = UNET.config(published(theirs))
        return parity.adopt(UNet(config), unet_table(config), theirs), theirs

    return {kind: pair(kind) for kind in KINDS}


def compare(parity, ours, theirs, size=(8, 8), loudness=1.0):
    draw = torch.Generator().manual_seed(3)
    latent = loudness * torch.randn(2, ours.config.channels, *size, generator=draw)
    memory, time = torch.randn(2, 5, ours.config.memory_dim, generator=draw), torch.tensor([999.0, 20.5])
    parity.agree(
        ours,
        theirs,
        lambda model, dtype: model(latent.to(dtype), time, memory.to(dtype)),
        lambda model, dtype: model(latent.to(dtype), time, memory.to(dtype)).sample,
        unet_table(ours.config),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (12, 20), (7, 9)])
def test_parity(kind, size, pairs, parity):
    compare(parity, *pairs[kind], size)


def test_parity_of_a_faint_latent(pairs, parity):
    compare(parity, *pairs["sd1"], loudness=1e-2)


def scale(unet, monkeypatch):
    for part in unet.modules():
        if isinstance(part, PixelTransformer):
            part.stack.blocks[0].memory_attention.scale = 0.5


def activation(unet, monkeypatch):
    for part in unet.modules():
        if isinstance(part, PixelTransformer):
            part.stack.blocks[0].ffn.activation = torch.nn.functional.silu


def post_norm(unet, monkeypatch):
    unet.middle.transformers[0].stack.blocks[0].norm_first = False


def gate_and_up_swapped(unet, monkeypatch):
    ffn = unet.middle.transformers[0].stack.blocks[0].ffn
    ffn.gate, ffn.up = ffn.up, ffn.gate


def skips_swapped(unet, monkeypatch):
    monkeypatch.setattr(module, "torch", SimpleNamespace(cat=lambda pair, dim: torch.cat(pair[::-1], dim=dim)))


def skips_in_order(unet, monkeypatch):
    def forward(self, x, skips, time, memory):
        mine = [skips.pop() for _ in self.residuals]
        for i, skip in enumerate([mine[1], mine[0], *mine[2:]]):
            x = self.layer(i, torch.cat((x, skip), dim=1), time, memory)
        return x if self.resample is None else self.resample(x, skips[-1].shape[-2:])

    monkeypatch.setattr(module.Up, "forward", forward)


def norm_eps(unet, monkeypatch):
    unet.down[0].residuals[0].norm1.eps = 1e-6


def cos_and_sin_swapped(unet, monkeypatch):
    monkeypatch.setattr(module, "sinusoidal", lambda time, dim, **_: sinusoidal(time, dim, interleaved=False))


def time_off_by_one(unet, monkeypatch):
    monkeypatch.setattr(module, "sinusoidal", lambda time, dim, **order: sinusoidal(time + 1, dim, **order))


def no_memory(unet, monkeypatch):
    monkeypatch.setattr(module.UNetMiddle, "remember", lambda self, memory: module.UNetLevel.remember(self, memory * 0))


def scale_and_shift_swapped(unet, monkeypatch):
    for part in unet.modules():
        if isinstance(part, Residual):
            part.time.weight.data = part.time.weight.data.roll(len(part.time.weight) // 2, 0)


def summary_without_its_mean(unet, monkeypatch):
    unet.summary.attention.register_forward_pre_hook(lambda part, given: (given[0], given[1][:, 1:]))


def summary_of_nothing(unet, monkeypatch):
    monkeypatch.setattr(module.TextSummary, "forward", lambda self, memory: 0.0)


MUTATIONS = [
    *(scale, activation, post_norm, gate_and_up_swapped, skips_swapped, skips_in_order),
    *(norm_eps, cos_and_sin_swapped, time_off_by_one, no_memory),
]


@pytest.mark.parametrize(
    ("kind", "mutate"),
    [
        *(("sd1", mutate) for mutate in MUTATIONS),
        ("summary", scale_and_shift_swapped),
        ("summary", summary_without_its_mean),
        ("summary", summary_of_nothing),
    ],
)
def test_parity_fails_on(kind, mutate, parity, monkeypatch):
    theirs = parity.strong(UNet2DConditionModel(**SMALL | KINDS[kind]))
    config = UNET.config(published(theirs))
    ours = parity.adopt(UNet(config), unet_table(config), theirs)
    mutate(ours, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"parity: (differs by .*; first: [a-z]+\.|.* has eps)"):
        compare(parity, ours, theirs)


def test_a_wrong_epsilon_shows_in_numbers_too(parity):
    """Where the latent is faint: the comparison of epsilons by name is not the only one that sees them."""
    theirs = parity.strong(UNet2DConditionModel(**SMALL | KINDS["sd1"]))
    ours = parity.adopt(UNet(UNET.config(published(theirs))), unet_table(UNET.config(published(theirs))), theirs)
    ours.down[0].residuals[0].norm1.eps = theirs.down_blocks[0].resnets[0].norm1.eps = 1e-4
    theirs.down_blocks[0].resnets[0].norm1.register_forward_pre_hook(lambda norm, _: setattr(norm, "eps", 1e-6))
    with pytest.raises(pytest.fail.Exception, match="parity: differs by"):
        compare(parity, ours, theirs, loudness=1e-2)


@pytest.mark.parametrize(
    ("kind", "form"), [*((kind, "plain") for kind in KINDS), ("sd2", "sharded"), ("emblem", "fp16")]
)
def test_files_there_and_back(kind, form, pairs, tmp_path):
    _, theirs = pairs[kind]
    theirs.save_pretrained(
        tmp_path / "unet",
        variant="fp16" if form == "fp16" else None,
        max_shard_size="300KB" if form == "sharded" else "10GB",
    )
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == (form == "sharded")
    ours = UNET.load(Folder(tmp_path), UNet, "unet", variant="fp16" if form == "fp16" else None)
    save_component(tmp_path / "again", UNET.export(ours), max_shard_bytes=300_000 if form == "sharded" else 10**9)
    again = UNet2DConditionModel.from_pretrained(tmp_path / "again")
    for name, expected in theirs.state_dict().items():
        assert again.state_dict()[name].equal(expected), name
    assert len(again.state_dict()) == len(theirs.state_dict())
    before, after = (json.loads((tmp_path / part / "config.json").read_text()) for part in ("unet", "again"))
    for key in after.keys() - {"_diffusers_version", "attention_head_dim", "mid_block_only_cross_attention"}:
        assert before[key] == after[key], key
    heads = [before["attention_head_dim"], after["attention_head_dim"]]
    assert len({json.dumps(h if isinstance(h, list) else [h] * len(ours.config.dims)) for h in heads}) == 1


def test_export_of_import_is_the_same(pairs):
    for ours, theirs in pairs.values():
        config, tensors = UNET.export(ours)
        assert UNET.config(config) == ours.config
        assert tensors.keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert tensors[name].equal(tensor), name


def test_what_a_file_leaves_out_is_as_diffusers_has_it():
    kinds = {key: KINDS["sd1"][key] for key in ("down_block_types", "up_block_types", "block_out_channels")}
    with torch.device("meta"):
        theirs, ours = UNet2DConditionModel(**kinds), UNet(UNET.config({k: list(v) for k, v in kinds.items()}))
    shapes = {name: tensor.shape for name, tensor in UNET.export(ours)[1].items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"up_block_types": [UP, UP, CROSS_UP]}, "up_block_types do not mirror down_block_types"),
        ({"down_block_types": [DOWN, "AttnDownBlock2D", DOWN]}, "down_block_types=.* is not supported"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported; it must be 'silu'"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time' is not supported"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 5}, "not divisible by summary_heads=5"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift='ada_group' is not supported"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "unet.transformer_layers="),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos=False is not supported"),
        ({"attention_head_dim": [8, 8]}, "heads has 2 entries; dims has 3"),
    ],
)
def test_what_we_cannot_honour_is_refused(given, message, pairs):
    _, theirs = pairs["sd1"]
    UNET.config(published(theirs))
    with pytest.raises(ConfigError, match=message):
        UNET.config(published(theirs) | given, "unet")


def test_full_size():
    sd2 = UNetConfig(heads=(5, 10, 20, 20), memory_dim=1024, linear_projection=True)
    with torch.device("meta"):
        counts = [sum(p.numel() for p in UNet(config).parameters()) for config in (UNetConfig(), sd2)]
    assert counts == [859_520_964, 865_910_724]
