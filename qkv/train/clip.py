"""Recipe 2 of emblem: CLIP on the captioned pictures, its text tower taught a broad vocabulary by a teacher.

Each step has two halves: pictures with captions (contrastive, a part of them in other languages), and texts
with a teacher's vectors (WordNet's words and glosses in English, names of the data set in every language with
the vector of their English name). The text tower that comes out reads prompts for recipe 3.
"""

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qkv.data import captions, emblem
from qkv.data.items import Item
from qkv.data.wordnet import wordnet_glosses
from qkv.models.clip import CLIP, TextConfig, VisionConfig
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.train.data import Draw, PictureBatches, to_signed
from qkv.train.loop import FitConfig, Loss, Result, fit
from qkv.train.objectives import contrasting, distilling
from qkv.train.recipes import Context, facts
from qkv.train.teacher import Vectors, vectors
from qkv.weights.clip import save_clip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`vocab` is learnt from all captions and `glosses` of WordNet's entries; `foreign` is the share of captions
    in languages other than English; `longest` cuts training texts, in tokens."""

    text: TextConfig
    vision: VisionConfig
    vocab: int = 12_288
    teacher: Path
    glosses: int = 60_000
    batch: int = 128
    texts: int = 256
    foreign: float = 0.25
    longest: int = 40
    fit: FitConfig


@dataclass(frozen=True)
class Texts:
    """What the teacher teaches: N groups of spellings, each group with one vector."""

    spellings: list[tuple[str, ...]]
    vectors: Vectors


class Student(nn.Module):
    """CLIP with a head of its own for the teacher's space, which is thrown away afterwards."""

    def __init__(self, clip: CLIP, teacher_dim: int) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(clip.text.config.dim, teacher_dim)


class Lesson(NamedTuple):
    """One step's batch: B pictures with captions, N texts with the teacher's vectors."""

    pictures: Tensor  # (B, 3, Y, X)
    captions: Tensor  # (B, T) token ids
    same: Tensor  # (B, B), True where two pairs are of one concept
    texts: Tensor  # (N, T)
    taught: Tensor  # (N, E)


@dataclass(frozen=True)
class Batches:
    """The lesson of a step."""

    pictures: PictureBatches
    items: list[Item]
    texts: Texts
    tokenizer: Tokenizer
    recipe: Recipe

    def __call__(self, step: int) -> Lesson:
        r, draw = self.recipe, self.pictures.draw
        rng = random.Random(f"{draw.seed} {step}")
        chosen = [self.items[row] for row in draw.at(step)]
        spoken = [captions.caption(item, rng, language=self._language(rng)) for item in chosen]
        bases = np.array([item.base for item in chosen])
        rows = [rng.randrange(len(self.texts.spellings)) for _ in range(r.texts)]
        taught = torch.from_numpy(np.asarray(self.texts.vectors[rows], np.float32))
        spelled = [rng.choice(self.texts.spellings[row]) for row in rows]
        same = torch.from_numpy(bases[:, None] == bases[None, :])
        return Lesson(self.pictures(step), self.encode(spoken), same, self.encode(spelled), taught)

    def _language(self, rng: random.Random) -> str:
        return rng.choice(captions.languages()) if rng.random() < self.recipe.foreign else "en"

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (B, T) with T the longest of them: the tower is causal, so what follows an end does not matter."""
        return pack(self.tokenizer, texts, self.recipe.longest)


def pack(tokenizer: Tokenizer, texts: list[str], longest: int) -> Tensor:
    """Texts as ids (B, T): start, at most `longest` - 2 tokens, end, padding up to the longest of them."""
    ids = [[tokenizer.start, *tokenizer.encode(text)[: longest - 2], tokenizer.end] for text in texts]
    width = max(map(len, ids))
    return torch.tensor([row + [tokenizer.padding] * (width - len(row)) for row in ids])


def learn_tokenizer(items: list[Item], glosses: list[tuple[str, str]], vocab: int) -> Tokenizer:
    """BPE over captions of every picture, every language's names and keywords, and the glosses."""
    rng = random.Random(0)
    spoken = [captions.caption(item, rng) for item in items]
    names = [text for _, text in captions.texts(items)]
    return train_tokenizer([*spoken, *names, *(f"{lemma}: {gloss}" for lemma, gloss in glosses)], vocab)


