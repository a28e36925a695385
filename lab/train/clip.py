"""Recipe 2 of emblem: CLIP on the captioned pictures, its text tower taught a broad vocabulary by a teacher.

Each step has two halves: pictures with captions (contrastive, a part of them in other languages), and texts
with a teacher's vectors (WordNet's words and glosses in English, names of the data set in every language with
the vector of their English name). The text tower that comes out reads prompts for recipes 3 to 5.

There it learns further, and the picture tower no longer fits. Then the same recipe without a teacher goes on from both,
the text tower held still: "LiT" (2111.07991), section 3.
"""

import dataclasses
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lab.emblem import captions, dataset
from lab.emblem.items import Item
from lab.emblem.wordnet import wordnet_glosses, wordnet_texts
from lab.train.batches import Draw, PictureBatches, to_signed
from lab.train.teacher import Vectors, vectors
from qkv.errors import ConfigError
from qkv.models.clip import CLIP, TextConfig, VisionConfig
from qkv.models.preprocess import Preprocess
from qkv.text.tokenizer import Tokenizer, train_tokenizer
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.objectives import contrasting, distilling, sigmoid_contrasting
from qkv.train.recipes import Context, freeze
from qkv.weights.clip import load_clip, save_clip
from qkv.weights.folder import Folder
from qkv.weights.preprocess import save_preprocess

GREY = (0.5, 0.5, 0.5)  # `to_signed` as a mean and a deviation


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`vocab` is learnt from all captions and `glosses` of WordNet's entries; `foreign` is the share of captions
    in languages other than English; `longest` cuts training texts, in tokens; `loss` of pictures with captions is
    CLIP's softmax or SigLIP's sigmoid. Without `teacher` there is the half with pictures only.

    `start` is a CLIP folder to go on from, with the text tower and the tokenizer of the pipeline folder `reader`; the
    towers' configurations and `vocab` are ignored then. `freeze` names parts that learn no further ("text.stack").
    """

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    vocab: int = 12_288
    teacher: Path | None = None
    start: Path | None = None
    reader: Path | None = None
    freeze: tuple[str, ...] = ()
    glosses: int = 60_000
    batch: int = 128
    texts: int = 256
    foreign: float = 0.25
    longest: int = 40
    loss: Literal["softmax", "sigmoid"] = "softmax"
    fit: FitConfig

    def __post_init__(self) -> None:
        if (self.start is None) != (self.reader is None):
            raise ConfigError("start and reader go together: a CLIP folder, and the pipeline whose text tower it meets")
        if self.start is None and self.teacher is None:
            raise ConfigError("a CLIP from scratch needs a teacher, the folder of a sentence encoder; set teacher")


@dataclass(frozen=True)
class TaughtTexts:
    """What the teacher teaches: N groups of spellings, each group with one vector."""

    spellings: list[tuple[str, ...]]
    vectors: Vectors


class Student(nn.Module):
    """CLIP with a head of its own for the teacher's space, and the sigmoid loss's bias if it is used; both are thrown
    away afterwards."""

    def __init__(self, clip: CLIP, teacher_dim: int | None, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(clip.text.config.dim, teacher_dim) if teacher_dim else None
        if sigmoid:  # as SigLIP begins: nearly all pairs are another's (2303.15343, section 3.2)
            self.bias = nn.Parameter(torch.tensor(-10.0))
            nn.init.constant_(clip.log_scale, math.log(10))

    def pairs(self, batch: "Lesson") -> Tensor:
        """The loss of pictures with captions."""
        clip = self.clip
        vectors = clip.vision.embed(batch.pictures), clip.text.embed(batch.captions)
        if hasattr(self, "bias"):
            return sigmoid_contrasting(*vectors, clip.log_scale, self.bias, batch.same)
        return contrasting(*vectors, clip.log_scale, batch.same)

    def lesson(self, batch: "Lesson") -> Tensor | None:
        """The loss of texts with the teacher's vectors, if there is a teacher."""
        if self.head is None:
            return None
        text = self.clip.text
        return distilling(self.head(text.pool(text(batch.texts), batch.texts)), batch.taught)


class Lesson(NamedTuple):
    """One step's batch: B pictures with captions, N texts with the teacher's vectors."""

    pictures: Tensor  # (B, 3, Y, X)
    captions: Tensor  # (B, T) token ids
    same: Tensor  # (B, B), True where two pairs are of one concept
    texts: Tensor  # (N, T); N is 0 without a teacher
    taught: Tensor  # (N, E)


