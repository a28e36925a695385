"""Beam search: token for token that of transformers, on a model of its own."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from qkv.errors import InputError
from qkv.sample.beam import beam_search, check_beams

PROMPT, ENDS = [3, 1, 4], [7, 11]


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=7)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def continuations(model: GPT2LMHeadModel):
    @torch.inference_mode()
    def likeliest(texts: list[tuple[int, ...]], count: int) -> list[list[tuple[int, float]]]:
        chances = model(torch.tensor([[*PROMPT, *text] for text in texts])).logits[:, -1].log_softmax(-1)
        top = chances.topk(min(count, 40))
        return [list(zip(ids, logprobs)) for ids, logprobs in zip(top.indices.tolist(), top.values.tolist())]

    return likeliest


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("max_tokens", [1, 12])
@pytest.mark.parametrize("ends", [[7], ENDS])
def test_as_transformers(
    reference: GPT2LMHeadModel, beams: int, length_penalty: float, max_tokens: int, ends: list[int]
) -> None:
    options = {"length_penalty": length_penalty, "max_tokens": max_tokens, "beams": beams, "ends": ends}
    *_, found = beam_search(continuations(reference), **options)
    expected = reference.generate(
        torch.tensor([PROMPT]),
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        max_new_tokens=max_tokens,
        eos_token_id=ends,
        pad_token_id=39,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    texts = [tuple(token for token in row[3:] if token != 39) for row in expected.sequences.tolist()]
    assert [text.ids for text in found] == texts
    scores = [text.score(length_penalty) for text in found]
    assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4)
    assert [text.ended for text in found] == [text[-1] in ends for text in texts]


def test_the_likeliest_of_all_short_texts_is_found(reference: GPT2LMHeadModel) -> None:
    """Wide enough, the search is exhaustive."""
    likeliest = continuations(reference)
    *_, found = beam_search(likeliest, beams=40, ends=(), max_tokens=2, length_penalty=0.0)
    first = dict(likeliest([()], 40)[0])
    rows = likeliest([(token,) for token in range(40)], 40)
    every = {(a, b): first[a] + logprob for a, row in enumerate(rows) for b, logprob in row}
    best = sorted(every, key=every.__getitem__, reverse=True)
    assert [text.ids for text in found[:5]] == best[:5]


def test_every_step_shows_the_best_text_so_far(reference: GPT2LMHeadModel) -> None:
    steps = list(beam_search(continuations(reference), beams=3, ends=(), max_tokens=5))
    assert [len(step[0].ids) for step in steps] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("values", [(0, 1.0), (17, 1.0), (10**9, 1.0), (2.0, 1.0), (2, math.nan), (2, 1e9)])
def test_refused(values: tuple[int, float]) -> None:
    with pytest.raises(InputError, match="beams|length_penalty"):
        check_beams(*values)
