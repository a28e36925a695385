"""A pointer of git-lfs where a file of a model should be is called that, whatever reads it."""

import shutil
from pathlib import Path

import pytest

from qkv.errors import CheckpointError, InputError
from qkv.fetch.pull import find
from qkv.pictures.files import open_picture
from qkv.text.bert import BertTokenizer
from qkv.text.chat import ChatTemplate
from qkv.text.language import LanguageTokenizer
from qkv.text.tokenizer import Tokenizer
from qkv.text.unigram import Unigram
from qkv.weights.diffusers import load_latent_diffusion
from qkv.weights.files import open_tensors
from qkv.weights.folder import Folder
from qkv.weights.gguf import open_gguf

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""
SAID = "it is a pointer that git-lfs left in place of the file; run: git lfs pull"
READERS = {
    "a.safetensors": open_tensors,
    "a.gguf": open_gguf,
    "config.json": lambda path: Folder(path.parent).json(path.name),
    "source.spm": lambda path: Folder(path.parent).bytes(path.name),
    "tokenizer.json": lambda path: LanguageTokenizer.load(path.parent),
    "b.gguf": lambda path: find(str(path)),
    "a.png": open_picture,
}


# Of each kind of tokenizer every file that may be there, and files that must be there beside it.
TOKENIZERS = {
    Tokenizer: ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    LanguageTokenizer: ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "config.json"),
    BertTokenizer: ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json"),
    Unigram: ("tokenizer.json", "spiece.model"),
    ChatTemplate: ("tokenizer_config.json", "chat_template.jinja"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_called_that(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises((CheckpointError, InputError), match=SAID) as caught:
        READERS[name](tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TOKENIZERS.items() for name in names])
def test_so_it_is_by_every_tokenizer(tmp_path: Path, kind: type[Tokenizer], name: str) -> None:
    for other in ("vocab.json", "merges.txt"):
        (tmp_path / other).write_text("{}" if other == "vocab.json" else "")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}.*{SAID}"):
        kind.load(tmp_path)


def test_in_a_pipeline_it_names_the_file(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{file}.*{SAID}"):
        load_latent_diffusion(folder)
