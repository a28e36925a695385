"""generation_config.json: what a file says about writing comes out as transformers' `generate` has it, or is refused.

Every key of the installed transformers' GenerationConfig stands in one of our tables.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from qkv.errors import ConfigError
from qkv.loaded import generation
from qkv.loaded.generation import from_config, read_generation
from qkv.tasks.complete import complete
from qkv.text.learn import learn_bpe

VOCAB, END = 256, 7
PROMPT = [5, 9, 77] * 2
pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strong random weights, and a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("generation")
    learn_bpe("", VOCAB).save(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    return folder


def both(folder: Path, said: dict, prompt: list[int], dtype: str = "auto", **asked):
    """Ids as transformers writes them, ours, and the whole result of ours."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END} | said))
    model = LlamaForCausalLM.from_pretrained(folder)
    row = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), pad_token_id=0, **asked)
    theirs = row[0, len(prompt) :].tolist()
    theirs = theirs[: theirs.index(END) + 1] if END in theirs else theirs
    most = {"max_tokens": asked["max_new_tokens"]} if "max_new_tokens" in asked else {}
    ours = complete(prompt, model=folder, dtype=dtype, **most)
    return theirs, list(ours.texts[0].ids), ours


SAID = {
    "no_repeat_ngram_size=1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size=2": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[125], [114, 200], [77, 5], [4, 2, 1]]},
    "suppress_tokens": {"suppress_tokens": list(range(0, 250, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(128))},
    "min_new_tokens": {"min_new_tokens": 9, "sequence_bias": [[[END], 100.0]]},
    "min_length": {"min_length": 11, "sequence_bias": [[[END], 100.0]]},
    "sequence_bias": {"sequence_bias": [[[3], 5.0], [[5, 9], 30.0], [[9, 77], 40.0]]},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "forced_eos_token_id": {"forced_eos_token_id": 44},
    "exponential_decay": {"exponential_decay_length_penalty": [3, 4.0]},
    "all": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": [1, 2, 3], "min_new_tokens": 5}
    | {"bad_words_ids": [[200, 100]], "sequence_bias": [[[9], 3.0]], "forced_eos_token_id": [44]},
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", SAID)
def test_rules(folder: Path, name: str, beams: int) -> None:
    theirs, ours, _ = both(folder, SAID[name] | {"num_beams": beams}, PROMPT, max_new_tokens=10)
    assert ours == theirs
    plain, _, _ = both(folder, {"num_beams": beams}, PROMPT, max_new_tokens=10)
    assert plain != theirs, "this value changes nothing, so it tests nothing"


@pytest.mark.parametrize("name", ["no_repeat_ngram_size=1", "all"])
@pytest.mark.parametrize("beams", [1, 3])
def test_on_the_other_runner(folder: Path, name: str, beams: int) -> None:
    theirs, ours, _ = both(folder, SAID[name] | {"num_beams": beams}, PROMPT, "float32", max_new_tokens=10)
    assert ours == theirs


@pytest.mark.parametrize(
    "said",
    [
        {"length_penalty": -2.0},
        {"length_penalty": 3.0, "early_stopping": True},
        {"early_stopping": "never", "length_penalty": 2.0},
        {"renormalize_logits": True, "suppress_tokens": list(range(0, 250, 3))},
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, [9], list(range(40, 70))], ids=len)
def test_beams(folder: Path, said: dict, prompt: list[int]) -> None:
    bias = {"sequence_bias": [[[END], 4.0]]}  # so that some texts end
    theirs, ours, _ = both(folder, said | bias | {"num_beams": 4}, prompt, max_new_tokens=10)
    assert ours == theirs


def test_a_forced_beginning(folder: Path) -> None:
    said = {"forced_bos_token_id": 33, "begin_suppress_tokens": list(range(200))}
    theirs, ours, _ = both(folder, said, [9], max_new_tokens=4)
    assert ours == theirs
    assert ours[0] == 33


def test_lengths(folder: Path) -> None:
    theirs, ours, _ = both(folder, {"max_new_tokens": 13, "max_length": 9}, PROMPT)
    assert ours == theirs
    theirs, ours, found = both(folder, {"max_length": 15}, PROMPT)
    assert ours == theirs
    assert found.warnings == ("short: the model's max_length=15 ends the text; set max_tokens",)


def test_the_filters_of_drawing(folder: Path) -> None:
    """What the file leaves out is what transformers takes: the 50 likeliest."""
    assert read_generation({"do_sample": True}).sampling == generation.FILTERS
    assert read_generation({"do_sample": True, "top_k": 7, "min_p": 0.1}).sampling == {
        **{"temperature": 1.0, "top_k": 7, "top_p": 1.0, "min_p": 0.1}
    }
    assert read_generation({"temperature": 0.3, "top_k": 7}).sampling == {}, "not without do_sample"
    absent = GenerationConfig._get_default_generation_params()
    assert {key: absent[key] for key in ("temperature", "top_k", "top_p")}.items() <= generation.FILTERS.items()


def test_stop_strings(folder: Path) -> None:
    whole = both(folder, {}, PROMPT, max_new_tokens=10)[2].text
    cut = both(folder, {}, PROMPT, max_new_tokens=10)[2]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "stop_strings": whole[3]}))
    cut = complete(PROMPT, model=folder, max_tokens=10)
    assert (cut.text, cut.finish) == (whole[: whole.index(whole[3])], "stop")


def test_what_is_asked_goes_before_the_file(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "min_new_tokens": 9}))
    assert complete(PROMPT, model=folder, max_tokens=4, beams=1, temperature=1.0, seed=1).warnings == ()
    found = complete(PROMPT, model=folder, max_tokens=4, logprobs=2)
    assert found.warnings == ("beams: the model's own num_beams=3 is left out for logprobs",)
    assert complete(PROMPT, model=folder, regex="[ab]", max_tokens=4).text in ("a", "b")


def test_every_key_of_transformers_is_known() -> None:
    assert {key for key in vars(GenerationConfig()) if key[0] != "_"} - generation.KEYS.names == set()


@pytest.mark.parametrize("key", generation.KEYS.fixed)
def test_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"generation_config.json: {key}=3 is not supported; it must be"):
        read_generation({key: 3})
    for value in (*generation.KEYS.fixed[key], None):
        assert read_generation({key: value}) == read_generation({})


def test_unknown_keys_are_named() -> None:
    (warning,) = read_generation({"no_repeat_nrgam_size": 2}).warnings
    assert warning.startswith("unknown-keys: generation_config.json has no_repeat_nrgam_size; ")
    assert from_config({"hidden_size": 4, "no_repeat_ngram_size": 2}).sampling["rules"].no_repeat_ngram_size == 2


@pytest.mark.parametrize(
    "said",
    [
        {"bad_words_ids": [1]},
        {"bad_words_ids": [[]]},
        {"suppress_tokens": "all"},
        {"suppress_tokens": [-1]},
        {"sequence_bias": [[[1]]]},
        {"exponential_decay_length_penalty": 2},
        {"min_length": 1.5},
        {"do_sample": 1},
        {"num_beams": 2, "do_sample": True},
        {"num_beams": 99},
        {"early_stopping": "soon"},
        {"max_new_tokens": 0},
        {"stop_strings": [1]},
        {"repetition_penalty": "much"},
    ],
    ids=str,
)
def test_values_that_are_none(said: dict) -> None:
    with pytest.raises(ConfigError, match=f"^generation_config.json: .*{next(iter(said)).split('_')[0]}"):
        read_generation(said)
