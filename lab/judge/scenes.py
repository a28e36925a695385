"""The recipe of the judge of scenes: pictures in, the facts that they were drawn of out.

Its scenes are of its own seed, of all combinations (those that the generator's training never sees too), and also of
two drawing styles that the generator never sees. Each is drawn for one step and then forgotten. Three of four are worn
down (`wear`), so that the judge knows a thing when it is soft, bent or blotched, as a generator's drawings are. Nothing
is mirrored: left and right are asked about. Pictures grow from half to full size, as those of the first judge do.
"""

import io
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lab.judge.facts import SLOTS, classes, facts, kind
from lab.judge.files import save_reader
from lab.judge.questions import Questions, fair
from lab.judge.reader import SIDE, Reader, ReaderConfig, Shape, read
from lab.scenes import sprites, vocabulary
from lab.scenes.dataset import Scenes
from lab.scenes.imagine import STYLE_SHARES
from lab.scenes.sprites import HIDDEN, STYLES
from lab.train.batches import to_signed
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.recipes import Context

Pictures = npt.NDArray[np.uint8]  # (N, Y, X, 3)
Batch = Mapping[str, Tensor]

EXAMINED = 200  # scenes of a validation
COUNTED = 20_000  # scenes whose facts say how often a class is


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The judge's classes are the scenes' own. `hidden`: the share of the drawing styles that the
    generator never sees; `worn`: of pictures that are worn down."""

    model: Shape = field(default_factory=Shape)
    batch: int = 64
    hidden: float = 0.2
    worn: float = 0.75
    fit: FitConfig


def own_scenes(seed: int, hidden: float, *, progress: bool = True) -> Scenes:
    """All combinations, in all styles; `hidden` is the share of the styles that the generator never sees."""
    cut = sprites.load(styles=STYLES + HIDDEN, progress=progress)
    shares = {style: (1 - hidden) * share for style, share in STYLE_SHARES.items()}
    shares |= dict.fromkeys(HIDDEN, hidden / len(HIDDEN))
    return Scenes(sprites=cut, vocabulary=vocabulary.load(cut), seed=seed, kinds=None, styles=shares)


def train(recipe: Recipe, context: Context) -> Result[Reader]:
    scenes = own_scenes(recipe.fit.seed, recipe.hidden, progress=context.progress)
    torch.manual_seed(recipe.fit.seed)
    judge = Reader(ReaderConfig(shape=recipe.model, classes=classes(scenes.vocabulary))).to(context.device)
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unseen = replace(scenes, seed=scenes.seed + 1, kinds=frozenset(), styles=STYLE_SHARES)
    exam = Exam.of(unseen, EXAMINED)

    batches = Lessons(scenes, judge.config.classes, recipe.batch, recipe.worn, recipe.fit.steps)

    def validate(judge: Reader, step: int) -> dict[str, float]:
        save_reader(context.folder / "model", judge)
        return exam.ask(judge, batches.side(step - 1))

    objective = partial(reading, log_odds(scenes, judge.config.classes, COUNTED, context.device))
    return context.fit(recipe, judge, batches, objective, facts={"classes": judge.config.classes}, validate=validate)


def log_odds(scenes: Scenes, known: Mapping[str, Sequence[str]], count: int, device: torch.device) -> dict[str, Tensor]:
    """How often each class of each slot is drawn, as logarithms (K,)."""
    told = [facts(scenes.facts(number), scenes.vocabulary) for number in range(count)]
    found = {}
    for slot in SLOTS:
        often = Counter(row[slot] for row in told)
        found[slot] = torch.tensor([often[value] + 1.0 for value in known[kind(slot)]], device=device)
    return {slot: (often / often.sum()).log() for slot, often in found.items()}


def reading(odds: Mapping[str, Tensor], judge: Reader, batch: Batch, generator: torch.Generator) -> Loss:
    """The sum over all slots of the cross-entropy with each class as often as it is drawn (2007.07314, equation 10)."""
    logits = judge(batch["pictures"])
    losses = {slot: F.cross_entropy(logits[slot].float() + odds[slot], batch[slot]) for slot in SLOTS}
    right = (logits["name 0"] + odds["name 0"]).argmax(-1) == batch["name 0"]
    told = {"name": losses["name 0"].detach(), "event": losses["event"].detach(), "named": right.float().mean()}
    return Loss(torch.stack([*losses.values()]).sum(), told)


@dataclass(frozen=True)
class Lessons:
    """For each step new pictures (B, 3, side, side), and of each slot the classes' numbers (B,)."""

    scenes: Scenes
    known: Mapping[str, Sequence[str]]
    batch: int
    worn: float
    steps: int

    def __call__(self, step: int) -> Batch:
        numbers = range(step * self.batch, (step + 1) * self.batch)
        told = [facts(self.scenes.facts(number), self.scenes.vocabulary) for number in numbers]
        pictures = np.stack([self.scenes.picture(number) for number in numbers])
        seen = wear(pictures, self.worn, self.side(step), random.Random(f"{self.scenes.seed} {step}"))
        places = {name: {value: i for i, value in enumerate(found)} for name, found in self.known.items()}
        return {"pictures": seen} | {
            slot: torch.tensor([places[kind(slot)][row[slot]] for row in told]) for slot in SLOTS
        }

    def side(self, step: int) -> int:
        """Pictures grow from half to full size in five stages (2104.00298, section 4.2): it costs less."""
        return SIDE // 2 + SIDE // 8 * min(5 * step // self.steps, 4)


