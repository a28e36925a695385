"""Tokens that were added to CLIP's tokenizer (textual inversion): the ids of transformers, the picture of the word
whose vector they have, and the same again from an exported folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tokenizers import AddedToken
from transformers import CLIPTokenizer

import qkv
from qkv.errors import CheckpointError, ConfigError
from qkv.published import BOOKKEEPING
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.text.tokenizer_files import CONFIG_KEYS
from qkv.text.weighting import Segment

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own

TEXTS = [
    "a red <toy>, a <TOY>x on <toy><toy>",
    "<toy>",
    "in [style]  of [style]",
    "my Big Cat and a big  cat; bigcat",
    "un <toy >, <to y>, < toy>",
    "plain words 12 é",
]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    train_tokenizer(["a red apple on my cat", "in the style of a big dog"] * 3, vocab=600).save(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def inverted(plain: Path, tmp_path: Path) -> Path:
    """As transformers writes it: tokenizer.json and tokenizer_config.json."""
    tokenizer = CLIPTokenizer.from_pretrained(plain)
    tokenizer.add_tokens(["<toy>", "Big Cat", AddedToken("[style]", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.save_pretrained(tmp_path / "inverted")
    return tmp_path / "inverted"


def edit(file: Path, change: dict[str, object]) -> None:
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | change))


def agree(folder: Path) -> None:
    mine, theirs = Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)
    assert any(max(mine.encode(text)) >= mine.end for text in TEXTS)
    for text in TEXTS:
        assert mine.encode(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_as_transformers_writes_them(inverted: Path) -> None:
    agree(inverted)


def test_in_added_tokens_decoder(plain: Path) -> None:
    """As version 4.34 and later wrote them, beside vocab.json and merges.txt."""
    vocab = json.loads((plain / "vocab.json").read_text())
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    decoder = {
        str(vocab[name]): {"content": name, "normalized": name.startswith("<|s"), "special": True} | flags
        for name in ("<|startoftext|>", "<|endoftext|>")
    }
    for number, name in enumerate(("<toy>", "Big Cat", "[style]")):
        decoder[str(len(vocab) + number)] = {"content": name, "normalized": number != 2, "special": number == 2} | flags
    edit(plain / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    agree(plain)


def test_in_added_tokens_json(plain: Path) -> None:
    """As older versions wrote them; which are special stands in special_tokens_map.json."""
    vocab = json.loads((plain / "vocab.json").read_text())
    names = ("<toy>", "Big Cat", "[style]")
    (plain / "added_tokens.json").write_text(json.dumps({name: len(vocab) + i for i, name in enumerate(names)}))
    edit(plain / "special_tokens_map.json", {"additional_special_tokens": ["[style]"]})
    agree(plain)


def test_named_only(plain: Path) -> None:
    style = {"__type": "AddedToken", "content": "[style]", "lstrip": False, "normalized": False, "special": True}
    edit(plain / "tokenizer_config.json", {"additional_special_tokens": ["<toy>", style]})
    mine, theirs = Tokenizer.load(plain), CLIPTokenizer.from_pretrained(plain)
    for text in ("<toy>[style]", "[STYLE]"):
        assert mine.encode(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("again", [False, True])
def test_an_export_keeps_them(again: bool, inverted: Path, tmp_path: Path) -> None:
    """Ours, and transformers', from what we write."""
    Tokenizer.load(inverted).save(tmp_path / "out")
    if again:
        Tokenizer.load(tmp_path / "out").save(tmp_path / "twice")
    written = tmp_path / ("twice" if again else "out")
    agree(written)
    first, now = (CLIPTokenizer.from_pretrained(folder) for folder in (inverted, written))
    for text in TEXTS:
        assert first(text, padding="max_length").input_ids == now(text, padding="max_length").input_ids


def test_a_prompts_words(inverted: Path) -> None:
    prompt = Tokenizer.load(inverted).chunks([Segment("a red <toy>, Big Cat", 1.5)], 12)
    assert prompt.words == ("a", "red", "<toy>", ",", "Big Cat")
    assert prompt.weights[0, 1:6].tolist() == [1.5] * 5


