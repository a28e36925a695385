"""Our ids against transformers' CLIPTokenizer, over a vocabulary that neither of the two trained."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.text.weighting import Segment, parse

CORPUS = [
    "a photo of an astronaut riding a horse on mars, it's the astronaut's horse",
    "a colorful photo of a castle in the middle of a forest with trees!",
    "der große hund im anzug, das schöne schloß im wald",
    "穿西裝的狗和火星上的太空人 🐶🚀",
    "собака играет в покер 1234 5678",
]
TEXTS = [
    "",
    " ",
    "a photo of an astronaut riding a horse on mars",
    "A Photo OF an Astronaut",
    "  many \t\n  spaces\u00a0and\u3000wide\u2003ones\u200b \x85 \x1c ",
    "it's we'll they'd I'm you've can't 'tis ''quoted''",
    "IT'S WE'LL",
    "1234 3.14 1st ½ ² ٣ Ⅷ",
    "穿西裝的狗, 日本語のテキスト, 한국어",
    "🐶 a dog 👩🏽‍🚀 🇩🇪 !!! ... -- ___ a_b",
    "café cafe\u0301 ﬁne Å Å İstanbul ß ẞ Σίσυφος",
    "<|endoftext|> <|startoftext|> a<|endoftext|>b <|ENDOFTEXT|> <|endoftext|></w>",
    "dog</w> </w> #version: 0.2",
    "nul \0 bell \a bidi \u202e dog",
    "!a !! !!! a! ! <|endoftext|>!",
]
TEXT = st.text(max_size=80) | st.lists(st.sampled_from([*"aAéẞ'!1, \n狗", "'s", "dog", "<|endoftext|>"])).map("".join)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One vocabulary as Stable Diffusion 1.x and 2.x publish it, and as transformers 5 saves it."""
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.train_from_iterator(CORPUS * 5, trainers.BpeTrainer(vocab_size=600, end_of_word_suffix="</w>"))
    merges = json.loads(backend.to_str())["model"]["merges"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
    tokens += dict.fromkeys(left + right for left, right in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]

    root = tmp_path_factory.mktemp("tokenizers")
    eos = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    control = {"bos_token": eos | {"content": "<|startoftext|>"}, "eos_token": eos, "unk_token": eos}
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **control}
    for name, pad in {"sd1": "<|endoftext|>", "sd2": "!"}.items():
        folder = root / name
        folder.mkdir()
        files = {
            "vocab.json": {token: index for index, token in enumerate(tokens)},
            "tokenizer_config.json": config,
            "special_tokens_map.json": control | {"pad_token": pad},
        }
        for file, values in files.items():
            (folder / file).write_text(json.dumps(values), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        CLIPTokenizer.from_pretrained(folder).save_pretrained(root / f"{name}-json")
        assert (root / f"{name}-json" / "tokenizer.json").is_file()
    return root


@pytest.fixture(scope="session", params=["sd1", "sd1-json", "sd2", "sd2-json"])
def pair(request, folders):
    """Ours and theirs; theirs is told, as ours always is, to take control tokens in a prompt as text."""
    folder = folders / request.param
    return Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder, split_special_tokens=True)


def row(theirs, text):
    """What a diffusers pipeline does."""
    return theirs(text, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("text", TEXTS)
def test_ids(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.chunks([Segment(text)]).ids[0].tolist() == row(theirs, text)


@given(TEXT)
def test_ids_of_any_text(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_a_prompt_as_a_pipeline_encodes_it(pair):
    ours, theirs = pair
    for text in [*CORPUS, "a dog"]:
        plain = text.replace("!", "")
        prompt = ours.chunks(parse(plain))
        assert prompt.ids.tolist() == [row(theirs, plain)]
        assert (prompt.weights == 1).all()


def test_padding_is_the_folders_own(folders):
    for name, pad in {"sd1": -1, "sd1-json": -1, "sd2": 0, "sd2-json": 0}.items():
        tokenizer = Tokenizer.load(folders / name)
        assert tokenizer.chunks(parse("a dog")).ids[0, -1] == pad % tokenizer.vocab


def test_special_parsing_is_all_that_differs_from_the_default(folders):
    ours = Tokenizer.load(folders / "sd1")
    theirs = CLIPTokenizer.from_pretrained(folders / "sd1")
    for text in TEXTS:
        same = ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert same == ("<|" not in text), text


def test_transformers_reads_what_we_train_and_save(tmp_path):
    ours = train_tokenizer(CORPUS * 3, vocab=640)
    ours.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 77
    assert len(theirs) == ours.vocab
    for text in [*CORPUS, *(text for text in TEXTS if "<|" not in text)]:
        assert ours.chunks([Segment(text)]).ids[0].tolist() == row(theirs, text)