def wear(pictures: Pictures, share: float, side: int, rng: random.Random) -> Tensor:
    """Pictures as (B, 3, side, side) in [-1, 1], in channels-last; moved a bit all, and `share` of them worn down:
    bent, tinted, softened, blotched and packed as JPEG."""
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    bad = torch.rand(len(pictures), generator=generator) < share
    packed = [_packed(picture, rng) if worn and rng.random() < 0.4 else picture for picture, worn in zip(pictures, bad)]
    clean = to_signed(np.stack(packed))
    if side != clean.shape[-1]:
        clean = F.interpolate(clean, (side, side), mode="bilinear", align_corners=False, antialias=True)
    amount = bad.float()[:, None, None, None]
    seen = _moved(clean, amount, generator)
    seen = torch.lerp(seen, _softened(_tinted(seen, generator), generator), amount)
    seen = seen + amount * _blotches(seen, generator)
    return seen.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _packed(picture: Pictures, rng: random.Random) -> Pictures:
    """Through a JPEG of low quality, whose blocks lose what the latents of a small autoencoder lose."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=rng.randint(8, 50))
    return np.asarray(Image.open(data))


def _moved(pictures: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Scaled and moved a bit; as far as `amount` (B, 1, 1, 1) says also turned and bent."""
    count = len(pictures)
    affine = torch.zeros(count, 2, 3)
    affine[:, :, 2] = _uniform(generator, -0.08, 0.08, count, 2)
    affine[:, 0, 0], affine[:, 1, 1] = _uniform(generator, 0.9, 1.1, 2, count)
    turned = _uniform(generator, -0.08, 0.08, count) * amount.flatten()
    affine[:, 0, 1], affine[:, 1, 0] = turned, -turned
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    bends = 0.05 * torch.randn(count, 2, 6, 6, generator=generator) * amount
    bends = F.interpolate(bends, pictures.shape[-2:], mode="bicubic", align_corners=False)
    return F.grid_sample(pictures, grid + bends.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _tinted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Paler or stronger, lighter or darker, with a tinge; colours stay what they are called."""
    count = len(pictures)
    grey = pictures.mean(1, keepdim=True)
    paler = torch.lerp(pictures, grey, _uniform(generator, -0.15, 0.35, count, 1, 1, 1))
    return paler * _uniform(generator, 0.75, 1.15, count, 1, 1, 1) + _uniform(generator, -0.08, 0.08, count, 3, 1, 1)


def _softened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter each kept, and seen at three of a few smaller sides."""
    parts, full = [], pictures.shape[-1]
    for i, part in enumerate(pictures.chunk(4)):
        side = int(torch.randint(full // 4, full * 3 // 4 + 1, (), generator=generator))
        small = F.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True)
        large = F.interpolate(small, part.shape[-2:], mode="bicubic", align_corners=False)
        parts.append(large if i else part)
    return torch.cat(parts)


def _blotches(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of three sizes, as errors in latents show."""
    count, _, height, _ = pictures.shape
    noise = torch.zeros_like(pictures)
    for side, most in ((height, 0.06), (height // 4, 0.12), (height // 8, 0.12)):
        drawn = torch.randn(count, 3, side, side, generator=generator) * _uniform(generator, 0, most, count, 1, 1, 1)
        noise += F.interpolate(drawn, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return noise


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


@dataclass(frozen=True)
class Exam:
    """Real scenes that training does not see, as they are and worn down, and a question about each."""

    pictures: Mapping[str, Pictures]
    told: Sequence[Mapping[str, str]]
    questions: Sequence[Sequence[Mapping[str, str]]]

    @classmethod
    def of(cls, scenes: Scenes, count: int) -> "Exam":
        numbers = [number for number in range(2 * count) if fair(scenes.facts(number))][:count]
        rows = [scenes.facts(number) for number in numbers]
        real = np.stack([scenes.picture(number) for number in numbers])
        rng = random.Random(scenes.seed)
        bad = np.concatenate([_bytes(wear(part, 1.0, SIDE, rng)) for part in np.split(real, range(50, count, 50))])
        asked = Questions(scenes)
        return cls(
            {"real": real, "worn": bad},
            [facts(row, scenes.vocabulary) for row in rows],
            [asked.of(row, number) for number, row in zip(numbers, rows)],
        )

    def ask(self, judge: Reader, side: int) -> dict[str, float]:
        """The share of scenes whose caption is picked out of 100, and of slots that are read right, at a `side` that
        training has reached."""
        found = {}
        for name, pictures in self.pictures.items():
            seen = read(judge, pictures, side=side)
            found[f"top1_{name}"] = float((seen.ranks(self.questions) == 0).float().mean())
            for slot in ("event", "name 0", "name 1", "place"):
                right = [seen.best(row, slot) == told[slot] for row, told in enumerate(self.told)]
                found[f"{slot.replace(' ', '_')}_{name}"] = sum(right) / len(right)
        return found


def _bytes(pictures: Tensor) -> Pictures:
    rows = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(rows.numpy())
