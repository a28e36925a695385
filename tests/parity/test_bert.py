"""BERT, RoBERTa, DistilBERT and ALBERT against transformers: bodies and heads, padded batches, folders both ways."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from qkv.errors import CheckpointError, ConfigError, InputError, NotFoundError
from qkv.models.bert import Bert, BertConfig, MaskedBert
from qkv.weights.bert import (
    load_bert,
    load_classifier,
    load_masked,
    load_tagger,
    save_bert,
)
from qkv.weights.families import FAMILIES
from qkv.weights.folder import Folder

transformers = pytest.importorskip("transformers")

SHAPE = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
    **{"vocab_size": 99, "max_position_embeddings": 40},
}
DISTIL = {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "vocab_size": 99, "max_position_embeddings": 40}
MODELS = {  # name -> transformers' model_type and what its configuration has beyond its defaults
    "bert": ("bert", SHAPE),
    "bert, relu": ("bert", SHAPE | {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "roberta": ("roberta", SHAPE | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta, pad 3": ("roberta", SHAPE | {"pad_token_id": 3}),
    "distilbert": ("distilbert", DISTIL),
    "albert": ("albert", SHAPE | {"embedding_size": 32}),
    "albert, gelu": ("albert", SHAPE | {"embedding_size": 64, "hidden_act": "gelu"}),
}
KINDS = {
    "body": ("AutoModel", load_bert),
    "masked": ("AutoModelForMaskedLM", load_masked),
    "classifier": ("AutoModelForSequenceClassification", load_classifier),
    "tagger": ("AutoModelForTokenClassification", load_tagger),
}
LENGTHS = torch.tensor([12, 7, 1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory, parity):
    made = {}

    def make(name, kind):
        if (name, kind) not in made:
            model_type, options = MODELS[name]
            labels = {"id2label": {0: "ham", 1: "spam", 2: "neither"}, "label2id": {"ham": 0, "spam": 1, "neither": 2}}
            config = transformers.AutoConfig.for_model(model_type, **options, **labels)
            auto, load = KINDS[kind]
            theirs = parity.strong(getattr(transformers, auto).from_config(config))
            folder = tmp_path_factory.mktemp("bert") / "theirs"
            theirs.save_pretrained(folder)
            ours = load(Folder(folder))
            head = "" if kind == "body" else kind
            family = FAMILIES[model_type].heads[head] if head else FAMILIES[model_type]
            made[name, kind] = SimpleNamespace(
                ours=ours, theirs=theirs, folder=folder, table=family.table(None), model_type=model_type
            )
        return made[name, kind]

    return make


def inputs(model, *, left=False):
    """ids, mask and segments (or None) of a padded batch."""
    config = model.config
    pad = config.pad_token_id or 0
    ids = torch.randint(4, 99, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12)[None] < LENGTHS[:, None]
    if left:
        mask = mask.flip(1)
    segments = (torch.arange(12) > 6).long().expand(3, -1) if getattr(config, "type_vocab_size", 0) > 1 else None
    return ids.masked_fill(~mask, pad), mask, segments


def run_theirs(ids, mask, segments, read):
    more = {} if segments is None else {"token_type_ids": segments}
    return lambda model, dtype: read(model(ids, attention_mask=mask.long(), **more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_padded_batches(name, kind, pair, parity):
    it = pair(name, kind)
    ids, mask, segments = inputs(it.theirs)
    part = slice(None) if kind == "classifier" else mask
    parity.agree(
        it.ours,
        it.theirs,
        lambda model, dtype: model(ids, mask, segments)[part],
        run_theirs(ids, mask, segments, lambda out: out[0][part]),
        it.table,
    )


@pytest.mark.parametrize("name", [name for name, (kind, _) in MODELS.items() if kind != "distilbert"])
def test_pooled(name, pair, parity):
    it = pair(name, "body")
    ids, mask, segments = inputs(it.theirs)
    parity.agree(
        it.ours,
        it.theirs,
        lambda model, dtype: model.pool(model(ids, mask, segments)),
        run_theirs(ids, mask, segments, lambda out: out.pooler_output),
    )


@pytest.mark.parametrize("name", ["roberta", "roberta, pad 3"])
def test_padding_on_the_left(name, pair, parity):
    """Only RoBERTa's positions do not count it."""
    it = pair(name, "body")
    ids, mask, segments = inputs(it.theirs, left=True)
    parity.agree(
        it.ours,
        it.theirs,
        lambda model, dtype: model(ids, mask, segments)[mask],
        run_theirs(ids, mask, segments, lambda out: out[0][mask]),
    )


