"""Folders of decoders in and out: what transformers wrote comes back bit for bit, and transformers opens what we
write and computes the same."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qkv.errors import CheckpointError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.families import FAMILIES, families_of, published_config
from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights

IDS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


def assert_same_tensors(folder, other):
    ours, theirs = Folder(folder).tensors(), Folder(other).tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype is tensor.dtype, name
        assert ours[name].equal(tensor), name


@torch.no_grad()
def test_comes_back(any_decoder, decoders, tmp_path):
    pair = decoders(any_decoder)
    pair.theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    ours = load_decoder(Folder(tmp_path / "theirs"))
    save_decoder(ours, tmp_path / "ours", family=pair.model_type, max_shard_bytes=50_000, also={"eos_token_id": 7})
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(pair.theirs)
    assert again.config.eos_token_id == 7
    assert again(IDS).logits.equal(pair.theirs(IDS).logits)
    assert load_decoder(Folder(tmp_path / "ours")).config == ours.config


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama 3", "qwen 3", "pythia"])
def test_half_precision(name, dtype, decoders, tmp_path):
    pair = decoders(name)
    save_decoder(pair.ours, tmp_path / "ours", dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype is dtype
    again.save_pretrained(tmp_path / "theirs")
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    ours = load_decoder(Folder(tmp_path / "theirs"))
    assert ours.token.weight.dtype is dtype
    wide = load_decoder(Folder(tmp_path / "theirs"), dtype=torch.float32)
    expected = wide(IDS)
    result = ours(IDS)
    assert result.dtype is dtype
    assert (result - expected).norm() < 0.15 * expected.norm()  # strong weights make rounding show
    assert (result - expected).norm() < 1.5 * (again(IDS).logits - expected).norm()  # no more than transformers'


def test_one_family_says_it_all(any_decoder, decoders):
    """Without a family's name the first that fits is written; another one is written only where it means the same."""
    pair = decoders(any_decoder)
    published = published_config(pair.ours.config)
    found = FAMILIES[published["model_type"]]
    assert found.config(published) == pair.ours.config
    assert found.name == pair.model_type


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "bloom, 6 heads"])
def test_names_without_prefix_and_with_buffers(name, decoders, tmp_path):
    """As OpenAI's and BigScience's own files have them."""
    pair = decoders(name)
    pair.theirs.base_model.save_pretrained(tmp_path)
    if name == "gpt2":
        tensors = {key: tensor.clone() for key, tensor in open_tensors(tmp_path / "model.safetensors").items()}
        save_tensors(tmp_path / "model.safetensors", tensors | {"h.0.attn.bias": torch.ones(1, 1, 32, 32)})
    assert load_decoder(Folder(tmp_path))(IDS).equal(pair.ours(IDS))


def test_a_tied_head_may_be_there_a_second_time(decoders, tmp_path):
    pair = decoders("smollm2")
    pair.theirs.save_pretrained(tmp_path)
    tensors = {key: tensor.clone() for key, tensor in open_tensors(tmp_path / "model.safetensors").items()}
    head = tensors["model.embed_tokens.weight"]
    save_tensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": head})
    assert load_decoder(Folder(tmp_path)).head is None
    del tensors["model.embed_tokens.weight"]  # older files have the head alone
    save_tensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": head})
    assert torch.equal(load_decoder(Folder(tmp_path)).token.weight, head)
    tensors["model.embed_tokens.weight"] = head
    save_tensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": head + 1})
    with pytest.raises(CheckpointError, match="holds a head that is not the embedding"):
        load_decoder(Folder(tmp_path))


@pytest.mark.parametrize("name", families_of(DecoderConfig))
def test_what_a_file_leaves_out_is_as_transformers_has_it(name):
    config = AutoConfig.for_model(name)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
        ours = Decoder(FAMILIES[name].config({"model_type": name}))
    published = FAMILIES[name].table(ours.config).published(export_weights(ours))
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    if name == "gpt_neox":
        expected["embed_out.weight"] = expected.pop("lm_head.weight")
    elif ours.config.tied:
        del expected["lm_head.weight"]
    assert {key: tensor.shape for key, tensor in published.items()} == expected
    again = FAMILIES[name].config(json.loads(config.to_json_string(use_diff=False)))
    assert again == ours.config


OLDER = {
    "llama 3": {
        "rope_theta": 100.0,
        "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
        | {"original_max_position_embeddings": 16},
    },
    "smollm2": {"rope_theta": 100_000, "rope_scaling": None, "rope_interleaved": False},
    "pythia": {"rotary_pct": 0.25, "rotary_emb_base": 10_000},
    "neox, one after the other": {"rotary_pct": 0.5},
}


@pytest.mark.parametrize("name", OLDER)
def test_rotary_positions_in_the_older_spelling(name, decoders):
    pair = decoders(name)
    published = json.loads((pair.folder / "config.json").read_text())
    assert "rope_parameters" in published
    published = {key: value for key, value in published.items() if key != "rope_parameters"} | OLDER[name]
    assert FAMILIES[pair.model_type].config(published) == pair.ours.config


def test_older_spellings_of_sizes(decoders):
    config = decoders("bloom, 6 heads").ours.config
    published = {"model_type": "bloom", "n_embed": 96, "n_layer": 3, "num_attention_heads": 6, "vocab_size": 50}
    assert FAMILIES["bloom"].config(published) == config
