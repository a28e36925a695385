"""Recipe 5 of emblem: the U-Net, from a noisy latent and a caption to the clean latent.

Latents are computed once with the finished autoencoder; captions are drawn anew at every step. The text tower learns
along, unless `freeze = ["text"]` keeps it as it was. What comes out is a whole model folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from lab.emblem import captions
from lab.emblem.captions import Mix
from lab.train.latents import Captioned, Source, of_pictures, rescaled, unpack
from qkv.errors import ConfigError
from qkv.loaded.drawer import DrawingDefaults
from qkv.models.clip import TextTower
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet, UNetConfig
from qkv.pictures.sheet import contact_sheet, to_images
from qkv.sample.denoise import sample
from qkv.sample.predict import Condition, Network, guided, predict
from qkv.sample.schedules import alphas_bar
from qkv.text.tokenizer import Tokenizer
from qkv.text.tokenizer_files import CONTEXT
from qkv.text.weighting import Segment
from qkv.train.loop import FitConfig, Loss, Result
from qkv.train.objectives import denoising
from qkv.train.recipes import Context, freeze
from qkv.weights.clip import TEXT_TOWER, load_clip, load_text_tower
from qkv.weights.configs import write_json
from qkv.weights.diffusers import load_latent_diffusion, save_component, save_latent_diffusion
from qkv.weights.folder import Folder
from qkv.weights.vae import load_vae

LARGEST = 15_700_000  # bytes of a file, which some stores and mails do not take larger
SHOWN = (
    "a dog, 3d style",
    "dog in a suit",
    "a red apple, flat style",
    "grinning face, noto style",
    "a woman firefighter, medium-dark skin tone, twemoji style",
    "a castle, 3d style",
    "an astronaut riding a horse",
    "a blue car, gradient style",
)


@dataclass(frozen=True, kw_only=True)
class Diffusing:
    """`autoencoder` and `clip` are what recipes before it made, or pipelines' folders; or all parts of `start` go on.

    `freeze` names parts that learn no further ("text"); `tilt` is that of `objectives.denoising`; samples are drawn
    as `drawing` says, and so is what comes out unless a user asks otherwise.
    """

    model: UNetConfig
    noise: NoiseConfig
    autoencoder: Path | None = None
    clip: Path | None = None
    start: Path | None = None
    freeze: tuple[str, ...] = ()
    batch: int = 32
    captions: Mix = field(default_factory=Mix)
    tilt: float = 1.0
    drawing: DrawingDefaults = field(default_factory=DrawingDefaults)
    fit: FitConfig


@dataclass(frozen=True, kw_only=True)
class Recipe(Diffusing):
    """`latents` is a file that `python -m lab data emblem --latents` packed, where the data set is not here."""

    latents: Path | None = None


class TrainedDrawer(nn.Module):
    """What learns: the text tower and the U-Net that reads its states."""

    def __init__(self, text: TextTower, unet: UNet) -> None:
        super().__init__()
        self.text, self.unet = text, unet


@dataclass(frozen=True)
class Batches:
    """(latents (B, C, y, x), token ids of their captions (B, T)) of a step."""

    source: Source
    tokenizer: Tokenizer

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        texts, latents = self.source.at(step)
        return latents, read(self.tokenizer, texts)


def read(tokenizer: Tokenizer, texts: list[str], context: int = CONTEXT) -> Tensor:
    """Token ids (B, context), each text's first chunk, as `draw` hands them to the text tower."""
    return torch.from_numpy(np.stack([tokenizer.chunks([Segment(text)], context).ids[0] for text in texts]))


def train(recipe: Recipe, context: Context) -> Result[TrainedDrawer]:
    torch.manual_seed(recipe.fit.seed)
    begun = begin(recipe)
    vae, tokenizer = begun.vae.to(context.device), begun.tokenizer
    data = unpack(recipe.latents) if recipe.latents else of_pictures(vae, progress=context.progress)
    vae = rescaled(vae, data.scaling)
    latents = (data.latents.astype(np.float32) * data.scaling).astype(np.float16)

    source = Captioned(latents, data.items, data.draw(recipe.batch, recipe.fit.seed), recipe.captions)
    held = [item for item in data.items if item.split == "validation" and not item.tone][:128]
    unseen = torch.from_numpy(latents[[item.row for item in held]].astype(np.float32))
    said = [captions.plain_caption(item) for item in held]
    return fit_drawer(
        recipe, context, replace(begun, vae=vae), Batches(source, tokenizer), {"unseen": (said, unseen)}, SHOWN
    )


