"""DPO against the written-out formula, and that it makes the chosen answers likelier than the rejected ones."""

import json
import math
from pathlib import Path

import pytest
import torch

from qkv.errors import ConfigError, InputError
from qkv.models.decoder import Decoder
from qkv.text.chat import Message
from qkv.train import curve
from qkv.train.conversations import Example, Speaker
from qkv.train.lora import LoraConfig, add_lora, base_only, lora_layers
from qkv.train.preference import Preference, log_likelihood, preferring, read_pairs, side_by_side
from qkv.train.recipes import run

RECIPE = """
task = "preference"
start = "{start}"
data = "{data}"
held_out = "{data}"
batch = 3
context = 90
[lora]
rank = 4
[fit]
steps = 30
dtype = "fp32"
ema = 0.0
log_every = 1
[fit.optim]
lr = 1e-2
warmup = 1
"""
FIRST, LATER = Message("user", "2 + 2?"), Message("user", "And twice that?")


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "plot", lambda metrics, picture: None)


def pair(speaker: Speaker, chosen: str, rejected: str, prompt: tuple[Message, ...] = (FIRST,)) -> Preference:
    return Preference(*(speaker.example([*prompt, Message("assistant", answer)]) for answer in (chosen, rejected)))


def line(question: str, chosen: str, rejected: str) -> str:
    answers = {
        key: [{"role": "assistant", "content": text}] for key, text in (("chosen", chosen), ("rejected", rejected))
    }
    return json.dumps({"prompt": [{"role": "user", "content": question}], **answers})


def corrected(decoder: Decoder) -> Decoder:
    add_lora(decoder, LoraConfig(rank=2))
    for layer in lora_layers(decoder).values():
        layer.b.data.normal_(std=0.05)
    return decoder


@torch.no_grad()
def likelihood(decoder: Decoder, example: Example) -> float:
    """log p of the answer, token by token, in float64."""
    chances = decoder(torch.tensor([example.ids]))[0].double().log_softmax(-1)
    return sum(float(chances[i - 1, example.ids[i]]) for i, learnt in enumerate(example.answered) if learnt)


def test_the_loss_is_the_formula(decoder: Decoder, speaker: Speaker) -> None:
    pairs = [pair(speaker, "4", "it is five"), pair(speaker, "four, I think", "5")]
    corrected(decoder)
    gains = []
    for chosen, rejected in pairs:
        policy = likelihood(decoder, chosen) - likelihood(decoder, rejected)
        with base_only(decoder):
            reference = likelihood(decoder, chosen) - likelihood(decoder, rejected)
        gains.append(0.3 * (policy - reference))
    expected = sum(-math.log(1 / (1 + math.exp(-gain))) for gain in gains) / 2
    loss = preferring(decoder, side_by_side(pairs), 0.3)
    assert float(loss.value.detach()) == pytest.approx(expected, rel=1e-3)
    assert float(loss.metrics["gain"]) == pytest.approx(sum(gains) / 2, rel=1e-3)
    assert float(loss.metrics["preferred"]) == sum(gain > 0 for gain in gains) / 2
    loss.value.backward()
    assert {name.rpartition(".")[2] for name, p in decoder.named_parameters() if p.grad is not None} == {"a", "b"}


def test_without_corrections_the_loss_is_a_coin_toss(decoder: Decoder, speaker: Speaker) -> None:
    add_lora(decoder, LoraConfig())
    loss = preferring(decoder, side_by_side([pair(speaker, "4", "5")]), 0.1)
    assert float(loss.value.detach()) == pytest.approx(math.log(2), rel=1e-6)


def test_likelihoods_do_not_depend_on_padding(decoder: Decoder, speaker: Speaker) -> None:
    pairs = [pair(speaker, "4", "it is five"), pair(speaker, "four, I think", "5")]
    together = log_likelihood(decoder, side_by_side(pairs).chosen)
    alone = torch.cat([log_likelihood(decoder, side_by_side([one]).chosen) for one in pairs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert float(together[0].detach()) == pytest.approx(likelihood(decoder, pairs[0].chosen), rel=1e-4)


def test_only_the_last_answer_is_weighed(speaker: Speaker, tmp_path: Path) -> None:
    said = [{"role": turn.role, "content": turn.content} for turn in (FIRST, Message("assistant", "4"), LATER)]
    answers = {key: [{"role": "assistant", "content": text}] for key, text in (("chosen", "8"), ("rejected", "nine"))}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": said, **answers}))
    (found,) = read_pairs(file, speaker)
    for example, expected in zip(found, ("8<|im_end|>", "nine<|im_end|>")):
        learnt = [id for id, right in zip(example.ids, example.answered) if right]
        assert speaker.tokenizer.decode(learnt, control=True) == expected


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_learns_to_prefer(accumulate: int, chat_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(line(f"{word}?", word, word.upper()) for word in ("one", "two", "three", "four", "five")))
    recipe = tmp_path / "pairs.toml"
    recipe.write_text(RECIPE.format(start=chat_model, data=data))
    run(recipe, [f"fit.accumulate={accumulate}"], folder=tmp_path / "run", progress=False)
    records = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert records[-1]["held_out_preferred"] == 1.0
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
    assert (tmp_path / "run/model/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"messages": []}', "line 1: prompt is not a list of messages"),
        (line("a", "b", "c").replace("rejected", "refused"), "line 1: rejected is not a list of messages"),
        (line("a", "b", "c").replace("assistant", "user"), "line 1: chosen must hold one message, of the role 'assist"),
        (line("a", "b" * 90, "c"), "line 1: it has 1.. tokens, but context=90"),
    ],
)
def test_bad_data_is_named(text: str, message: str, chat_model: Path, tmp_path: Path) -> None:
    data, recipe = tmp_path / "pairs.jsonl", tmp_path / "pairs.toml"
    data.write_text(text)
    recipe.write_text(RECIPE.format(start=chat_model, data=data))
    with pytest.raises(InputError, match=message):
        run(recipe, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="beta=0"):
        run(recipe, ["beta=0.0"], folder=tmp_path / "run", progress=False)