MUTATIONS = {
    "position": ("roberta", lambda model: setattr(model.position, "offset", 1)),
    "layers": ("albert", lambda model: setattr(model, "config", dataclasses.replace(model.config, layers=2))),
    "segment": ("bert", lambda model: setattr(model, "segment", None)),
    "norm": ("bert", lambda model: setattr(model.stack.blocks[0], "norm_first", True)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_can_fail(mutation, pair, parity, tmp_path):
    name, mutate = MUTATIONS[mutation]
    it = pair(name, "body")
    ours = load_bert(Folder(it.folder))
    mutate(ours)
    ids, mask, segments = inputs(it.theirs)
    if mutation == "segment":
        segments = None
    with pytest.raises(pytest.fail.Exception, match="parity"):
        parity.agree(
            ours,
            it.theirs,
            lambda model, dtype: model(ids, mask, segments)[mask],
            run_theirs(ids, mask, segments, lambda out: out[0][mask]),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_folders_bit_for_bit(name, kind, pair, tmp_path):
    it = pair(name, kind)
    save_bert(it.ours, tmp_path / "ours")
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (it.folder, tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    assert all(tensor.equal(ours[key]) for key, tensor in theirs.items())
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["model_type"] == it.model_type
    assert written["architectures"] == [type(it.theirs).__name__]

    auto, load = KINDS[kind]
    again = load(Folder(tmp_path / "ours"))
    assert getattr(again, "body", again).config == getattr(it.ours, "body", it.ours).config
    reopened = getattr(transformers, auto).from_pretrained(tmp_path / "ours")
    assert all(tensor.equal(reopened.state_dict()[key]) for key, tensor in it.theirs.state_dict().items())
    if kind in ("classifier", "tagger"):
        assert again.labels == ("ham", "spam", "neither")
        assert reopened.config.id2label == {0: "ham", 1: "spam", 2: "neither"}


@pytest.mark.parametrize("kind", ["masked", "classifier", "tagger"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert"])
def test_a_body_out_of_any_folder(name, kind, pair):
    it = pair(name, kind)
    body, ours = load_bert(Folder(it.folder)), it.ours.body
    for key, tensor in body.state_dict().items():
        assert tensor.equal(ours.state_dict()[key])


def rewritten(it, folder, change):
    """The folder again, with the tensors that `change` makes of its own."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(change(load_file(it.folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((it.folder / "config.json").read_text())
    return Folder(folder)


def test_old_spellings(pair, tmp_path):
    """gamma and beta, copies of what is tied, the next-sentence head, the table of positions."""
    it = pair("bert", "masked")

    def older(tensors):
        old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()}
        old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
        return old | {
            "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
            "cls.seq_relationship.weight": torch.zeros(2, 64),
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "bert.pooler.dense.weight": torch.ones(64, 64),
            "bert.pooler.dense.bias": torch.ones(64),
        }

    model = load_masked(rewritten(it, tmp_path / "old", older))
    ids, mask, segments = inputs(it.theirs)
    assert model(ids, mask, segments).equal(it.ours(ids, mask, segments))
    assert model.body.pooler is not None


def test_heads_that_cannot_be(pair, tmp_path):
    bare, masked = pair("bert", "body"), pair("bert", "masked")
    with pytest.raises(CheckpointError, match="is no BertForMaskedLM: it has no such head"):
        load_masked(Folder(bare.folder))
    untied = {"cls.predictions.decoder.weight": torch.zeros(99, 64)}
    with pytest.raises(CheckpointError, match="the head's output is not the embedding"):
        load_masked(rewritten(masked, tmp_path / "untied", lambda tensors: tensors | untied))
    with pytest.raises(CheckpointError, match=r"1 published tensors are not known.*adapter"):
        load_bert(rewritten(bare, tmp_path / "odd", lambda tensors: tensors | {"adapter": torch.zeros(1)}))


SMALL = {"vocab": 20, "context": 8, "dim": 16, "layers": 2, "heads": 2, "ffn_dim": 24}
FITS = [
    ({}, "bert"),
    ({"segments": 0}, "distilbert"),
    ({"offset": 2}, "roberta"),
    ({"shared": True, "embed_dim": 8}, "albert"),
    ({"activation": "gelu_tanh"}, "bert"),
]


@pytest.mark.parametrize(("values", "family"), FITS)
def test_what_we_make_is_published(values, family, tmp_path):
    bert = Bert(BertConfig(**SMALL | values)).eval()
    save_bert(bert, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    again = load_bert(Folder(tmp_path))
    assert again.config == bert.config
    ids = torch.arange(8)[None]
    assert again(ids).equal(bert(ids))


def test_what_nobody_publishes():
    with pytest.raises(ConfigError, match="bert models are not published with embed_dim=8"):
        save_bert(Bert(BertConfig(**SMALL, embed_dim=8)), "nowhere")
    with pytest.raises(NotFoundError, match="unknown family 'ernie'"):
        save_bert(Bert(BertConfig(**SMALL)), "nowhere", family="ernie")


def test_segments_that_a_model_has_not():
    bert = Bert(BertConfig(**SMALL, segments=0))
    with pytest.raises(InputError, match="no segments"):
        bert(torch.zeros(1, 4, dtype=torch.long), None, torch.ones(1, 4, dtype=torch.long))


def test_only_the_tokens_that_are_asked_for():
    masked = MaskedBert(BertConfig(**SMALL)).eval()
    ids = torch.arange(8)[None]
    states = masked.body(ids)
    torch.testing.assert_close(masked.logits(states[:, 3]), masked(ids)[:, 3])


def test_one_vector_a_text():
    bert = Bert(BertConfig(**SMALL)).eval()
    ids, mask = torch.arange(8).expand(2, -1), torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    vectors = bert.embed(ids, mask).detach()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(vectors[1:], bert.embed(ids[:1, :5], mask[1:, :5]).detach())  # padding does not count