def fit_drawer(
    recipe: Diffusing,
    context: Context,
    begun: LatentDiffusion,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    held: Mapping[str, tuple[list[str], Tensor]],
    shown: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> Result[TrainedDrawer]:
    """Trains what `begun` has of text tower and U-Net on `batches` of scaled latents and token ids; `held` are captions
    and latents that only measurements see, by name, and samples are drawn of the prompts `shown`."""
    drawer = TrainedDrawer(begun.text, begun.unet).to(context.device)
    freeze(drawer, recipe.freeze)
    bar = torch.from_numpy(np.asarray(alphas_bar(recipe.noise))).to(context.device)
    unseen = {
        name: (latents.to(context.device), read(begun.tokenizer, said).to(context.device))
        for name, (said, latents) in held.items()
    }

    def loss(
        drawer: TrainedDrawer, latent: Tensor, ids: Tensor, generator: torch.Generator, tilt: float = 1.0
    ) -> Tensor:
        memory, kind = drawer.text(ids), recipe.noise.prediction
        return denoising(lambda x, time: drawer.unet(x, time, memory), latent, bar, kind, generator, tilt=tilt)

    def objective(drawer: TrainedDrawer, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        return Loss(loss(drawer, *batch, generator, recipe.tilt))

    def validate(drawer: TrainedDrawer, step: int) -> dict[str, float]:
        found = {}
        for name, batch in unseen.items():
            generator = torch.Generator(context.device).manual_seed(0)
            found[name] = float(loss(drawer, *batch, generator))
        return found

    def assemble(drawer: TrainedDrawer) -> LatentDiffusion:
        return LatentDiffusion(
            name="emblem",
            tokenizer=begun.tokenizer,
            text=drawer.text,
            unet=drawer.unet,
            vae=begun.vae,
            noise=recipe.noise,
        )

    def samples(drawer: TrainedDrawer, step: int) -> Image:
        return preview(assemble(drawer), recipe.drawing, shown)

    result = context.fit(recipe, drawer, batches, objective, facts=facts, samples=samples, validate=validate)
    path = context.folder / "model"
    save_latent_diffusion(assemble(result.model), path, dtype=torch.float16, max_shard_bytes=LARGEST)
    write_json(path / "qkv.json", asdict(recipe.drawing))
    return result


def begin(recipe: Diffusing) -> LatentDiffusion:
    """All parts in float32, as the recipe begins with them. Raises ConfigError where it does not say where they are."""
    if recipe.start is not None:
        model = load_latent_diffusion(recipe.start, dtype=torch.float32)
        if model.inpaints:
            raise ConfigError(f"start={recipe.start} draws into pictures only, which is not trained here")
        return model
    if recipe.autoencoder is None or recipe.clip is None:
        raise ConfigError("autoencoder and clip are both needed; or set start to a model folder that has them")
    text, tokenizer = read_text(recipe.clip)
    vae = load_vae(Folder(recipe.autoencoder)).float()
    return LatentDiffusion(
        name="emblem", tokenizer=tokenizer, text=text, unet=UNet(recipe.model), vae=vae, noise=recipe.noise
    )


def read_text(path: Path) -> tuple[TextTower, Tokenizer]:
    """The text tower and tokenizer of a CLIP's folder, or of a pipeline's."""
    folder = Folder(path)
    if folder.has("text_encoder/config.json"):
        return load_text_tower(folder, "text_encoder", dtype=torch.float32), Tokenizer.load(path / "tokenizer")
    text = load_clip(folder, dtype=torch.float32).text
    text.project = None  # the U-Net reads states, not the joined vector
    return text, Tokenizer.load(path)


def save_text(text: TextTower, tokenizer: Tokenizer, path: Path) -> None:
    """What `read_text` reads: a pipeline's folder of which only the text's part is there."""
    save_component(path / "text_encoder", TEXT_TOWER.export(text), dtype=torch.float16)
    tokenizer.save(path / "tokenizer")


def preview(model: LatentDiffusion, drawing: DrawingDefaults, shown: Sequence[str]) -> Image:
    """The prompts `shown`, each drawn four times, two prompts a line."""
    prompts = [prompt for prompt in shown for _ in range(4)]
    device = model.unet.enter.weight.device
    memory, unconditional = (model.text(read(model.tokenizer, texts).to(device)) for texts in (prompts, [""]))
    condition, empty = {"memory": memory}, {"memory": unconditional.expand(len(prompts), -1, -1)}

    def unet(given: Condition) -> Network:
        return partial(model.predict, read=model.remember(given["memory"]))

    network = guided(unet, condition, empty, drawing.guidance)
    side = model.unet.config.sample_size
    shape = (len(prompts), model.unet.config.channels, side, side)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    *_, last = sample(
        predict(network, model.noise), x, model.noise, "ddim", drawing.steps, noise=lambda: torch.zeros_like(x)
    )
    return contact_sheet(to_images(model.vae.decode(last.latent).float()), prompts)
