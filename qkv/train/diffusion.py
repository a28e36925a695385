"""Recipe 3 of emblem: the U-Net, from a noisy latent and a caption to the clean latent.

Latents are computed once with the finished autoencoder, captions drawn anew at every step and read by the
finished text tower. What comes out is a whole model folder.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from rich.progress import track
from torch import Tensor

from qkv.data import captions, emblem
from qkv.data.items import Item
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.models.noise import NoiseConfig
from qkv.models.unet import UNet, UNetConfig
from qkv.models.vae import VAE
from qkv.sample.denoise import sample
from qkv.sample.predict import guided, predict
from qkv.sample.schedules import alphas_bar
from qkv.tasks.sheet import contact_sheet, to_images
from qkv.text.tokenizer import Tokenizer
from qkv.text.weighting import Segment
from qkv.train.data import Draw, Pictures, to_signed
from qkv.train.loop import FitConfig, Loss, Result, fit
from qkv.train.objectives import denoising
from qkv.train.recipes import Context, facts
from qkv.weights.clip import load_clip
from qkv.weights.diffusers import load_unet, load_vae, save_latent_diffusion
from qkv.weights.files import replacing
from qkv.weights.folder import Folder

Latents = npt.NDArray[np.float16]
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
class Recipe:
    """`autoencoder` and `clip` are what recipes 1 and 2 made; `start` a model folder to take the U-Net from.

    `uncaptioned`, `foreign` and `unstyled` are the shares of captions that are empty, in another language than
    English, and silent about the drawing's style. `tilt` is that of `objectives.denoising`.
    """

    model: UNetConfig
    noise: NoiseConfig
    autoencoder: Path
    clip: Path
    start: Path | None = None
    batch: int = 32
    uncaptioned: float = 0.1
    foreign: float = 0.1
    unstyled: float = 0.15
    tilt: float = 1.0
    guidance: float = 4.0
    fit: FitConfig


@dataclass(frozen=True)
class Batches:
    """(latents (B, C, y, x), token ids of their captions (B, T)) of a step; a part of the captions is empty."""

    latents: Latents
    items: list[Item]
    draw: Draw
    tokenizer: Tokenizer
    recipe: Recipe

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self.draw.at(step)
        rng = random.Random(f"{self.draw.seed} {step}")
        ids = read(self.tokenizer, [self._caption(self.items[row], rng) for row in rows])
        return torch.from_numpy(self.latents[rows].astype(np.float32)), ids

    def _caption(self, item: Item, rng: random.Random) -> str:
        if rng.random() < self.recipe.uncaptioned:
            return ""
        language = rng.choice(captions.languages()) if rng.random() < self.recipe.foreign else "en"
        styled = rng.random() >= self.recipe.unstyled
        return captions.caption(item, rng, language=language, styled=styled)


def read(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Token ids (B, T), each text's first chunk, as `draw` hands them to the text tower."""
    return torch.from_numpy(np.stack([tokenizer.chunks([Segment(text)]).ids[0] for text in texts]))


def encode(vae: VAE, pictures: Pictures, cache: Path, *, progress: bool = True) -> Latents:
    """The unscaled mean latents (N, C, y, x) of all pictures, kept in `cache` under a hash of both."""
    digest = hashlib.sha256(np.ascontiguousarray(pictures).data)
    for parameter in vae.encoder.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    path = cache / f"latents-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        device = next(vae.parameters()).device
        made = []
        for start in track(range(0, len(pictures), 32), "latents", disable=not progress):
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
                mean, _ = vae.distribution(to_signed(pictures[start : start + 32]).to(device))
            made.append(mean.half().cpu().numpy())
        with replacing(path) as file:
            np.save(file, np.concatenate(made))
    latents: Latents = np.load(path)
    return latents