def gather_texts(items: list[Item], recipe: Recipe, progress: bool) -> Texts:
    """WordNet's lemmas and glosses, and the items' names in every language."""
    glosses = wordnet_glosses()
    random.Random(0).shuffle(glosses)
    groups: dict[str, set[str]] = {}
    for lemma, gloss in glosses[: recipe.glosses]:
        groups.setdefault(lemma, {lemma})
        groups.setdefault(gloss.split(";")[0][:160], {gloss.split(";")[0][:160]})
    for item in items:
        spellings = groups.setdefault(item.name, {item.name})
        spellings.update(words.name for words in item.words.values())
    ours = sorted(groups)
    path = emblem.data_folder().parent / "teacher"
    return Texts([tuple(sorted(groups[text])) for text in ours], vectors(recipe.teacher, ours, path, progress=progress))


def train(recipe: Recipe, context: Context) -> Result[Student]:
    data = emblem.load()
    seen = [item for item in data.items if item.split == "train"]
    tokenizer = learn_tokenizer(seen, wordnet_glosses(), recipe.vocab)
    texts = gather_texts(seen, recipe, context.progress)
    words = with_tokens(recipe.text, tokenizer)

    torch.manual_seed(recipe.fit.seed)
    student = Student(CLIP(words, recipe.vision), texts.vectors.shape[1]).to(context.device)
    draw = Draw.of([item.row for item in seen], [item.weight for item in seen], recipe.batch, recipe.fit.seed)
    batches = Batches(PictureBatches(data.pictures, draw), data.items, texts, tokenizer, recipe)
    unseen = [item for item in data.items if item.split == "validation" and not item.tone]
    unseen = list({item.base: item for item in unseen}.values())[:100]  # one picture a concept

    def objective(student: Student, batch: Lesson, generator: torch.Generator) -> Loss:
        vision, text = student.clip.vision, student.clip.text
        scale = student.clip.log_scale
        pairs = contrasting(vision.embed(batch.pictures), text.embed(batch.captions), scale, batch.same)
        lesson = distilling(student.head(text.pool(text(batch.texts), batch.texts)), batch.taught)
        return Loss(pairs + lesson, {"pairs": pairs.detach(), "lesson": lesson.detach()})

    def validate(student: Student, step: int) -> dict[str, float]:
        rows = [item.row for item in unseen]
        pictures = to_signed(data.pictures[rows]).to(context.device)
        found = {}
        for language in ("en", "zh-hant", "de", "fr"):
            spoken = [captions.plain_caption(item, language=language) for item in unseen]
            logits = student.clip.logits(pictures, batches.encode(spoken).to(context.device))
            better = (logits > logits.diagonal()[:, None]).sum(1)  # texts that beat the true one
            found[f"top5_{language}"] = float((better < 5).float().mean())
        return found

    result = fit(
        student,
        batches,
        objective,
        recipe.fit,
        context.folder,
        recipe={"task": "clip", **facts(recipe), "text": words},
        resume=context.resume,
        validate=validate,
        progress=context.progress,
    )
    save_clip(result.model.clip, context.folder / "model")
    tokenizer.save(context.folder / "model")
    return result


def with_tokens(config: TextConfig, tokenizer: Tokenizer) -> TextConfig:
    """`config` with the tokenizer's vocabulary and control tokens."""
    tokens = {"vocab": tokenizer.vocab, "start": tokenizer.start, "end": tokenizer.end, "pad": tokenizer.padding}
    return dataclasses.replace(config, **tokens)  # type: ignore[arg-type]
