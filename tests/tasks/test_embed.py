"""Texts as vectors: in order, whatever they are computed beside, as the folder says; MiniLM against transformers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import qkv
from qkv import registry
from qkv.models.bert import pool_states
from qkv.tasks import embed as module
from qkv.tasks.embed import embed, load_embedder
from qkv.text.bert import BertTokenizer
from qkv.weights.bert import load_bert
from qkv.weights.folder import Folder

TEXTS = ["a dog", "a red cat and a blue fish", "mars", "a cat", "dogs playing poker on mars", "riding a horse"]
LAYERS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def said(**switches):
    pooling = {f"pooling_mode_{name}": name in switches for name in ("cls_token", "mean_tokens", "max_tokens")}
    return {"modules.json": LAYERS, "1_Pooling/config.json": {"word_embedding_dimension": 32, **pooling}}


@pytest.fixture(scope="module")
def folder(tiny_bert):
    return tiny_bert(said=said(mean_tokens=True) | {"sentence_bert_config.json": {"max_seq_length": 30}})


@torch.no_grad()
def by_hand(folder, text, pooling="mean"):
    bert, tokenizer = load_bert(Folder(folder)), BertTokenizer.load(folder)
    states = bert(torch.tensor([tokenizer.encode(text)]))
    return pool_states(states, None, pooling)[0].numpy()


def test_each_text_as_if_it_were_alone(folder, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 20)  # so that texts of one length come in parts too
    made = embed(TEXTS * 3, model=folder, dtype="float32")
    assert made.shape == (18, 32)
    assert made.dtype == np.float32
    for row, text in zip(made, TEXTS * 3):
        expected = by_hand(folder, text)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_array_equal(embed("mars", model=folder, dtype="float32"), made[2])


@pytest.mark.parametrize(
    ("switch", "pooling"), [("cls_token", "first"), ("mean_tokens", "mean"), ("max_tokens", "max")]
)
@pytest.mark.parametrize("newer", [False, True])
def test_pooling_as_the_folder_says(switch, pooling, newer, tiny_bert):
    files = said(**{switch: True})
    if newer:
        files["1_Pooling/config.json"] = {"pooling_mode": switch.removesuffix("_tokens").removesuffix("_token")}
    files["modules.json"] = LAYERS[:2]
    folder = tiny_bert(said=files)
    np.testing.assert_allclose(
        embed("a red cat", model=folder, dtype="float32"), by_hand(folder, "a red cat", pooling), atol=1e-6
    )


def test_a_folder_that_says_nothing(tiny_bert):
    folder = tiny_bert()
    vector = embed("a red cat", model=folder, dtype="float32")
    np.testing.assert_allclose(vector, by_hand(folder, "a red cat"), atol=1e-6)
    assert abs(np.linalg.norm(vector) - 1) > 1e-3


def test_long_texts_are_cut_and_said_so(folder):
    long = "a dog in a suit " * 20
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 30 tokens"):
        made = embed([long, "a dog"], model=folder)
    with pytest.warns(UserWarning, match="1 of 1"):
        np.testing.assert_array_equal(embed(long + "and a cat", model=folder), made[0])
    embedder = load_embedder(folder, dtype="float32")
    ids, cut = embedder.read([long])
    assert (len(ids[0]), ids[0][-1], cut) == (30, embedder.tokenizer.last, 1)
    assert embedder.embed([long, "a"]).tokens == (30, 3)


def test_bfloat16_points_the_same_way(folder):
    wide, narrow = (embed(TEXTS, model=folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert ((wide * narrow).sum(-1) >= 0.999 * np.linalg.norm(narrow, axis=-1)).all()


def test_prefix_and_case(tiny_bert):
    prompts = {"prompts": {"query": "a dog "}, "default_prompt_name": "query"}
    files = {"config_sentence_transformers.json": prompts, "sentence_bert_config.json": {"do_lower_case": True}}
    folder = tiny_bert(said=files)
    np.testing.assert_allclose(embed("MARS", model=folder, dtype="float32"), by_hand(folder, "a dog mars"), atol=1e-6)


@pytest.mark.parametrize(
    ("switch", "pooling"), [("mean_tokens", "mean"), ("max_tokens", "max"), ("cls_token", "first")]
)
def test_a_prompt_that_is_read_and_not_pooled(switch, pooling, tiny_bert):
    """Its tokens, the first control token's too, count for nothing in the mean: sentence-transformers' Pooling."""
    files = said(**{switch: True}) | {"modules.json": LAYERS[:2]}
    files["1_Pooling/config.json"] |= {"include_prompt": False}
    files["config_sentence_transformers.json"] = {"prompts": {"a": "a red cat "}, "default_prompt_name": "a"}
    folder = tiny_bert(said=files)
    bert, tokenizer = load_bert(Folder(folder)), BertTokenizer.load(folder)
    ids, prompt = tokenizer.encode("a red cat mars"), len(tokenizer.encode("a red cat ")) - 1  # but for its [SEP]
    with torch.no_grad():
        states = bert(torch.tensor([ids]))
    mask = torch.tensor([[i >= prompt for i in range(len(ids))]])
    expected = pool_states(states, mask, pooling)[0].numpy()
    np.testing.assert_allclose(embed("mars", model=folder, dtype="float32"), expected, atol=1e-6)


def test_how_much_is_read_where_only_the_tokenizer_says(tiny_bert):
    """model_max_length; 10^30 is no limit; the length's own file goes before it."""
    for files, context in (
        ({"tokenizer_config.json": {"model_max_length": 8}}, 8),
        ({"tokenizer_config.json": {"model_max_length": 10**30}}, None),
        ({"tokenizer_config.json": {"model_max_length": 8}, "sentence_bert_config.json": {"max_seq_length": 9}}, 9),
    ):
        embedder = load_embedder(tiny_bert(said=files))
        assert embedder.context == (context or embedder.bert.config.context)


