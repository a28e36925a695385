"""What was masked: probabilities, several masks, the text as it was; the reaction model against transformers."""

import json
import re
import subprocess
import sys

import pytest
import torch

import qkv
from qkv import registry
from qkv.errors import CheckpointError, InputError
from qkv.models.bert import Bert, MaskedBert
from qkv.tasks.fill import fill, load_filler
from qkv.weights.bert import load_bert
from qkv.weights.folder import Folder


@pytest.fixture(scope="module")
def folder(tiny_bert):
    return tiny_bert(MaskedBert)


@torch.no_grad()
def test_all_probabilities_of_each_mask(folder):
    filler = load_filler(folder)
    filled = filler.fill("a [MASK] in a [MASK]", top=filler.tokenizer.vocab)
    assert filled.model == "reader"
    ids = filler.tokenizer.encode("a [MASK] in a [MASK]", masks=True)
    logits = filler.bert(torch.tensor([ids]))[0]
    places = [i for i, id in enumerate(ids) if id == filler.tokenizer.mask]
    assert len(filled.masks) == len(places) == 2
    for guesses, place in zip(filled.masks, places):
        shares = logits[place].log_softmax(-1).exp()
        assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-5)
        assert [guess.id for guess in guesses] == shares.argsort(descending=True).tolist()
        for guess in guesses:
            assert guess.probability == pytest.approx(float(shares[guess.id]), abs=1e-6)


def test_the_text_as_it_was_written(folder):
    filler = load_filler(folder)
    text = filler._filled("A  [MASK] of [MASK]!", {0: filler.tokenizer.encode("dog")[1]})
    word = filler.tokenizer.spell(filler.tokenizer.encode("dog")[1])
    assert text == f"A  {word} of [MASK]!"
    piece = next(i for i in range(filler.tokenizer.vocab) if filler.tokenizer.spell(i).startswith("##"))
    assert filler._filled("dog [MASK]!", {0: piece}) == f"dog{filler.tokenizer.spell(piece)[2:]}!"


@pytest.mark.parametrize("text", ["no mask", "", "a <mask> of another model"])
def test_no_mask(text, folder):
    with pytest.raises(InputError, match=r"has no mask; write \[MASK\]"):
        fill(text, model=folder)


def test_the_other_spelling_is_named(folder):
    with pytest.raises(InputError, match=r"write \[MASK\] instead of <mask>"):
        fill("a <mask>", model=folder)


@pytest.mark.parametrize("top", [0, -1, 61, True, 2.0])
def test_how_many_guesses(top, folder):
    with pytest.raises(InputError, match="out of range; it must be 1 to 60"):
        fill("[MASK]", top=top, model=folder)


def test_more_than_the_model_reads(folder):
    with pytest.raises(InputError, match="has 43 tokens with both ends; reader reads at most 40"):
        fill("a " * 40 + "[MASK]", model=folder)


def test_what_is_unknown_is_told(folder):
    assert fill("a dog [MASK]", model=folder).warnings == ()
    assert fill("a ☃ [MASK] 漢", model=folder).warnings == (
        "2 of 4 tokens are unknown to reader and were read as [UNK]",
    )


def test_keys_that_are_not_known_are_named(folder, odd_keys):
    copy, expected = odd_keys(folder)
    assert fill("a dog [MASK]", model=copy).warnings == expected


def test_a_model_without_the_head(tiny_bert):
    with pytest.raises(CheckpointError, match="is no BertForMaskedLM"):
        fill("[MASK]", model=tiny_bert(Bert))


def test_the_command(folder):
    command = [sys.executable, "-m", "qkv", "fill", "-", "--model", folder, "-k", "3", "--json"]
    done = subprocess.run(command, input=b"a [MASK]\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = fill("a [MASK]", model=folder, top=3).masks[0]
    assert [row["id"] for row in rows] == [guess.id for guess in expected]
    assert {row["mask"] for row in rows} == {1}


def test_the_package_has_it():
    assert qkv.fill is fill


@pytest.mark.weights
def test_reactions():
    transformers = pytest.importorskip("transformers")
    folder = registry.home() / "models" / "rxn-albert"
    if not folder.is_dir():
        pytest.skip("rxn-albert is not here; qkv pull rxn-albert fetches it")
    symbols = (folder / "vocab.txt").read_text().split("\n")
    theirs = transformers.AlbertForMaskedLM.from_pretrained(folder).eval()
    reaction = "CC(=O)Cl.CN>>C[MASK]C(C)=O"
    for text in (reaction, "CC(=O)O.OC[MASK]>>CC(=O)OCC", "c1ccccc1[MASK].[MASK]N>>c1ccccc1NC"):
        names = ["[CLS]", *re.findall(r"\[[^\]]+\]|Cl|Br|>>|.", text), "[SEP]"]
        ids = torch.tensor([[symbols.index(name) for name in names]])
        with torch.no_grad():
            shares = theirs(ids).logits[0].softmax(-1)[ids[0] == 14]
        filled = fill(text, model=folder, top=10)
        assert len(filled.masks) == len(shares)
        for guesses, expected in zip(filled.masks, shares.topk(10)[0]):
            torch.testing.assert_close(torch.tensor([g.probability for g in guesses]), expected, atol=1e-5, rtol=0)
        assert [g.id for guesses in filled.masks for g in guesses] == shares.topk(10).indices.flatten().tolist()
    assert fill(reaction, model=folder).text == "CC(=O)Cl.CN>>CNC(C)=O"
    ids = torch.tensor([[12, *range(20, 40), 13], [12, *range(30, 38), 13, *[0] * 12]])
    mask = ids != 0
    with torch.no_grad():
        states = theirs.albert(ids, attention_mask=mask.long()).last_hidden_state
        ours = load_bert(Folder(folder))(ids, mask)
    torch.testing.assert_close(ours[mask], states[mask], atol=1e-5, rtol=1e-5)
