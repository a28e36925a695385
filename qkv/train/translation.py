"""Recipe "translation": the Transformer of 2017 from scratch, on texts in two languages that lie line by line.

"Attention Is All You Need" (1706.03762), section 5: batches of about so many tokens of texts of about one length, label
smoothing, dropout, and at the end the mean of the last checkpoints. A joint BPE is learnt from the training part. What
comes out is a folder that transformers opens as a `MarianMTModel`.
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.atomic import write_file
from qkv.data.parallel import Pair, read_pairs
from qkv.errors import ConfigError, InputError
from qkv.models.translator import Translator
from qkv.models.translator_config import TranslatorConfig
from qkv.sample.translation_beam import Search, search_texts
from qkv.text.bleu import score
from qkv.text.moses import to_moses
from qkv.text.pieces import Pieces, learn_pieces
from qkv.train.batch import to_device
from qkv.train.checkpoint import mean_weights
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context
from qkv.train.vocabulary_loss import vocabulary_loss
from qkv.weights.configs import write_json
from qkv.weights.translator import save_translator

Ids = npt.NDArray[np.int64]
UNREAD = 0.1  # nats a token: a source that changes less was not read


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data` is a folder of train.en, train.de, val.en ... (data/parallel.py), `source` and `target` the languages.

    `text`: as it is, or lower-case Moses tokens. The model's `start`, `end` and `pad` are the vocabulary's own.
    `byte_fallback`: unknown characters are spelled in bytes. `tokens` bounds a batch, padding included. `r_drop` weighs
    R-Drop (train/vocabulary_loss.py). `average`: of how many checkpoints the result is the mean; `fit.keep` must keep
    as many. `validation`: how many pairs of the part "val" are translated for the curve, with `search`; their metric
    "source" says how much the model reads of what it translates (`source_gain`).
    """

    data: Path
    source: str = "en"
    target: str = "de"
    text: Literal["plain", "moses-lower"] = "plain"
    byte_fallback: bool = True
    model: TranslatorConfig
    tokens: int = 8192
    smoothing: float = 0.1
    r_drop: float = 0.0
    average: int = 1
    validation: int = 500
    search: Search = field(default_factory=Search)
    fit: FitConfig

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("tokens", self.tokens >= self.model.context, f"context={self.model.context} or more"),
            ("smoothing", 0 <= self.smoothing < 1, "from 0 to below 1"),
            ("r_drop", self.r_drop >= 0, "0 or more"),
            ("average", 1 <= self.average <= self.fit.keep, f"1 to fit.keep={self.fit.keep}"),
            ("validation", self.validation >= 1, "1 or more"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be {expected}")


class Batch(NamedTuple):
    """source (B, S) with its end; target (B, T + 1) from start to end; both filled up with `pad` at the right."""

    source: Tensor
    target: Tensor


class Buckets:
    """The batches of all steps: in every epoch each pair once, beside others of about its length.

    A pair is as long as its longest side. Where batches are cut is the same in all epochs; who stands where among pairs
    of one length is not. A pure function of (seed, step).
    """

    def __init__(self, pairs: Sequence[tuple[list[int], list[int]]], pad: int, *, tokens: int, seed: int) -> None:
        self.pairs, self.pad, self.seed = pairs, pad, seed
        self.lengths = np.array([max(map(len, pair)) for pair in pairs])
        cuts = [0]
        for i, length in enumerate(np.sort(self.lengths)):
            if (i + 1 - cuts[-1]) * length > tokens:
                cuts.append(i)
        # An epoch's batches, the shortest texts first.
        self.spans = list(pairwise([*cuts, len(pairs)])) if pairs else []
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def rows(self, step: int) -> Ids:
        """The numbers of a step's pairs."""
        epoch, place = divmod(step, len(self.spans))
        order, batches = self._shuffled(epoch)
        start, stop = self.spans[batches[place]]
        return order[start:stop]

    def _shuffle(self, epoch: int) -> tuple[Ids, Ids]:
        """An epoch's order of pairs, the shortest first, and of its batches."""
        draw = np.random.default_rng((self.seed, epoch))
        order = draw.permutation(len(self.pairs))
        return order[np.argsort(self.lengths[order], kind="stable")], draw.permutation(len(self.spans))

    def __call__(self, step: int) -> Batch:
        sources, targets = zip(*(self.pairs[row] for row in self.rows(step)))
        return Batch(padded(sources, self.pad), padded(targets, self.pad))


def padded(texts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, T)."""
    table = np.full((len(texts), max(map(len, texts))), pad)
    for row, text in zip(table, texts):
        row[: len(text)] = text
    return torch.from_numpy(table)


def train(recipe: Recipe, context: Context) -> Result[Translator]:
    pairs = {part: prepared(recipe, part) for part in ("train", "val")}
    known = pairs["train"]
    pieces = learn_pieces(
        (side for pair in known for side in pair), recipe.model.vocab, byte_fallback=recipe.byte_fallback
    )
    config = replace(recipe.model, start=pieces.pad, end=pieces.end, pad=pieces.pad)
    search = replace(recipe.search, banned=(pieces.pad,))
    batches = make_batches(recipe, known, pieces, config)
    if not batches.pairs:
        raise InputError(f"no pair of {recipe.data} has at most context={config.context} tokens a side")
    held_out = make_batches(recipe, pairs["val"][: recipe.validation], pieces, config)
    torch.manual_seed(recipe.fit.seed)
    translator = Translator(config).to(context.device)

    def bleu(translator: Translator) -> float:
        unseen = pairs["val"][: recipe.validation]
        said = translate(translator, pieces, [pair.source for pair in unseen], search)
        return score(said, [pair.target for pair in unseen], tokenised=recipe.text != "plain").bleu

    def validate(translator: Translator, step: int) -> dict[str, float]:
        gain = source_gain(translator, held_out)
        if gain < UNREAD and step > recipe.fit.optim.warmup and context.progress:
            told = f"warning: step {step}: the source makes a difference of {gain:.2g} nats a token; it is not read: "
            print(f"{told}train anew with a lower fit.optim.lr, or with model.norm_first", file=sys.stderr)
        return {"bleu": bleu(translator)} | ({} if math.isnan(gain) else {"source": gain})

    def samples(translator: Translator, step: int) -> str:
        shown = pairs["val"][:10]
        said = translate(translator, pieces, [pair.source for pair in shown], search)
        return "".join(f"{pair.source}\n  {text}\n  ({pair.target})\n" for pair, text in zip(shown, said))

    def objective(translator: Translator, batch: Batch, generator: torch.Generator) -> Loss:
        return translation_loss(translator, batch, smoothing=recipe.smoothing, r_drop=recipe.r_drop)

    result = context.fit(
        recipe, translator, batches, objective, facts={"pairs": _digest(known)}, samples=samples, validate=validate
    )
    if recipe.average > 1:
        result.model.load_state_dict(mean_weights(context.folder, recipe.average))
        write_file(context.folder / "average.json", json.dumps({"bleu": bleu(result.model)}).encode())
    export(result.model, pieces, recipe, context.folder / "model")
    return result


def prepared(recipe: Recipe, part: str) -> list[Pair]:
    """The pairs of a part as the model reads them."""
    pairs = read_pairs(recipe.data, part, recipe.source, recipe.target)
    if recipe.text == "plain":
        return pairs
    return [Pair(to_moses(a, recipe.source), to_moses(b, recipe.target)) for a, b in pairs]


def make_batches(recipe: Recipe, pairs: Sequence[Pair], pieces: Pieces, config: TranslatorConfig) -> Buckets:
    """Pairs that are longer than the context are left out."""
    sources = [pieces.encode(pair.source) for pair in pairs]
    targets = [[config.start, *pieces.encode(pair.target, target=True)] for pair in pairs]
    fitting = [pair for pair in zip(sources, targets) if max(map(len, pair)) <= config.context]
    return Buckets(fitting, config.pad, tokens=recipe.tokens, seed=recipe.fit.seed)


def translation_loss(translator: Translator, batch: Batch, *, smoothing: float = 0.0, r_drop: float = 0.0) -> Loss:
    """The mean loss of a token of the targets; with `r_drop`, of two passes whose dropout differs."""
    pad = translator.config.pad
    inputs, wanted = batch.target[:, :-1], batch.target[:, 1:]  # (B, T)
    source, real = batch.source, wanted != pad
    if r_drop:
        source, inputs = source.repeat(2, 1), inputs.repeat(2, 1)
    states = translator.states(inputs, translator.encode(source, source != pad))  # (B, T, D)
    here = states[real.repeat(2, 1) if r_drop else real]  # (N, D): padding costs no logits
    loss = vocabulary_loss(here, translator.output[0], wanted[real], smoothing=smoothing, r_drop=r_drop)
    metrics = {"entropy": loss.entropy} | ({"divergence": loss.divergence} if r_drop else {})
    return Loss(loss.value, metrics, count=int(real.sum()))


@torch.no_grad()
def source_gain(translator: Translator, batches: Buckets) -> float:
    """How much worse the targets of an epoch are foretold, in nats a token, from the source of the pair before in the
    batch than from their own: near 0 if the sources are not read. NaN if no batch has two pairs.

    A post-norm encoder that was trained at too high a rate gives one and the same vector for everything, while the loss
    still falls, since the decoder learns the language by itself.
    """
    gain, count = 0.0, 0
    for step in range(len(batches.spans)):
        batch = to_device(batches(step), translator.token.weight.device)
        if len(batch.source) > 1:
            right = translation_loss(translator, batch)
            wrong = translation_loss(translator, batch._replace(source=batch.source.roll(1, 0)))
            assert right.count is not None
            gain, count = gain + float(wrong.value - right.value) * right.count, count + right.count
    return gain / count if count else math.nan


def translate(translator: Translator, pieces: Pieces, texts: Sequence[str], search: Search) -> list[str]:
    """The likeliest translation of each text."""
    ids = [pieces.encode(text)[-translator.config.context :] for text in texts]
    found = dict(search_texts(translator, ids, search))
    return [pieces.decode(found[i][0].ids) for i in range(len(texts))]


def export(translator: Translator, pieces: Pieces, recipe: Recipe, folder: Path) -> None:
    """A Marian folder, in half precision, with what it should be used with in qkv.json."""
    search = recipe.search
    penalty = {"length_penalty": search.length_penalty} if search.penalty == "power" else {}
    save_translator(translator, folder, dtype=torch.float16, also={"num_beams": search.beams, **penalty})
    pieces.save(folder)
    languages = {"source_lang": recipe.source, "target_lang": recipe.target}
    kind = {"tokenizer_class": "MarianTokenizer", "model_max_length": recipe.model.context}
    write_json(folder / "tokenizer_config.json", kind | languages | {"separate_vocabs": False})
    values = {"text": recipe.text, "beams": search.beams}
    write_json(folder / "qkv.json", values | {"length_penalty": search.length_penalty, "penalty": search.penalty})


def _digest(pairs: Sequence[Pair]) -> str:
    return hashlib.sha256("\n".join("\t".join(pair) for pair in pairs).encode()).hexdigest()
