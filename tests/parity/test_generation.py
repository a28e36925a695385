"""Whole generations, token for token as transformers': greedy, with penalties and bias, and by beams."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qkv.engine.engine import Engine
from qkv.engine.native_runner import NativeRunner
from qkv.engine.torch_runner import TorchRunner
from qkv.kernels import build
from qkv.loaded.language import Language
from qkv.tasks.complete import complete
from qkv.text.learn import learn_bpe
from qkv.weights.decoder import as_blocks, load_decoder
from qkv.weights.folder import Folder

VOCAB, END = 256, 7
PROMPTS = [[3, 1, 4, 1, 5], [9], list(range(40, 90))]
pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """Strong random weights, and a vocabulary of bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        gain = "norm" in name
        torch.nn.init.normal_(parameter, mean=1.0 if gain else 0.0, std=0.3)
    return model


@pytest.fixture(scope="module")
def language(reference: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Language:
    folder = tmp_path_factory.mktemp("tiny-llama")
    reference.save_pretrained(folder)
    tokenizer = learn_bpe("", VOCAB)
    tokenizer.stops = frozenset([END])
    engine = Engine(TorchRunner(load_decoder(Folder(folder)), memory=1 << 22))
    return Language(name="tiny", tokenizer=tokenizer, engine=engine, load_template=lambda: None)


@pytest.fixture
def ours(language: Language, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qkv.tasks.complete.load_language", lambda *given, **options: language)
    return complete


def theirs(reference: LlamaForCausalLM, prompt: list[int], **options) -> list[tuple[int, ...]]:
    options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": VOCAB - 1} | options
    found = reference.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
    rows = [row[len(prompt) :] for row in found.tolist()]
    return [tuple(row[: row.index(END) + 1] if END in row else row) for row in rows]


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy(ours, reference, prompt) -> None:
    assert [text.ids for text in ours(prompt, max_tokens=20).texts] == theirs(reference, prompt)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_penalties(ours, reference, prompt) -> None:
    for penalty in (1.3, 0.8):
        found = ours(prompt, max_tokens=20, repetition_penalty=penalty)
        assert [text.ids for text in found.texts] == theirs(reference, prompt, repetition_penalty=penalty)
    bias = {5: 4.0, 9: -50.0, END: -20.0}
    found = ours(prompt, max_tokens=20, logit_bias=bias, repetition_penalty=1.1)
    sequence_bias = [[[token], value] for token, value in bias.items()]
    assert [text.ids for text in found.texts] == theirs(
        reference, prompt, sequence_bias=sequence_bias, repetition_penalty=1.1
    )


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize(("beams", "length_penalty"), [(2, 1.0), (4, 1.0), (4, 0.0), (3, 2.0)])
def test_beams(ours, reference, prompt, beams: int, length_penalty: float) -> None:
    found = ours(prompt, max_tokens=12, beams=beams, n=beams, length_penalty=length_penalty)
    assert [text.ids for text in found.texts] == theirs(
        reference,
        prompt,
        max_new_tokens=12,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
    )


def test_the_comparison_can_fail(ours, reference) -> None:
    prompt = PROMPTS[0]
    assert [text.ids for text in ours(prompt, max_tokens=20).texts] != theirs(reference, prompt, repetition_penalty=1.3)


def test_logprobs(ours, reference) -> None:
    found = ours(PROMPTS[0], max_tokens=10, logprobs=3).texts[0]
    with torch.no_grad():
        logits = reference(torch.tensor([[*PROMPTS[0], *found.ids]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    chances = logits.double().log_softmax(-1)
    for row, token in zip(chances, found.tokens):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-3)
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


@pytest.mark.parametrize(("runner", "near"), [("torch", 1e-3), ("native", 1e-2)])  # its keys have 16 bits
def test_logprobs_of_the_prompt(language, reference, runner, near, monkeypatch) -> None:
    """echo: every token of the prompt but the first, of a prompt longer than a page, on either runner."""
    if runner == "native":
        if reason := build.available():
            pytest.skip(reason)
        native = NativeRunner(*as_blocks(language.engine.runner.decoder), memory=1 << 22, threads=1)
        language = dataclasses.replace(language, engine=Engine(native))
    monkeypatch.setattr("qkv.tasks.complete.load_language", lambda *given, **options: language)
    prompt = PROMPTS[2] * 2
    found = complete(prompt, max_tokens=5, logprobs=3, echo=True).texts[0]
    ids = [token.id for token in found.tokens]
    assert ids == [*prompt, *found.ids]
    assert (found.tokens[0].logprob, found.tokens[0].top) == (None, ())
    with torch.no_grad():
        chances = reference(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    for row, token in zip(chances, found.tokens[1:]):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=near)
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=near)
