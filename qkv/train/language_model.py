"""Recipe "language": a decoder from scratch on one text, over its bytes or a BPE that is learnt from it.

Steps read windows at random places of the first part of the text; the rest of it, read once from end to end in windows
of the model's context, gives the validation loss. Between the documents of a folder stands the token that ends a text.
What comes out is a folder that transformers opens. Left out: several texts with weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from qkv import textfiles
from qkv.errors import ConfigError, InputError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.sample.tokens import Sampling, TokenSampler
from qkv.text.language import LanguageTokenizer
from qkv.text.learn import learn_bpe
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context
from qkv.weights.decoder import save_decoder

Ids = npt.NDArray[np.int64]

MAX_BYTES = 4 << 30  # of a file of text


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data` is a text file, or a folder whose *.txt files, a document each, are read in the order of their names.

    A BPE of `model.vocab` tokens is learnt; with 256 every byte is one, in an English text every character, but 255,
    which no text holds: that is the token at the end of a text.
    `validation` is the last share of the text; `prompt` is what the samples of the run go on from.
    """

    data: Path
    model: DecoderConfig
    batch: int = 12
    validation: float = 0.1
    prompt: str = "\n"
    fit: FitConfig

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch={self.batch}; it must be 1 or more")
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation={self.validation}; it must be a share between 0 and 1")
        if not self.prompt:
            raise ConfigError("prompt is empty; samples need something to go on from")


@dataclass(frozen=True)
class Windows:
    """(B, T + 1) tokens of a step, each row from a random place of `ids`."""

    ids: Ids
    context: int
    batch: int
    seed: int

    def __call__(self, step: int) -> Tensor:
        starts = np.random.default_rng((self.seed, step)).integers(len(self.ids) - self.context, size=self.batch)
        return torch.from_numpy(self.ids[starts[:, None] + np.arange(self.context + 1)])


def train(recipe: Recipe, context: Context) -> Result[Decoder]:
    documents = read_texts(recipe.data)
    first, rest = split(documents, 1 - recipe.validation)
    tokenizer = learn_bpe("".join(first), recipe.model.vocab, end=True)
    known, unseen = (encode_all(tokenizer, part) for part in (first, rest))
    for ids, name in ((known, "training"), (unseen, "validation")):
        if len(ids) <= recipe.model.context:
            raise InputError(
                f"{recipe.data} has {len(ids)} tokens for {name}; context={recipe.model.context} needs more"
            )
    bytes_a_token = sum(len(document.encode()) for document in rest) / len(unseen)
    prompt = tokenizer.encode(recipe.prompt)

    torch.manual_seed(recipe.fit.seed)
    decoder = Decoder(recipe.model).to(context.device)

    def validate(decoder: Decoder, step: int) -> dict[str, float]:
        loss = mean_loss(decoder, unseen)
        return {"validation": loss, "validation_byte": loss / bytes_a_token}

    def samples(decoder: Decoder, step: int) -> str:
        return tokenizer.decode(prompt + write(decoder, prompt, recipe.model.context - len(prompt)))

    result = context.fit(
        recipe,
        decoder,
        Windows(known, recipe.model.context, recipe.batch, recipe.fit.seed),
        next_token,
        facts={"text": hashlib.sha256("\0".join(documents).encode()).hexdigest()},
        samples=samples,
        validate=validate,
    )
    end = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.bos}
    save_decoder(with_biases(result.model), context.folder / "model", also=end)
    tokenizer.save(context.folder / "model")
    return result


def read_texts(path: Path) -> list[str]:
    """The text of a file, or of each in a folder. InputError if it is not there or not text."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no *.txt file; name a text, or a folder of texts")
    return [textfiles.read_text(file, limit=MAX_BYTES) for file in files]


def split(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """The first `share` of all characters, and the rest; one document lies in both, perhaps."""
    first, rest = list[str](), list[str]()
    cut = round(sum(map(len, documents)) * share)
    for document in documents:
        here = min(max(cut, 0), len(document))
        first += filter(None, [document[:here]])
        rest += filter(None, [document[here:]])
        cut -= len(document)
    return first, rest


def encode_all(tokenizer: LanguageTokenizer, documents: Sequence[str]) -> Ids:
    """The ids of documents, the end of a text between them."""
    parts = [encode(tokenizer, document) for document in documents]
    between = np.array([tokenizer.bos], np.int64)
    return np.concatenate([each for part in parts for each in (between, part)][1:] or [between[:0]])


def encode(tokenizer: LanguageTokenizer, text: str) -> Ids:
    """Ids of a text of any length: at most a line is longer than what is tokenised at once."""
    return np.array([id for line in text.splitlines(keepends=True) for id in tokenizer.encode(line)], np.int64)


def next_token(decoder: Decoder, ids: Tensor, generator: torch.Generator) -> Loss:
    """ids (B, T + 1): the mean of -log p(token | those before it), in nats."""
    logits = decoder(ids[:, :-1])  # (B, T, V)
    target = ids[:, 1:].flatten()
    return Loss(F.cross_entropy(logits.flatten(0, 1).float(), target), count=len(target))


@torch.no_grad()
def mean_loss(decoder: Decoder, ids: Ids, *, context: int | None = None, batch: int = 32) -> float:
    """The mean loss in nats of every token of `ids` but the first, each given those before it in its window; windows of
    `context` (default: the model's), one after the other."""
    T, device = context or decoder.config.context, decoder.token.weight.device
    total = 0.0
    whole = (len(ids) - 1) // T
    for start in range(0, whole, batch):
        places = np.arange(start, min(start + batch, whole))[:, None] * T + np.arange(T + 1)
        loss = next_token(decoder, torch.from_numpy(ids[places]).to(device), torch.Generator())
        total += float(loss.value) * places[:, 1:].size
    if rest := len(ids) - 1 - whole * T:
        tail = torch.from_numpy(ids[None, whole * T :]).to(device)
        total += float(next_token(decoder, tail, torch.Generator()).value) * rest
    return total / (len(ids) - 1)


@torch.no_grad()
def write(decoder: Decoder, prompt: list[int], count: int, *, temperature: float = 0.8) -> list[int]:
    """`count` tokens after `prompt`, drawn with seed 0."""
    sampler = TokenSampler(Sampling(temperature=temperature, seed=0), prompt, decoder.config.vocab)
    cache, device = decoder.new_cache(), decoder.token.weight.device
    written, given = [], prompt
    for _ in range(count):
        logits = decoder(torch.tensor([given], device=device), cache=cache)[0, -1]
        given = [sampler.next(logits.float().cpu().numpy()).id]
        written += given
    return written


def with_biases(decoder: Decoder) -> Decoder:
    """Families with layer norms are only published with biases: zeros where the model was trained without."""
    ours = decoder.config
    if ours.norm != "layer" or ours.bias:
        return decoder
    biased = Decoder(replace(ours, bias=True, attention_bias=True, out_bias=True))
    biased.load_state_dict(decoder.state_dict(), strict=False)
    return biased.eval()