def test_one_name_for_several_vectors(plain: Path) -> None:
    """The pipeline writes `<toy>` as `<toy> <toy>_1 <toy>_2`."""
    tokenizer = CLIPTokenizer.from_pretrained(plain)
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<cat>"])
    tokenizer.save_pretrained(plain)
    text = "a <toy>, red <cat> <toy>"
    convert = StableDiffusionPipeline.maybe_convert_prompt
    pipeline = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    written = convert(pipeline, text, tokenizer)
    assert written == "a <toy> <toy>_1 <toy>_2, red <cat> <toy> <toy>_1 <toy>_2"
    prompt = Tokenizer.load(plain).chunks([Segment(text)])
    expected = tokenizer(written, padding="max_length", max_length=77).input_ids
    assert prompt.ids.tolist() == [expected]
    assert prompt.words == ("a", "<toy>", ",", "red", "<cat>", "<toy>")


def test_a_control_token_is_never_found_in_a_prompt(inverted: Path) -> None:
    mine = Tokenizer.load(inverted)
    assert not {mine.start, mine.end} & set(mine.encode("a <|startoftext|> <|endoftext|> b"))


def test_model_max_length(plain: Path, tiny: Path, tmp_path: Path) -> None:
    """What the reference pads and cuts to."""
    shutil.copytree(tiny, tmp_path / "model")
    edit(tmp_path / "model" / "tokenizer" / "tokenizer_config.json", {"model_max_length": 20})
    assert qkv.load(tmp_path / "model").context == 20
    edit(tmp_path / "model" / "tokenizer" / "tokenizer_config.json", {"model_max_length": int(1e30)})
    assert qkv.load(tmp_path / "model").context == 77


HOSTILE = [
    ({"added_tokens_decoder": {"600": "<toy>"}}, "an added token that is none: {'id': 600}"),
    ({"added_tokens_decoder": {"x": {"content": "<toy>"}}}, "ids count from 0"),
    ({"added_tokens_decoder": "<toy>"}, "added_tokens_decoder is no table"),
    ({"added_tokens_decoder": {"9" * 5000: {"content": "<toy>"}}}, "ids count from 0"),
    ({"added_tokens_decoder": {"3": {"content": "<toy>"}}}, "two tokens have the same id"),
    ({"added_tokens_decoder": {"900": {"content": ""}}}, "an added token that is none"),
    ({"additional_special_tokens": 3}, "is no list of tokens"),
    ({"model_max_length": 2}, "model_max_length=2"),
    ({"model_max_length": "long"}, "model_max_length='long'"),
    ({"split_special_tokens": True}, "split_special_tokens=True is not supported"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_hostile_files(change: dict[str, object], message: str, plain: Path) -> None:
    edit(plain / "tokenizer_config.json", change)
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        Tokenizer.load(plain)
    assert len(str(caught.value)) < 500


def test_the_keys_of_its_configuration(inverted: Path) -> None:
    """What the installed version writes, and what `PreTrainedTokenizer` of the older ones was given."""
    written = json.loads((inverted / "tokenizer_config.json").read_text())
    assert written
    assert set(written) <= CONFIG_KEYS.names
    assert set(CLIPTokenizer.SPECIAL_TOKENS_ATTRIBUTES) - {"sep_token", "cls_token", "mask_token"} <= CONFIG_KEYS.names
    assert not BOOKKEEPING & set(written)
    edit(inverted / "tokenizer_config.json", {"new_in_a_release": 1})
    (warning,) = Tokenizer.load(inverted).warnings
    assert warning.startswith("unknown-keys: inverted/tokenizer_config.json has new_in_a_release;")


def test_textual_inversion_draws(tmp_path: Path) -> None:
    """A new token with the vector of a word draws what the word draws."""
    qkv.export("emblem", tmp_path / "emblem")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "emblem")
    (word,) = pipeline.tokenizer("apple", add_special_tokens=False).input_ids
    pipeline.tokenizer.add_tokens(["<toy>"])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    weight = pipeline.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[len(pipeline.tokenizer) - 1] = weight[word]
    pipeline.save_pretrained(tmp_path / "inverted")
    qkv.export(tmp_path / "inverted", tmp_path / "again")

    def drawn(model: str, prompt: str) -> bytes:
        # diffusers leaves qkv.json behind, which has emblem's own steps and guidance
        options = {"seed": 1, "steps": 2, "guidance": 4.0, "dtype": "float32"}
        return qkv.draw(prompt, model=tmp_path / model, **options)[0].image.tobytes()

    apple = drawn("emblem", "a red apple")
    assert drawn("inverted", "a red <toy>") == apple
    assert drawn("again", "a red <toy>") == apple
    assert drawn("emblem", "a red <toy>") != apple
