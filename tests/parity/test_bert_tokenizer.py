"""The tokenizers of BERT's kin against transformers', on vocabularies that are learnt here, and on real ones."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qkv import registry
from qkv.text.bert import BertTokenizer, learn_wordpiece
from qkv.text.learn import learn_bpe

transformers = pytest.importorskip("transformers")

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the unbelievable dog jumps back!",
    "Ein Übermut kommt selten allein; déjà vu, naïve façade, 漢字かな交じり文 and emoji 🐶.",
    "return the name of a thing, and return it again: the thing",
] * 3
WORDS = st.text(max_size=60) | st.lists(st.sampled_from(" ".join(TEXTS).split())).map(" ".join)
PUBLISHED = (  # of the Molecular Transformer, as its authors print it
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def wordpiece(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordpiece")
    ours = learn_wordpiece(TEXTS, 160, lowercase=request.param)
    ours.save(folder)
    return ours, transformers.BertTokenizer.from_pretrained(folder)


def plain(text):
    """No control token spelled, which transformers would not take as text."""
    return not any(name in text for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<"))


@given(text=WORDS.filter(plain))
@example("")
@example("\tÜber\u00a0naïve\u200bfaçade\u0000 漢字 unbelievably\r\n")
@example("a" * 101)
@settings(deadline=None)
def test_wordpiece(wordpiece, text):
    ours, theirs = wordpiece
    assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", ["the [MASK] dog", "[MASK]", "un[MASK]able [MASK][MASK].", "no mask"])
def test_masks(wordpiece, text):
    ours, theirs = wordpiece
    assert ours.encode(text, masks=True) == theirs(text)["input_ids"]
    assert ours.mask not in ours.encode(text)


def test_the_folder_that_transformers_writes(wordpiece, tmp_path):
    ours, theirs = wordpiece
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    again = BertTokenizer.load(tmp_path)
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text) == theirs(text)["input_ids"]
    assert again.decode(again.encode("the lazy dog")) == "the lazy dog"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    learnt = learn_bpe("\n".join(TEXTS), 300).vocabulary
    control = ["<s>", "<pad>", "</s>", "<unk>"]
    ids = {name: i for i, name in enumerate(control)} | {token: 4 + id for token, id in learnt.ids.items()}
    (folder / "vocab.json").write_text(json.dumps(ids | {"<mask>": 304}), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in learnt.merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "vocab_size": 305}))
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    theirs = transformers.RobertaTokenizer.from_pretrained(folder, mask_token=mask)
    whole = tmp_path_factory.mktemp("roberta-json")
    theirs.save_pretrained(whole)
    return [BertTokenizer.load(folder), BertTokenizer.load(whole)], theirs


@given(text=WORDS.filter(plain))
@settings(deadline=None)
def test_byte_level(roberta, text):
    ours, theirs = roberta
    for tokenizer in ours:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["the <mask> dog", "<mask>", "un<mask>able <mask><mask>.", "a  <mask>  b"])
def test_byte_level_masks(roberta, text):
    ours, theirs = roberta
    for tokenizer in ours:
        assert tokenizer.encode(text, masks=True) == theirs(text)["input_ids"]
        assert (tokenizer.first, tokenizer.last, tokenizer.pad, tokenizer.mask) == (0, 2, 1, 304)
        assert tokenizer.mask not in tokenizer.encode(text)


def test_a_mask_that_leaves_the_space(roberta, tmp_path):
    _, theirs = roberta
    theirs.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    next(token for token in whole["added_tokens"] if token["content"] == "<mask>")["lstrip"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert BertTokenizer.load(tmp_path).encode("the <mask>", masks=True) != theirs("the <mask>")["input_ids"]


SMILES = [
    "CC(=O)Cl.[NH4+]>>CC(=O)N",
    "C1CC%12CC1.Brc1ccc(Br)cc1",
    "C[C@@H](N)C(=O)O.F/C=C/F",
    "[Na+].[Cl-]",
    "ClC(Cl)Cl",
]


@pytest.mark.parametrize("text", SMILES)
def test_smiles(text, tmp_path):
    symbols = re.findall(PUBLISHED, text)
    assert "".join(symbols) == text
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ">>", *dict.fromkeys(s for s in symbols if s != ">>")]
    (tmp_path / "vocab.txt").write_text("\n".join(names) + "\n")
    tokenizer = BertTokenizer.load(tmp_path)
    assert tokenizer.encode(text) == [2, *(names.index(symbol) for symbol in symbols), 3]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("[MASK]") == [2, 1, 3]  # as an atom it is unknown
    assert tokenizer.encode(f"{symbols[0]}[MASK]", masks=True) == [2, names.index(symbols[0]), 4, 3]


def real(name: str) -> Path:
    folder = registry.home() / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here; qkv pull {name} fetches it")
    return folder


@pytest.mark.weights
def test_minilm():
    theirs = transformers.BertTokenizerFast.from_pretrained(real("minilm"))
    ours = BertTokenizer.load(real("minilm"))
    assert ours.vocab == len(theirs)
    for text in [*TEXTS, "", "x" * 300, "don't  stop… №5 ½"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.weights
def test_rxn_albert():
    folder = real("rxn-albert")
    ids = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().split("\n"))}
    ours = BertTokenizer.load(folder)
    for text in SMILES:
        assert ours.encode(text) == [12, *(ids.get(symbol, 11) for symbol in re.findall(PUBLISHED, text)), 13]