def test_every_key_of_sentence_transformers_is_known(tiny_bert):
    """The keys that versions 2 to 5 of the library write, and what we do not know is named."""
    pooling = {f"pooling_mode_{name}": False for name in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
    pooling |= {"pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": False}
    pooling |= {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32, "include_prompt": True}
    prompts = {"__version__": {"sentence_transformers": "5.1.0"}, "prompts": {"query": "", "document": ""}}
    prompts |= {"default_prompt_name": None, "similarity_fn_name": "cosine", "model_type": "SentenceTransformer"}
    files = {
        "modules.json": LAYERS,
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": prompts,
        "sentence_bert_config.json": {"max_seq_length": 30, "do_lower_case": False},
    }
    assert load_embedder(tiny_bert(said=files)).config.warnings == ()
    files["1_Pooling/config.json"] = pooling | {"pooling_mode_attention": 2}
    files["tokenizer_config.json"] = {"do_lower_case": True, "do_upper_case": True}
    said = load_embedder(tiny_bert(said=files)).config.warnings
    assert [warning.partition(";")[0] for warning in said] == [
        "unknown-keys: 1_Pooling/config.json has pooling_mode_attention",
        "unknown-keys: tokenizer_config.json has do_upper_case",
    ]


def test_the_model_stays_in_memory_until_its_files_change(tiny_bert):
    folder = tiny_bert()
    first = load_embedder(folder)
    assert load_embedder(folder) is first
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    again = load_embedder(folder)
    assert again.context == 5
    assert again.stamp != first.stamp


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "qkv", *arguments], capture_output=True, **options)


def test_the_command(folder, tmp_path):
    (tmp_path / "texts").write_text("a dog\n\na red cat\n", encoding="utf-8")
    done = run("embed", str(tmp_path / "texts"), "--model", str(folder), "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert b"warning: 1 of 3 lines are empty and have no vector" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a dog", "a red cat"]
    expected = embed(["a dog", "a red cat"], model=folder, dtype="float32")
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)

    array = tmp_path / "out.npy"
    options = ("--model", str(folder), "--dtype", "float32", "-o", str(array), "--json")
    done = run("embed", "-", *options, input=b"a dog\na red cat\n")
    assert json.loads(done.stdout) == {"output": str(array), "texts": 2, "dim": 32}
    np.testing.assert_allclose(np.load(array), expected, atol=1e-6)


def test_a_file_among_texts_is_not_a_text(folder, tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n")
    done = run("embed", "a cat", str(tmp_path / "a.txt"), "--model", str(folder))
    assert done.returncode == 2
    assert b"a.txt is a file among others; give it alone" in done.stderr
    done = run("embed", "a cat", "b.txt", "--model", str(folder))
    assert b"there is no file 'b.txt'" in done.stderr
    assert run("embed", "a cat", "A dog.", "--model", str(folder)).returncode == 0


def test_the_package_has_it():
    assert qkv.embed is embed


def test_line_ends_and_marks_of_files_are_no_text(folder, tmp_path):
    given = b"\xef\xbb\xbfa dog\r\n\r\na red cat\r\n"
    (tmp_path / "texts").write_bytes(given)
    options = ("--model", str(folder), "--dtype", "float32")
    for done in (run("embed", "-", *options, input=given), run("embed", str(tmp_path / "texts"), *options)):
        assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["a dog", "a red cat"]


@pytest.fixture
def minilm():
    folder = registry.home() / "models" / "minilm"
    if not folder.is_dir():
        pytest.skip("minilm is not here; qkv pull minilm fetches it")
    return folder


@pytest.mark.weights
def test_minilm_as_sentence_transformers_has_it(minilm):
    library = pytest.importorskip("sentence_transformers")
    texts = ["A man is eating food.", "Größe, café!", "a", "x " * 400]
    theirs = library.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    with pytest.warns(UserWarning, match="1 of 4"):
        np.testing.assert_allclose(embed(texts, model=minilm, dtype="float32"), theirs, atol=1e-5)


@pytest.mark.weights
def test_minilm(minilm):
    """As transformers computes it and sentence-transformers pools it: mean, then length 1."""
    transformers, folder = pytest.importorskip("transformers"), minilm
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.", "x " * 400]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states, mask = theirs(**given).last_hidden_state, given["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    with pytest.warns(UserWarning, match="1 of 4"):
        ours = embed(texts, model=folder, dtype="float32")
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 4"):
        assert ((embed(texts, model=folder, dtype="bfloat16") * expected).sum(-1) > 0.999).all()