@dataclass(frozen=True)
class Batches:
    """The lesson of a step."""

    pictures: PictureBatches
    items: list[Item]
    texts: TaughtTexts | None
    tokenizer: Tokenizer
    recipe: Recipe

    def __call__(self, step: int) -> Lesson:
        draw = self.pictures.draw
        rng = random.Random(f"{draw.seed} {step}")
        chosen = [self.items[row] for row in draw.at(step)]
        spoken = [captions.caption(item, rng, language=self._language(rng)) for item in chosen]
        bases = np.array([item.base for item in chosen])
        same = torch.from_numpy(bases[:, None] == bases[None, :])
        texts, taught = self._taught(rng) if self.texts else (torch.empty(0, 1, dtype=torch.long), torch.empty(0, 1))
        return Lesson(self.pictures(step), self.encode(spoken), same, texts, taught)

    def _taught(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Texts (N, T) with the teacher's vectors (N, E)."""
        assert self.texts is not None
        rows = [rng.randrange(len(self.texts.spellings)) for _ in range(self.recipe.texts)]
        taught = torch.from_numpy(np.asarray(self.texts.vectors[rows], np.float32))
        return self.encode([rng.choice(self.texts.spellings[row]) for row in rows]), taught

    def _language(self, rng: random.Random) -> str:
        return rng.choice(captions.languages()) if rng.random() < self.recipe.foreign else "en"

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (B, T) with T the longest of them: the tower is causal, so what follows an end does not matter."""
        return pack(self.tokenizer, texts, self.recipe.longest)


def pack(tokenizer: Tokenizer, texts: list[str], longest: int) -> Tensor:
    """Texts as token ids (B, T), each of at most `longest` with its start and end."""
    return torch.from_numpy(tokenizer.rows(map(tokenizer.encode, texts), longest))


def learn_tokenizer(items: list[Item], glosses: list[tuple[str, str]], vocab: int) -> Tokenizer:
    """BPE over captions of every picture, every language's names and keywords, and the glosses."""
    rng = random.Random(0)
    spoken = [captions.caption(item, rng) for item in items]
    names = [text for _, text in captions.texts(items)]
    return train_tokenizer([*spoken, *names, *(f"{lemma}: {gloss}" for lemma, gloss in glosses)], vocab)


def gather_texts(items: list[Item], teacher: Path, recipe: Recipe, progress: bool) -> TaughtTexts:
    """WordNet's lemmas and glosses, and the items' names in every language."""
    groups: dict[str, set[str]] = {text: {text} for text in wordnet_texts(recipe.glosses)}
    for item in items:
        spellings = groups.setdefault(item.name, {item.name})
        spellings.update(words.name for words in item.words.values())
    ours = sorted(groups)
    return TaughtTexts([tuple(sorted(groups[text])) for text in ours], vectors(teacher, ours, progress=progress))


def train(recipe: Recipe, context: Context) -> Result[Student]:
    data = dataset.load()
    seen = [item for item in data.items if item.split == "train"]
    texts = gather_texts(seen, recipe.teacher, recipe, context.progress) if recipe.teacher else None
    torch.manual_seed(recipe.fit.seed)
    begun, tokenizer = begin(recipe, seen)
    teacher_dim = texts.vectors.shape[1] if texts else None
    student = Student(begun, teacher_dim, sigmoid=recipe.loss == "sigmoid").to(context.device)
    freeze(student.clip, recipe.freeze)
    draw = Draw.of([item.row for item in seen], [item.weight for item in seen], recipe.batch, recipe.fit.seed)
    batches = Batches(PictureBatches(data.pictures, draw), data.items, texts, tokenizer, recipe)
    unseen = [item for item in data.items if item.split == "validation" and not item.tone]
    unseen = list({item.base: item for item in unseen}.values())[:100]  # one picture a concept

    def objective(student: Student, batch: Lesson, generator: torch.Generator) -> Loss:
        pairs, lesson = student.pairs(batch), student.lesson(batch)
        if lesson is None:
            return Loss(pairs)
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

    result = context.fit(
        recipe,
        student,
        batches,
        objective,
        facts={"text": begun.text.config, "vision": begun.vision.config},
        validate=validate,
    )
    save_clip(result.model.clip, context.folder / "model")
    tokenizer.save(context.folder / "model")
    size = begun.vision.config.image_size
    save_preprocess(Preprocess(resize=size, crop=(size, size), mean=GREY, std=GREY), context.folder / "model")
    return result


def begin(recipe: Recipe, items: list[Item]) -> tuple[CLIP, Tokenizer]:
    """The towers as the recipe begins with them, and the tokenizer of the texts."""
    if recipe.start is not None and recipe.reader is not None:
        clip = load_clip(Folder(recipe.start), texts=Folder(recipe.reader)).float()
        return clip, Tokenizer.load(recipe.reader / "tokenizer")
    tokenizer = learn_tokenizer(items, wordnet_glosses(), recipe.vocab)
    return CLIP(with_tokens(recipe.text, tokenizer), recipe.vision), tokenizer


def with_tokens(config: TextConfig, tokenizer: Tokenizer) -> TextConfig:
    """`config` with the tokenizer's vocabulary and control tokens."""
    tokens = {"vocab": tokenizer.vocab, "start": tokenizer.start, "end": tokenizer.end, "pad": tokenizer.padding}
    return dataclasses.replace(config, **tokens)  # type: ignore[arg-type]
