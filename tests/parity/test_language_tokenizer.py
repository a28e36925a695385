"""Our ids and texts against transformers' AutoTokenizer, in every way of cutting words that we know."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from qkv.errors import InputError
from qkv.text.chat import ChatTemplate, Message
from qkv.text.language import LanguageTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's the dog's 1st jump of 2024's 365.",
    "def factorial(n):\n    if n < 2:\n        return 1\n\treturn n * factorial(n - 1)  # O(n)\n\n\n",
    "der große Hund läuft über die Straße, naïve café, l'été où ça finit",
    "собака играет в покер 1234 5678 — почему?",
    "穿西裝的狗和火星上的太空人。日本語のテキスト、한국어 문장",
    "שלום עולם العربية هندی हिन्दी ไทย",
    "{'key': [1, 2.5, -3e10], \"b\": null} <html></html> camelCaseWords HTTPServer x_y ... !!! ???",
    "🐶🚀👩🏽‍🚀🇩🇪 ½ ² ٣ Ⅷ   many    spaces\t\ttabs\r\nlines",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    *("", " ", "\n", "a", "Hello, world!", " leading", "trailing ", "  two  spaces  ", "\t\ttabs\n\n\nlines \r\n x"),
    *CORPUS,
    "it's IT'S we'll WE'LL they'd 'tis ''quoted'' I'm can't",
    "1 12 123 1234 12345678 3.14 1,000 1st x1y2 ٣٤٥ ½½ ⅧⅧ",
    "cafe\u0301 café Å Å ﬁne İstanbul ẞ Σίσυφος q\u0323\u0307 q\u0307\u0323",
    "nul \0 bell \a unit \x1f bidi \u202e dog \u200b zero \ufeff bom \x85 nel \u2028 sep",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "lowerUPPERlower ABCdef abcDEF ÀÉîõ éÀ ǅungla ªº",
    "   x   \n   y\n\n   \n z ...\n\n!!!\n/\n//",
    "<|im_end", "im_end|>", "< | im_end | >", "▁under▁score ▁", "<0x0A> <s> </s> [INST]",
]  # fmt: skip
_PIECES = [*"aAbéß'!1, .\n\t狗🐶\u0301\u0323", "'s", " the", "\r\n", "  ", "def ", "ing", "▁", "\u202e", "\0"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(st.sampled_from(_PIECES)).map("".join)

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_35 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT_4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def split(pattern: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
# name -> (normalizer, pre_tokenizer, whole words first, tokenizer.ggml.pre)
BYTE_LEVEL: dict[str, tuple[Any, Any, bool, str | None]] = {
    "gpt-2": (None, _BYTES, False, "gpt-2"),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]), False, "smollm"),
    "llama-3": (None, split(LLAMA_3), True, "llama-bpe"),
    "qwen-2": (normalizers.NFC(), split(QWEN_2), False, "qwen2"),
    "qwen-3.5": (normalizers.NFC(), split(QWEN_35), False, "qwen35"),
    "gpt-4o": (None, split(GPT_4O), False, "gpt-4o"),
    "tekken": (None, split(TEKKEN), True, "tekken"),
    "bloom": (None, split(BLOOM), False, "bloom"),
    "gpt-2 with a space": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), False, None),
    "gpt-2 spelled out": (None, split(GPT_2), False, None),
}
PIECES = ["llama-2", "mistral", "gemma"]


def finish(folder: Path, backend: Tokenizer, bos: str, eos: str, begins: bool, **said: str) -> None:
    if begins:
        begin = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[begin])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos} | said
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def byte_level(folder: Path, name: str) -> None:
    normalizer, words, whole, _ = BYTE_LEVEL[name]
    backend = Tokenizer(models.BPE(ignore_merges=whole))
    backend.pre_tokenizer = words
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    # As NeoX and Qwen have them: runs of spaces, and markers that are not flagged special.
    backend.add_tokens([AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)])
    finish(folder, backend, "<|im_start|>", "<|im_end|>", begins=name == "llama-3")


def pieces(folder: Path, name: str) -> None:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    learner.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    control = control if name == "gemma" else ["<unk>", "<s>", "</s>"]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "gemma":  # as google/gemma-2-2b-it publishes it
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.decoder = decoders.Sequence(parts)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        backend.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "\n\n\n", "▁▁", "<table>")])
        named = {"pad_token": "<pad>", "unk_token": "<unk>", "chat_template": GEMMA}
        finish(folder, backend, "<bos>", "<eos>", begins=True, tokenizer_class="GemmaTokenizer", **named)
        return
    if name == "llama-2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    finish(folder, backend, "<s>", "</s>", begins=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for name in BYTE_LEVEL:
        byte_level(root / name, name)
    for name in PIECES:
        pieces(root / name, name)
    return root


@pytest.fixture(scope="module", params=[*BYTE_LEVEL, *PIECES])
def pair(request: pytest.FixtureRequest, folders: Path) -> tuple[LanguageTokenizer, Any]:
    folder = folders / request.param
    return LanguageTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def check(pair: tuple[LanguageTokenizer, Any], text: str) -> None:
    ours, theirs = pair
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == expected
    assert ours.decode(expected) == theirs.decode(expected, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_texts(pair: tuple[LanguageTokenizer, Any], text: str) -> None:
    if not any(token in text for token in pair[0].control):
        check(pair, text)


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_any_text(pair: tuple[LanguageTokenizer, Any], text: str) -> None:
    if not any(token in text for token in pair[0].control):
        check(pair, text)


@settings(deadline=None, max_examples=40)
@given(parts=st.lists(st.sampled_from([*_PIECES, "A", " B"]), max_size=12), places=st.data())
def test_control_tokens_where_asked_for(pair: tuple[LanguageTokenizer, Any], parts: list[str], places: Any) -> None:
    ours, theirs = pair
    for token in places.draw(st.lists(st.sampled_from(ours.control), max_size=4)):
        parts.insert(places.draw(st.integers(0, len(parts))), token)
    text = "".join(parts)
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, control=True) == expected
    assert not {id for id in ours.encode(text) if ours.is_control(id)}
    for control in (False, True):
        theirs_text = theirs.decode(expected, skip_special_tokens=not control, clean_up_tokenization_spaces=False)
        assert ours.decode(expected, control=control) == theirs_text


def test_names_and_sizes(pair: tuple[LanguageTokenizer, Any]) -> None:
    ours, theirs = pair
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab == len(theirs)
    assert ours.adds_bos == (theirs.encode("a")[0] == theirs.bos_token_id)
    assert theirs.eos_token_id in ours.stops


@settings(deadline=None, max_examples=30)
@given(text=TEXT)
def test_saved_for_transformers(
    pair: tuple[LanguageTokenizer, Any], tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    ours, theirs = pair
    folder = tmp_path_factory.getbasetemp() / f"saved-{id(ours)}"
    if not folder.exists():
        ours.save(folder)
    again = LanguageTokenizer.load(folder)
    reopened = AutoTokenizer.from_pretrained(folder)
    assert again.vocabulary.ids == ours.vocabulary.ids
    assert (again.bos, again.eos, again.stops, again.adds_bos) == (ours.bos, ours.eos, ours.stops, ours.adds_bos)
    assert again.encode(text) == ours.encode(text)
    assert reopened.encode(text) == theirs.encode(text)
    assert reopened.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def test_gemmas_turns(folders: Path) -> None:
    """Its chat template, and the end of a turn ends an answer."""
    ours, theirs = LanguageTokenizer.load(folders / "gemma"), AutoTokenizer.from_pretrained(folders / "gemma")
    assert type(theirs).__name__.startswith("GemmaTokenizer")
    assert theirs.convert_tokens_to_ids("<end_of_turn>") in ours.stops
    template = ChatTemplate.load(folders / "gemma")
    turns = [("user", "  the dog\n\n<table> "), ("assistant", "jumps 狗"), ("user", "over  two ▁▁ spaces?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert template.encode([Message(*turn) for turn in turns], ours) == expected
    with pytest.raises(InputError, match="System role not supported"):
        template.encode([Message("system", "be brief"), Message("user", "a")], ours)


@pytest.mark.parametrize("name", [name for name, (*_, pre) in BYTE_LEVEL.items() if pre])
def test_the_same_from_gguf(folders: Path, name: str) -> None:
    folder = LanguageTokenizer.load(folders / name)
    v = folder.vocabulary
    tokens = sorted(v.ids, key=v.ids.__getitem__)
    kinds = np.ones(len(tokens), np.int32)
    for token in v.added:
        kinds[token.id] = 3 if token.special else 4
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": BYTE_LEVEL[name][3],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in v.merges],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": folder.bos,
        "tokenizer.ggml.eos_token_id": folder.eos,
        "tokenizer.ggml.add_bos_token": folder.adds_bos,
    }
    gguf = LanguageTokenizer.from_gguf(metadata)
    assert (gguf.bos, gguf.eos, gguf.stops, gguf.adds_bos) == (folder.bos, folder.eos, folder.stops, folder.adds_bos)
    for text in TEXTS:
        assert gguf.encode(text) == folder.encode(text)
        assert gguf.encode(f"{text}<|im_end|>", control=True) == folder.encode(f"{text}<|im_end|>", control=True)


def test_gpt_2s_files(folders: Path, tmp_path: Path) -> None:
    model = json.loads((folders / "gpt-2/tokenizer.json").read_text())["model"]
    ids = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    ours, theirs = LanguageTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.bos == ours.eos == theirs.eos_token_id
    assert not ours.adds_bos
    for text in TEXTS:
        check((ours, theirs), text)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("QKV_TEST_GGUF" not in os.environ, reason="QKV_TEST_GGUF names no published GGUF file")
def test_a_published_file() -> None:
    from qkv.weights.gguf import open_gguf

    path = Path(os.environ["QKV_TEST_GGUF"])
    ours = LanguageTokenizer.from_gguf(open_gguf(path).metadata)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        if not any(symbol.isnumeric() for symbol in text):  # transformers does not read tokenizer.ggml.pre
            check((ours, theirs), text)
