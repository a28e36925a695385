"""T5 of all three releases against transformers: encoder, decoder, token by token with a cache, beams, folders."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5 import modeling_t5

from qkv.core.cache import Cache
from qkv.core.position import Places, Position, last_places
from qkv.errors import CheckpointError, ConfigError, InputError
from qkv.sample.translation_beam import Search, search_texts
from qkv.weights.families import FAMILIES, published_config
from qkv.weights.files import open_tensors, save_tensors
from qkv.weights.folder import Folder
from qkv.weights.translator import load_translator, save_translator

VOCAB, PAD, END = 50, 0, 1
DRAW = torch.Generator().manual_seed(0)
SOURCE = torch.randint(2, VOCAB, (3, 40), generator=DRAW)
MASK = torch.arange(40)[None] < torch.tensor([[40], [13], [27]])
TARGET = torch.cat((torch.full((3, 1), PAD), torch.randint(2, VOCAB, (3, 23), generator=DRAW)), dim=1)
SHAPE = {
    **{"d_model": 64, "d_kv": 12, "d_ff": 96, "num_layers": 3, "num_heads": 4, "vocab_size": VOCAB},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    **{"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": END},
}
MODELS = {
    "1.0": {"num_decoder_layers": 2},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated silu, tied": {"feed_forward_proj": "gated-silu"},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, parity, tmp_path_factory):
    options = MODELS[request.param]
    theirs = T5ForConditionalGeneration(T5Config(**SHAPE, **options))
    if options.get("tie_word_embeddings") is False:  # transformers ties them all the same
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, 64))
    parity.strong(theirs)
    # Its norms take float32 even where it runs in float64.
    modeling_t5.T5LayerNorm.forward = lambda self, x: (
        self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
    )
    folder = tmp_path_factory.mktemp("t5")
    theirs.config.save_pretrained(folder)
    save_tensors(folder / "model.safetensors", {name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    return load_translator(Folder(folder)), theirs, folder


def compare(parity, ours, theirs, cached=False):
    def run(model, dtype):
        source = model.encode(SOURCE, MASK)
        if not cached:
            return model.logits(model.states(TARGET, source))
        read, cache = model.remember(source), Cache(model.config.decoder.layers, 24)
        cuts = [0, 5, *range(6, 25)]
        pieces = [model.states(TARGET[:, a:b], read, cache=cache) for a, b in pairwise(cuts)]
        return model.logits(torch.cat(pieces, dim=1))

    def run_theirs(model, dtype):
        return model(SOURCE, attention_mask=MASK.long(), decoder_input_ids=TARGET).logits

    parity.agree(ours, theirs, run, run_theirs)


def test_encoder(pair, parity):
    ours, theirs, _ = pair
    parity.agree(
        ours,
        theirs,
        lambda model, dtype: model.encode(SOURCE, MASK).memory[MASK],
        lambda model, dtype: model.encoder(SOURCE, attention_mask=MASK.long()).last_hidden_state[MASK],
    )


@pytest.mark.parametrize("cached", [False, True])
def test_decoder(pair, parity, cached):
    compare(parity, pair[0], pair[1], cached)


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("length_penalty", [1.0, 2.0])
def test_beam_search_token_for_token(pair, beams, length_penalty):
    """Beams that share a cache stand at one step: their distances are those of the steps."""
    ours, theirs, _ = pair
    search = Search(beams=beams, length_penalty=length_penalty, penalty="power", max_tokens=20, banned=(PAD,))
    texts = [row[here].tolist() for row, here in zip(SOURCE, MASK)]
    found = dict(search_texts(ours, texts, search))
    result = theirs.generate(
        SOURCE,
        attention_mask=MASK.long(),
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        max_length=21,
        forced_eos_token_id=END,
        bad_words_ids=[[PAD]],
    )
    expected = [[token for token in row[1:].tolist() if token != PAD] for row in result]
    assert [each.ids for i in range(3) for each in found[i]] == expected


@torch.no_grad()
def test_folder_there_and_back(pair, tmp_path):
    ours, theirs, _ = pair
    save_translator(ours, tmp_path / "ours")
    stored = Folder(tmp_path / "ours").tensors()
    for name, tensor in theirs.state_dict().items():
        if name in stored:
            assert stored[name].equal(tensor), name
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    expected = theirs(SOURCE, attention_mask=MASK.long(), decoder_input_ids=TARGET).logits
    assert again(SOURCE, attention_mask=MASK.long(), decoder_input_ids=TARGET).logits.equal(expected)
    assert load_translator(Folder(tmp_path / "ours")).config == ours.config
    assert again.config.scale_decoder_outputs == theirs.config.scale_decoder_outputs


def test_what_a_file_leaves_out_is_as_transformers_has_it():
    ours = FAMILIES["t5"].config({"model_type": "t5"})
    assert FAMILIES["t5"].config(T5Config(decoder_start_token_id=0).to_dict()) == ours


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feed_forward_proj": "gated-mish"}, "unknown activation 'mish'"),
        ({"feed_forward_proj": 3}, "feed_forward_proj=3 is not a text"),
        ({"d_kv": 0}, "head_dim=0 is out of range"),
        ({"relative_attention_num_buckets": 2}, "relative_buckets=2 is out of range"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
        ({"eos_token_id": 50_000}, "end=50000 is no token"),
    ],
)
def test_configurations_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        FAMILIES["t5"].config({"model_type": "t5", **values})


def test_what_nobody_publishes(pair):
    config = replace(pair[0].config, activation="gelu", gated=True)
    with pytest.raises(ConfigError, match="t5 models are not published with activation=gelu"):
        published_config(config, "t5")


def test_an_embedding_of_one_side_is_refused(pair, tmp_path):
    _, _, folder = pair
    tensors = {name: tensor.clone() for name, tensor in open_tensors(folder / "model.safetensors").items()}
    tensors["decoder.embed_tokens.weight"] += 1
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="copies.decoder is not the shared embedding"):
        load_translator(Folder(tmp_path))


def test_longer_than_it_reads(pair):
    ours, _, _ = pair
    with pytest.raises(InputError, match="the input has 513 tokens; this model reads at most 512"):
        ours.encode(torch.ones(1, 513, dtype=torch.long))


# The comparison must see what is wrong.


def no_positions(model, monkeypatch):
    model.encoder.position = Position()


def decoder_looks_both_ways(model, monkeypatch):
    model.decoder.position.causal = False


def farthest_of_another(model, monkeypatch):
    model.encoder.position.farthest = 40


def scores_scaled(model, monkeypatch):
    model.encoder.blocks[1].attention.scale = None


def memory_scores_scaled(model, monkeypatch):
    model.decoder.blocks[1].memory_attention.scale = None


def states_unscaled(model, monkeypatch):
    object.__setattr__(model.config, "head_scaled", not model.config.head_scaled)


def padding_is_seen(model, monkeypatch):
    monkeypatch.setattr("qkv.core.stack.padding_bias", lambda mask: torch.ones_like(mask)[:, None, None])


FAULTS = [no_positions, decoder_looks_both_ways, farthest_of_another, scores_scaled, memory_scores_scaled]


@pytest.mark.parametrize("fault", [*FAULTS, states_unscaled, padding_is_seen])
def test_faults_are_seen(pair, parity, monkeypatch, fault):
    broken = copy.deepcopy(pair[0])
    fault(broken, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="parity"):
        compare(parity, broken, pair[1])


def test_beams_would_see_places_in_the_order_of_the_cache(pair):
    """What was computed before: the distance in rows of the cache, not in steps."""
    position = pair[0].decoder.position
    beams = Places(torch.full((2,), 3), torch.arange(4).repeat_interleave(2), in_order=False)
    assert not torch.equal(position.bias(beams), position.bias(last_places(2, 8)))
