"""Sentence vectors of a teacher, for distilling a broad vocabulary into a small text tower.

The teacher is a published sentence encoder (all-MiniLM-L6-v2, a `BertModel` folder with its tokenizer.json):
a tool of training alone, it is not part of what is trained. Reimers & Gurevych (2004.09813) for texts in
other languages: they are taught the vector of their English counterpart.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from lab.emblem import dataset
from qkv.atomic import replacing
from qkv.errors import NotFoundError
from qkv.loaded.files import fingerprint
from qkv.progress import track
from qkv.weights.bert import load_bert
from qkv.weights.folder import Folder

LONGEST = 64  # tokens of a text that the teacher reads
Vectors = npt.NDArray[np.float16]


def vectors(teacher: Path, texts: Sequence[str], *, progress: bool = True) -> Vectors:
    """The teacher's vectors (N, D), of length 1, of N texts; kept under a hash of what both hold."""
    if not (teacher / "tokenizer.json").is_file():
        raise NotFoundError(f"no sentence encoder in {teacher}; the recipe says where to get one")
    digest = hashlib.sha256("\0".join((fingerprint(teacher), *texts)).encode()).hexdigest()[:16]
    path = dataset.data_folder().parent / "teacher" / f"{digest}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _embed(teacher, texts, progress)
        with replacing(path) as file:
            np.save(file, made)
    kept: Vectors = np.load(path, mmap_mode="r")
    return kept


def _embed(teacher: Path, texts: Sequence[str], progress: bool) -> Vectors:
    tokenizer = tokenizers.Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LONGEST)
    bert = load_bert(Folder(teacher), dtype=torch.bfloat16)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    made = np.zeros((len(texts), bert.config.dim), np.float16)
    for rows in track(list(_parts(by_length, 256)), "teacher", shown=progress):
        encoded = tokenizer.encode_batch([texts[i] for i in rows])
        ids = torch.tensor([text.ids for text in encoded])
        mask = torch.tensor([text.attention_mask for text in encoded], dtype=torch.bool)
        with torch.inference_mode():
            made[rows] = bert.embed(ids, mask).half().numpy()
    return made


def _parts(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
