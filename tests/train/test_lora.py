"""LoRA: it starts as nothing, is merged, and PEFT reads what we write (what PEFT writes: loaded/test_adapters.py)."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from qkv.errors import ConfigError
from qkv.loaded.adapters import merge_adapter
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.train.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    base_only,
    lora_layers,
    merge,
    save_adapter,
)
from qkv.weights.decoder import load_decoder, save_decoder
from qkv.weights.folder import Folder

IDS = torch.tensor([[3, 200, 17, 5, 99, 250, 0, 42]])


def corrected(decoder: Decoder, config: LoraConfig = LoraConfig(rank=4, alpha=6.0)) -> Decoder:  # noqa: B008
    """With corrections that are not zero."""
    add_lora(decoder, config)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(decoder).values():
        layer.b.data.normal_(std=0.1, generator=generator)
    return decoder.eval()


def test_new_corrections_change_nothing_and_alone_are_trained(chat_model: Path) -> None:
    decoder = load_decoder(Folder(chat_model))
    before = decoder(IDS)
    names = add_lora(decoder, LoraConfig(rank=2))
    assert len(names) == 2 * 7
    assert torch.equal(decoder(IDS), before)
    assert {name.rpartition(".")[2] for name, p in decoder.named_parameters() if p.requires_grad} == {"a", "b"}
    decoder(IDS).sum().backward()
    assert decoder.token.weight.grad is None
    layer = lora_layers(decoder)["stack.blocks.1.ffn.down"]
    assert layer.b.grad is not None
    assert layer.b.grad.abs().sum() > 0


def test_the_correction_is_the_papers(chat_model: Path) -> None:
    layer = LoraLinear(nn.Linear(6, 5), LoraConfig(rank=3, alpha=12.0))
    layer.b.data.normal_()
    x = torch.randn(2, 6)
    full = layer.weight + 4.0 * layer.b @ layer.a
    torch.testing.assert_close(layer(x), x @ full.T + layer.bias)


def test_patterns_choose_layers(chat_model: Path) -> None:
    decoder = load_decoder(Folder(chat_model))
    assert add_lora(decoder, LoraConfig(layers=("*.1.attention.[qv]",))) == [
        "stack.blocks.1.attention.q",
        "stack.blocks.1.attention.v",
    ]
    with pytest.raises(ConfigError, match=r"'\*\.mlp\.\*' matches no linear layer, such as stack.blocks.0.attention"):
        add_lora(decoder, LoraConfig(layers=("*.mlp.*",)))


def test_merging_computes_the_same(chat_model: Path) -> None:
    decoder = corrected(load_decoder(Folder(chat_model)))
    before = decoder(IDS)
    merge(decoder)
    assert not lora_layers(decoder)
    assert decoder.state_dict().keys() == load_decoder(Folder(chat_model)).state_dict().keys()
    torch.testing.assert_close(decoder(IDS), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()  # in training, activations are PyTorch's own, which have other bits
def test_the_base_is_there_as_it_was(chat_model: Path) -> None:
    decoder = load_decoder(Folder(chat_model))
    before = decoder(IDS)
    corrected(decoder)
    after = decoder(IDS)
    with base_only(decoder):
        assert torch.equal(decoder(IDS), before)
    assert torch.equal(decoder(IDS), after)
    assert not torch.equal(after, before)


def test_peft_reads_ours(chat_model: Path, tmp_path: Path) -> None:
    decoder = corrected(load_decoder(Folder(chat_model)))
    save_adapter(decoder, tmp_path / "adapter", base="tiny")
    base = transformers.AutoModelForCausalLM.from_pretrained(chat_model)
    without = base(IDS).logits
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(IDS).logits, decoder(IDS), rtol=1e-4, atol=1e-4)
    assert (theirs(IDS).logits - without).abs().max() > 0.1


@torch.no_grad()
def test_what_is_saved_is_what_is_merged(chat_model: Path, tmp_path: Path) -> None:
    decoder = corrected(load_decoder(Folder(chat_model)))
    save_adapter(decoder, tmp_path / "adapter", base="tiny")
    again = load_decoder(Folder(chat_model))
    assert merge_adapter(again, Folder(tmp_path / "adapter")) == []
    merge(decoder)
    assert torch.equal(again(IDS), decoder(IDS))


def test_fused_projections_cannot_be_an_adapter(tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(vocab=32, context=16, dim=16, layers=1, heads=2, ffn_dim=16))  # GPT-2
    before = corrected(decoder)(IDS % 32)
    with pytest.raises(ConfigError, match="attention.q, .* cannot be saved as an adapter; merge"):
        save_adapter(decoder, tmp_path, base="tiny")
    merge(decoder)
    save_decoder(decoder, tmp_path / "merged")
    torch.testing.assert_close(load_decoder(Folder(tmp_path / "merged"))(IDS % 32), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("inf")}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoraConfig(**wrong)
