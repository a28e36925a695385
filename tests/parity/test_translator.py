"""The translator against transformers' MarianMTModel: encoder, decoder, token by token with a cache, beam search."""

import copy

import pytest
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from qkv.core.cache import Cache
from qkv.core.position import SinusoidalPosition, sinusoidal
from qkv.errors import ConfigError
from qkv.loaded.generation import read_generation, translation_search
from qkv.models.translator import Translator
from qkv.registry import resolve
from qkv.sample.translation_beam import Search, search_texts
from qkv.tasks.translate import translate
from qkv.text.pieces import FILES, learn_pieces, read_pieces
from qkv.weights.families import published_config
from qkv.weights.folder import Folder
from qkv.weights.load import export_weights, load_weights
from qkv.weights.marian import MARIAN, TABLE
from qkv.weights.translator import load_translator, save_translator

VOCAB, PAD, END = 50, 49, 0
DRAW = torch.Generator().manual_seed(0)
SOURCE = torch.randint(1, PAD, (3, 9), generator=DRAW)
MASK = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2]).bool()
TARGET = torch.cat((torch.full((3, 1), PAD), torch.randint(1, PAD, (3, 7), generator=DRAW)), dim=1)

MODELS = {
    "opus": {"activation_function": "swish", "scale_embedding": True},
    "relu, unscaled, fewer decoder layers": {"activation_function": "relu", "decoder_layers": 1},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, parity):
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    shape = {"d_model": 64, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    ends = {"pad_token_id": PAD, "decoder_start_token_id": PAD, "eos_token_id": END, "forced_eos_token_id": END}
    options = heads | shape | ends | MODELS[request.param]
    theirs = parity.strong(MarianMTModel(MarianConfig(vocab_size=VOCAB, max_position_embeddings=64, **options)))
    for side in (theirs.model.encoder, theirs.model.decoder):  # `strong` has no mercy on the sines either
        side.embed_positions.weight.data = side.embed_positions.create_weight()
    theirs.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    config = MARIAN.config(theirs.config.to_dict())
    tensors = TABLE.ours({name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    ours = Translator(MARIAN.settle(config, tensors)).eval()
    load_weights(ours, tensors)
    return ours, theirs


def test_encoder(pair, parity):
    ours, theirs = pair
    parity.agree(
        ours,
        theirs,
        lambda model, dtype: model.encode(SOURCE, MASK).memory[MASK],
        lambda model, dtype: model.model.encoder(SOURCE, attention_mask=MASK.long()).last_hidden_state[MASK],
        TABLE,
    )


@pytest.mark.parametrize("cached", [False, True])
def test_decoder(pair, parity, cached):
    ours, theirs = pair

    def run(model, dtype):
        source = model.encode(SOURCE, MASK)
        if not cached:
            return model.logits(model.states(TARGET, source))
        read, cache = model.remember(source), Cache(model.config.decoder.layers, 8)
        pieces = [model.states(TARGET[:, i : i + 1], read, cache=cache) for i in range(8)]
        return model.logits(torch.cat(pieces, dim=1))

    parity.agree(
        ours,
        theirs,
        run,
        lambda model, dtype: model(SOURCE, attention_mask=MASK.long(), decoder_input_ids=TARGET).logits,
        None if cached else TABLE,
    )


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
def test_beam_search_token_for_token(pair, beams, length_penalty):
    ours, theirs = pair
    search = Search(beams=beams, length_penalty=length_penalty, penalty="power", max_tokens=20, banned=(PAD,))
    texts = [row[here].tolist() for row, here in zip(SOURCE, MASK)]
    for bias in (0.0, 4.0, 8.0):  # of the end: translations of all lengths
        theirs.final_logits_bias[0, END] = ours.bias[END] = bias
        found = dict(search_texts(ours, texts, search))
        result = theirs.generate(
            SOURCE,
            attention_mask=MASK.long(),
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=length_penalty,
            max_length=21,
            bad_words_ids=[[PAD]],
            output_scores=True,
            return_dict_in_generate=True,
        )
        expected = [[token for token in row[1:].tolist() if token != PAD] for row in result.sequences]
        assert [each.ids for i in range(3) for each in found[i]] == expected
        if beams > 1:
            ours_scores = torch.tensor([each.score for i in range(3) for each in found[i]])
            torch.testing.assert_close(ours_scores, result.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "said",
    [
        {"renormalize_logits": True, "bad_words_ids": [[PAD], [3], [5]]},
        {"bad_words_ids": [[PAD], [3], [5]]},
        {"suppress_tokens": list(range(1, 40)), "renormalize_logits": True},
        {"early_stopping": True, "length_penalty": -1.0},
        {"early_stopping": "never", "length_penalty": 2.0},
        {"max_length": 7},
        {},
    ],
    ids=str,
)
def test_its_own_generation_config(pair, said):
    """Beams, tokens and scores as `generate` has them, with every rule that published translators have."""
    ours, theirs = pair
    theirs.final_logits_bias[0, END] = ours.bias[END] = 4.0
    theirs.final_logits_bias[0, PAD] = ours.bias[PAD] = 6.0  # likely, as in models that were trained with padding
    said = {"num_beams": 3, "max_length": 21, "forced_eos_token_id": END} | said
    search = translation_search(read_generation(said), end=END)
    texts = [row[here].tolist() for row, here in zip(SOURCE, MASK)]
    found = dict(search_texts(ours, texts, search))
    for i, text in enumerate(texts):
        result = theirs.generate(
            torch.tensor([text]), **said, num_return_sequences=3, output_scores=True, return_dict_in_generate=True
        )
        expected = [row[1:].tolist() for row in result.sequences]
        expected = [row[: row.index(END) + 1] for row in expected]
        assert [each.ids for each in found[i]] == expected
        scores = torch.tensor([each.score for each in found[i]])
        torch.testing.assert_close(scores, result.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "said",
    [
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2},
        {"do_sample": True},
        {"bad_words_ids": [[1, 2]]},
        {"forced_eos_token_id": 3},
        {"stop_strings": ["x"]},
    ],
    ids=str,
)
def test_what_a_translator_cannot_honour(said):
    with pytest.raises(ConfigError, match=f"{next(iter(said))}.* is not supported for translators"):
        translation_search(read_generation(said), end=END)


def test_folder_there_and_back(pair, tmp_path):
    _, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    read = load_translator(Folder(tmp_path / "theirs"))
    save_translator(read, tmp_path / "ours")
    again = MarianMTModel.from_pretrained(tmp_path / "ours")
    assert published_config(read.config).items() <= again.config.to_dict().items()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for name, tensor in export_weights(load_translator(Folder(tmp_path / "ours"))).items():
        assert torch.equal(tensor, export_weights(read)[name]), name
    assert again.generation_config.bad_words_ids == [[PAD]]


# The comparison must see what is wrong: each small fault, put in on purpose, makes it fail.


def unscaled(model, monkeypatch):
    object.__setattr__(model.config, "scaled", not model.config.scaled)


def interleaved_sines(model, monkeypatch):
    monkeypatch.setattr(
        "qkv.core.position._sinusoids",
        lambda context, dim, device: sinusoidal(torch.arange(context, device=device), dim).double(),
    )


def positions_off_by_one(model, monkeypatch):
    monkeypatch.setattr(model.position, "forward", lambda x, start=0: SinusoidalPosition(64)(x, start + 1))


def no_bias(model, monkeypatch):
    model.bias.zero_()


def one_norm_first(model, monkeypatch):
    model.decoder.blocks[0].norm_first = True


def other_activation(model, monkeypatch):
    model.encoder.blocks[0].ffn.activation = torch.nn.functional.gelu


def padding_is_seen(model, monkeypatch):
    monkeypatch.setattr("qkv.core.stack.padding_bias", lambda mask: torch.ones_like(mask)[:, None, None])


def future_is_seen(model, monkeypatch):
    object.__setattr__(model.decoder.config, "causal", False)


def dropout_stays_on(model, monkeypatch):
    model.decoder.blocks[0].train()


FAULTS = [unscaled, interleaved_sines, positions_off_by_one, no_bias, one_norm_first, other_activation]
FAULTS += [padding_is_seen, future_is_seen, dropout_stays_on]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(pair, parity, monkeypatch, fault):
    ours, theirs = pair
    broken = copy.deepcopy(ours)
    fault(broken, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="parity"):
        parity.agree(
            broken,
            theirs,
            lambda model, dtype: model(SOURCE, TARGET, mask=MASK),
            lambda model, dtype: model(SOURCE, attention_mask=MASK.long(), decoder_input_ids=TARGET).logits,
        )


def test_pieces_are_marian_s(tmp_path):
    texts = ["Click the button to open the file.", "Klicken Sie auf die Schaltfläche, um sie zu öffnen.", "🙂 é"]
    pieces = learn_pieces(texts * 3, 380)
    pieces.save(tmp_path)
    theirs = MarianTokenizer.from_pretrained(tmp_path)
    for text in [*texts, "ÖL und Öl", "  two  spaces ", "unseen: ß 漢字", ""]:
        assert pieces.encode(text) == theirs(text)["input_ids"], text
        assert pieces.encode(text, target=True) == theirs(text_target=text)["input_ids"], text
        assert pieces.decode(pieces.encode(text)) == theirs.decode(pieces.encode(text), skip_special_tokens=True)


@pytest.mark.weights
def test_the_shipped_translator_in_transformers_says_the_same() -> None:
    """A fresh clone translates, and its folder is a `MarianMTModel`: the same tokens, beam by beam."""
    folder = resolve("help-en-de")
    pieces = read_pieces(*((folder / name).read_bytes() for name in FILES))
    theirs = MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert translate("Click the button to open the file.").text.startswith("Klicken Sie auf die Schaltfläche")
    for text in ("The document could not be saved.", "Select the cells, and then choose Copy.", "Change Password"):
        ids = torch.tensor([pieces.encode(text)])
        with torch.no_grad():
            said = theirs.generate(ids, num_beams=1, do_sample=False, max_length=60)[0].tolist()
        assert translate(text, beams=1).text == pieces.decode([i for i in said if i != pieces.pad])
