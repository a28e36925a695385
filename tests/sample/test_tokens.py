"""The next token: equal to transformers' logits processors, drawn as often as it should be, the same in any company."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import generation

from qkv.errors import CheckpointError, InputError
from qkv.sample.tokens import Sampling, TokenSampler, keep, likeliest, log_softmax

VOCAB = 300
PROMPT = [3, 5, 5, 250]


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


def filtered(values: np.ndarray, *processors: generation.LogitsProcessor) -> np.ndarray:
    """Probabilities after transformers' processors."""
    scores = torch.tensor(values)[None]
    for processor in processors:
        scores = processor(torch.tensor([PROMPT]), scores)
    return scores[0].double().softmax(-1).numpy()


FILTERS = {
    "temperature": (Sampling(temperature=0.6), [generation.TemperatureLogitsWarper(0.6)]),
    "top_k": (
        Sampling(temperature=1.3, top_k=7),
        [generation.TemperatureLogitsWarper(1.3), generation.TopKLogitsWarper(7)],
    ),
    "top_p": (
        Sampling(temperature=0.8, top_p=0.7),
        [generation.TemperatureLogitsWarper(0.8), generation.TopPLogitsWarper(0.7)],
    ),
    "top_p of flat logits": (
        Sampling(temperature=50.0, top_p=0.95),
        [generation.TemperatureLogitsWarper(50.0), generation.TopPLogitsWarper(0.95)],
    ),
    "min_p": (
        Sampling(temperature=2.0, min_p=0.1),
        [generation.TemperatureLogitsWarper(2.0), generation.MinPLogitsWarper(0.1)],
    ),
    "all": (
        Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.02),
        [
            generation.TemperatureLogitsWarper(1.5),
            generation.TopKLogitsWarper(40),
            generation.TopPLogitsWarper(0.9),
            generation.MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_of_transformers(name: str) -> None:
    sampling, processors = FILTERS[name]
    for seed in range(10):
        expected = filtered(logits(seed), *processors)
        ids, weights = keep(logits(seed), sampling)
        found = np.zeros(VOCAB)
        found[ids] = weights / weights.sum()
        assert np.abs(found - expected).max() < 1e-6


def test_ties_at_the_kth_token_are_kept() -> None:
    values = np.zeros(VOCAB, dtype=np.float32)
    values[:5] = 2
    ids, _ = keep(values, Sampling(temperature=1.0, top_k=3))
    assert list(ids) == [0, 1, 2, 3, 4] == list(np.flatnonzero(filtered(values, generation.TopKLogitsWarper(3))))


def test_repetition_penalty_and_bias_are_those_of_transformers() -> None:
    sampling = Sampling(repetition_penalty=1.7, logit_bias={3: 5.0, 7: -100.0, 0: 2.5})
    for seed in range(20):
        bias = generation.SequenceBiasLogitsProcessor([[[3], 5.0], [[7], -100.0], [[0], 2.5]])
        penalty = generation.RepetitionPenaltyLogitsProcessor(1.7)
        ids, scores, sampler = torch.tensor([PROMPT]), torch.tensor(logits(seed))[None], TokenSampler
        ours = sampler(sampling, PROMPT, VOCAB)
        for _ in range(4):
            expected = int(penalty(ids, bias(ids, scores)).argmax())
            assert ours.next(logits(seed)).id == expected
            ids = torch.cat([ids, torch.tensor([[expected]])], dim=1)


def test_presence_and_frequency_penalties_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, counting what was written and not the prompt."""
    values = logits(0)
    sampler = TokenSampler(Sampling(presence_penalty=0.5, frequency_penalty=0.3), PROMPT, VOCAB)
    counts = np.zeros(VOCAB)
    for _ in range(200):
        token = int((values - 0.3 * counts - 0.5 * (counts > 0)).astype(np.float32).argmax())
        assert sampler.next(values).id == token
        counts[token] += 1
    assert (counts > 0).sum() > 5


def test_logits_are_left_as_they_are() -> None:
    values = logits(0)
    sampling = Sampling(temperature=1.0, top_k=5, repetition_penalty=1.5, logit_bias={1: 3.0}, seed=0)
    TokenSampler(sampling, PROMPT, VOCAB, logprobs=3).next(values)
    assert (values == logits(0)).all()


def test_tokens_are_drawn_as_often_as_they_should_be() -> None:
    """Chi-squared over 20,000 draws; 34.5 would be passed by one seed of a thousand if all is right."""
    values = np.log(np.arange(1, 14, dtype=np.float32))
    sampler = TokenSampler(Sampling(temperature=1.0, seed=1), [], 13)
    counts = np.bincount([sampler.next(values).id for _ in range(20_000)], minlength=13)
    expected = np.exp(values) / np.exp(values).sum() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 34.5


@given(st.integers(0, 2**63 - 1), st.floats(1e-300, 100), st.integers(0, VOCAB), st.floats(0.01, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_what_is_drawn_was_kept(seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    values = logits(seed % 1000)
    ids, weights = keep(values, sampling)
    assert values.argmax() in ids
    assert (np.diff(ids) > 0).all()
    assert np.isfinite(weights).all()
    assert TokenSampler(sampling, [], VOCAB).next(values).id in ids


def test_a_seed_is_a_sequence_of_its_own() -> None:
    rows = [logits(seed) for seed in range(30)]

    def run(seed: int) -> list[int]:
        sampler = TokenSampler(Sampling(temperature=1.0, seed=seed), [], VOCAB)
        return [sampler.next(row).id for row in rows]

    alone = [run(seed) for seed in range(4)]
    samplers = [TokenSampler(Sampling(temperature=1.0, seed=seed), [], VOCAB) for seed in range(4)]
    together = [[sampler.next(row).id for sampler in samplers] for row in rows]
    assert [list(column) for column in zip(*together)] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4
    assert run(2**63 - 1) == run(2**63 - 1)


def test_the_last_bits_of_logits_hardly_ever_change_what_is_drawn() -> None:
    sampling, noise = Sampling(temperature=1.0, top_p=0.95, seed=5), np.random.default_rng(1)
    a, b = (TokenSampler(sampling, [], VOCAB) for _ in range(2))
    same = [
        a.next(x).id == b.next(x + noise.normal(0, 1e-6, VOCAB).astype(np.float32)).id for x in map(logits, range(500))
    ]
    assert sum(same) >= 499


def test_drafted_tokens_change_nothing() -> None:
    """A draft is checked row by row until the first that differs; the stream of random numbers goes on unharmed."""
    rows = [logits(seed, 1.0) for seed in range(40)]
    sampling = Sampling(temperature=1.0, frequency_penalty=1.0, seed=3)
    plain = TokenSampler(sampling, PROMPT, VOCAB)
    expected = [plain.next(row).id for row in rows]
    drafted, guess, got = TokenSampler(sampling, PROMPT, VOCAB), np.random.default_rng(0), []
    while len(got) < 36:
        draft = [expected[len(got) + i] if guess.random() < 0.7 else 0 for i in range(3)]
        for place in range(4):
            got.append(drafted.next(rows[len(got)]).id)
            if place < 3 and got[-1] != draft[place]:
                break
    assert got == expected[: len(got)]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    values = logits(2)
    sampler = TokenSampler(Sampling(temperature=0.5, top_k=2, logit_bias={4: 100.0}, seed=0), [], VOCAB, logprobs=5)
    expected = torch.tensor(values).double().log_softmax(-1)
    choice = sampler.next(values)
    assert choice.id == 4
    assert choice.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    top = expected.topk(5)
    assert [token for token, _ in choice.top] == top.indices.tolist()
    assert np.allclose([logprob for _, logprob in choice.top], top.values, atol=1e-5)
    assert TokenSampler(Sampling(), [], VOCAB).next(values).logprob is None
    assert likeliest(log_softmax(values), 10**6)[-1][0] == values.argmin()
    assert np.allclose(log_softmax(np.array([-np.inf, 0.0, 1e30], dtype=np.float32)), [-np.inf, -1e30, 0])


REFUSED = [
    *(("temperature", value) for value in (math.nan, math.inf, -1, 1e308, "1", None, True)),
    *(("top_p", value) for value in (0, 2, math.nan, -0.1)),
    *(("top_k", value) for value in (-5, 1.5, 2**40)),
    *(("min_p", value) for value in (-1, 1.1, math.nan)),
    *(("repetition_penalty", value) for value in (0, 1e9, -1, math.inf)),
    *((name, value) for name in ("presence_penalty", "frequency_penalty") for value in (1e9, -3, math.nan)),
    *(("seed", value) for value in (2**70, -1, 1.0, 10**5000)),
    *(("logit_bias", value) for value in ({-1: 1.0}, {"a": 1.0}, {1: 101}, {1: math.nan}, [1], {2**40: 1.0})),
    ("logit_bias", dict.fromkeys(range(10**6), 1.0)),
]


@pytest.mark.parametrize(
    ("name", "value"), REFUSED, ids=[f"{name}-{number}" for number, (name, _) in enumerate(REFUSED)]
)
def test_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{name}") as error:
        Sampling(**{name: value})
    assert len(str(error.value)) < 200


def test_a_bias_on_a_token_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"logit_bias: token id=300 is not a whole number in 0\.\.299"):
        TokenSampler(Sampling(logit_bias={300: 1.0}), [], VOCAB)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_the_models_fault(value: float) -> None:
    values = logits(0)
    values[17] = value
    for temperature in (0.0, 1.0):
        with pytest.raises(CheckpointError, match="not numbers"):
            TokenSampler(Sampling(temperature=temperature, seed=0), [], VOCAB).next(values)


def test_no_token_left() -> None:
    class Nothing:
        def allowed(self) -> np.ndarray:
            return np.zeros(VOCAB, dtype=bool)

        def accept(self, token: int) -> None:
            raise AssertionError

    with pytest.raises(InputError, match="no token is left"):
        TokenSampler(Sampling(temperature=1.0, seed=0), [], VOCAB, constraint=Nothing()).next(logits(0))
