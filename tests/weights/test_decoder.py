"""What our own decoders can be published as, without asking transformers."""

import json

import pytest
import torch

from qkv.errors import ConfigError, NotFoundError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.models.presets import PRESETS
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.decoder_family import explicit
from qkv.weights.families import FAMILIES, published_config
from qkv.weights.folder import Folder
from qkv.weights.megatron import by_heads

SMALL = {"vocab": 20, "context": 8, "dim": 16, "layers": 4, "heads": 2, "ffn_dim": 24}
LLAMA = {"norm": "rms", "gated": True, "activation": "silu", "bias": False, "attention_bias": False} | {
    "out_bias": False,
    "position": "rotary",
}
GEMMA = {"norm": "rms_unit_offset", "scaled": True, "activation": "gelu_tanh"}
FITS = [
    ({}, "gpt2"),
    ({"tied": False, "activation": "relu"}, "gpt2"),
    ({"scale": 1.0, "attention_bias": False, "windows": (None, 3)}, "gpt_neo"),
    ({"position": "alibi", "embed_norm": True, "ffn_dim": 64}, "bloom"),
    (LLAMA, "llama"),
    (LLAMA | {"head_dim": 4, "kv_heads": 1}, "llama"),
    (LLAMA | {"windows": (5,)}, "mistral"),
    (LLAMA | {"attention_bias": True}, "qwen2"),
    (LLAMA | {"attention_bias": True, "windows": (None, None, 5, 5)}, "qwen2"),
    (LLAMA | {"qk_norm": True}, "qwen3"),
    (LLAMA | {"qk_norm": True, "windows": (5, None)}, "qwen3"),
    ({"position": "rotary", "rotary_dim": 2, "activation": "gelu", "parallel": True}, "gpt_neox"),
    ({"position": "rotary", "activation": "gelu"}, "gpt_neox"),
    ({"position_offset": 2, "activation": "relu"}, "opt"),
    ({"position_offset": 2, "norm_first": False, "embed_dim": 6, "tied": False}, "opt"),
    (LLAMA | GEMMA, "gemma"),
    (LLAMA | GEMMA | {"post_norm": True, "windows": (3, None), "logit_cap": 30.0, "scale": 0.25}, "gemma2"),
]


@pytest.mark.parametrize(("values", "family"), FITS)
@torch.no_grad()
def test_saved_and_loaded(values, family, tmp_path):
    decoder = Decoder(DecoderConfig(**SMALL | values)).eval()
    save_decoder(decoder, tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    assert published["model_type"] == family
    assert published["architectures"] == [FAMILIES[family].architecture]
    assert published["dtype"] == "float32"
    again = load_decoder(Folder(tmp_path))
    assert again.config == explicit(decoder.config)
    ids = torch.arange(8)[None]
    assert again(ids).equal(decoder(ids))
    for name, tensor in decoder.state_dict().items():
        assert again.state_dict()[name].equal(tensor), name


NOWHERE = [
    (DecoderConfig(**SMALL, windows=(None, 3)), r"gpt2 models are not published with windows=\(None, 3\)"),
    (DecoderConfig(**SMALL, position="none"), "gpt2 models are not published with position=none"),
    (DecoderConfig(**SMALL | LLAMA | {"scale": 0.5}), "scale="),
    (DecoderConfig(**SMALL | LLAMA | {"qk_norm": True, "windows": (4, 5)}), "windows="),
    (DecoderConfig(**SMALL | LLAMA | {"rotary_dim": 2}), "rotary_dim=2"),
    (PRESETS["gpt3-small"], "windows="),
    (DecoderConfig(**SMALL | LLAMA | GEMMA | {"activation": "gelu"}), "gemma models .* activation=gelu"),
    (DecoderConfig(**SMALL | LLAMA | {"parallel": True, "shared_norm": True}), "shared_norm=True"),
]


@pytest.mark.parametrize(("config", "message"), NOWHERE)
def test_what_nobody_publishes_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        published_config(config)


def test_a_family_that_is_asked_for():
    config = DecoderConfig(**SMALL | LLAMA)
    assert published_config(config)["model_type"] == "llama"
    assert published_config(config, "mistral")["model_type"] == "mistral"
    with pytest.raises(ConfigError, match="qwen3 models are not published with qk_norm=False"):
        published_config(config, "qwen3")
    with pytest.raises(NotFoundError, match="unknown family 'lama'; did you mean llama"):
        published_config(config, "lama")


def test_published_presets():
    assert published_config(PRESETS["pythia-160m"])["rotary_pct"] == 0.25


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("shape", [(36, 5), (36,)])
def test_projections_stacked_by_heads(heads, shape):
    tensor = torch.arange(36)[:, None].expand(36, 5) if len(shape) == 2 else torch.arange(36)
    q, k, v = by_heads(heads).split(tensor)
    width = 36 // 3 // heads
    for i, part in enumerate((q, k, v)):
        rows = part[:, 0] if part.ndim == 2 else part
        assert rows.tolist() == [h * 3 * width + i * width + j for h in range(heads) for j in range(width)]
    assert by_heads(heads).fuse([q, k, v]).equal(tensor)


def test_projections_stacked_by_groups_of_heads():
    """Four heads, two of keys: q, q, k, v, q, q, k, v, three rows each."""
    q, k, v = by_heads(4, 2).split(torch.arange(24))
    assert (q.tolist(), k.tolist(), v.tolist()) == (
        [*range(6), *range(12, 18)],
        [*range(6, 9), *range(18, 21)],
        [*range(9, 12), *range(21, 24)],
    )
    assert by_heads(4, 2).fuse([q, k, v]).tolist() == list(range(24))