def train(recipe: Recipe, context: Context) -> Result[UNet]:
    data = emblem.load()
    vae = load_vae(Folder(recipe.autoencoder)).float().to(context.device)
    latents = encode(vae, data.pictures, emblem.data_folder().parent / "latents", progress=context.progress)
    text, tokenizer = load_clip(Folder(recipe.clip)).text.to(context.device), Tokenizer.load(recipe.clip)
    text.project = None  # the U-Net reads states, not the joined vector

    seen = [item for item in data.items if item.split == "train"]
    scaling = float(1 / latents[[item.row for item in seen]].astype(np.float32).std())
    vae = rescaled(vae, scaling)
    latents = (latents.astype(np.float32) * scaling).astype(np.float16)

    torch.manual_seed(recipe.fit.seed)
    unet = load_unet(Folder(recipe.start)).float() if recipe.start else UNet(recipe.model)
    unet = unet.to(context.device)
    draw = Draw.of([item.row for item in seen], [item.weight for item in seen], recipe.batch, recipe.fit.seed)
    batches = Batches(latents, data.items, draw, tokenizer, recipe)
    bar = torch.from_numpy(np.asarray(alphas_bar(recipe.noise))).to(context.device)
    held = [item for item in data.items if item.split == "validation" and not item.tone][:128]
    held_ids = read(tokenizer, [captions.plain_caption(item) for item in held]).to(context.device)
    held_latents = torch.from_numpy(latents[[item.row for item in held]].astype(np.float32)).to(context.device)

    def loss(unet: UNet, latent: Tensor, ids: Tensor, generator: torch.Generator, tilt: float = 1.0) -> Tensor:
        with torch.no_grad():
            memory = text(ids)
        kind = recipe.noise.prediction
        return denoising(lambda x, time: unet(x, time, memory), latent, bar, kind, generator, tilt=tilt)

    def objective(unet: UNet, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        return Loss(loss(unet, *batch, generator, recipe.tilt))

    def validate(unet: UNet, step: int) -> dict[str, float]:
        generator = torch.Generator(context.device).manual_seed(0)
        return {"unseen": float(loss(unet, held_latents, held_ids, generator))}

    def samples(unet: UNet, step: int) -> Image:
        return preview(assemble(unet), recipe.guidance)

    def assemble(unet: UNet) -> LatentDiffusion:
        return LatentDiffusion(name="emblem", tokenizer=tokenizer, text=text, unet=unet, vae=vae, noise=recipe.noise)

    result = fit(
        unet,
        batches,
        objective,
        recipe.fit,
        context.folder,
        recipe={"task": "diffusion", **facts(recipe)},
        resume=context.resume,
        samples=samples,
        validate=validate,
        progress=context.progress,
    )
    save_latent_diffusion(assemble(result.model), context.folder / "model", dtype=torch.float16)
    return result


def rescaled(vae: VAE, scaling: float) -> VAE:
    """The same autoencoder with latents `scaling` times as large."""
    copy = VAE(replace(vae.config, scaling=scaling)).to(next(vae.parameters()).device)
    copy.load_state_dict(vae.state_dict())
    return copy.eval()


def preview(model: LatentDiffusion, guidance: float) -> Image:
    """SHOWN, each drawn four times, a row of four prompts a line."""
    prompts = [prompt for prompt in SHOWN for _ in range(4)]
    device = model.unet.enter.weight.device
    memory, nothing = (model.text(read(model.tokenizer, texts).to(device)) for texts in (prompts, [""]))
    condition, empty = {"memory": memory}, {"memory": nothing.expand(len(prompts), -1, -1)}
    network = guided(lambda x, time, given: model.predict(x, time, given["memory"]), condition, empty, guidance)
    side = model.unet.config.sample_size
    shape = (len(prompts), model.unet.config.channels, side, side)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    *_, last = sample(predict(network, model.noise), x, model.noise, "ddim", 20, noise=lambda: torch.zeros_like(x))
    return contact_sheet(to_images(model.vae.decode(last.latent).float()), prompts)
