"""From a prompt to a picture. Read this first: every line below is one step of the way.

    prompt ─ tokens ─ memory ─┐
    seed ─── noise ─────── sampler ─ latent ─ picture ─ larger picture

Latent diffusion (2112.10752), with guidance (2207.12598). Pictures are computed one after another, each from its own
generator, so a picture is the same alone and in a batch of eight. Left out: drawing on from a picture, inpainting.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from qkv import device as devices
from qkv.core.record import record
from qkv.errors import CheckpointError, ConfigError, InputError
from qkv.loaded.drawer import Drawer, load_drawer
from qkv.loaded.upscaler import Enlarger, enlarger_beside
from qkv.loaded.where import AUTO, Where
from qkv.models.latent_diffusion import LatentDiffusion
from qkv.pictures.attention_map import AttentionMaps, heat_sheet
from qkv.pictures.enlarge import enlarge
from qkv.pictures.picture import Picture, Settings, Upscale
from qkv.pictures.request import SIZE_UNIT, Request, check_size, several, texts
from qkv.pictures.sheet import to_images
from qkv.registry import label
from qkv.sample.denoise import levels, sample
from qkv.sample.predict import Condition, Network, guided, predict
from qkv.text.tokenizer import Prompt
from qkv.text.weighting import parse, unsupported

DEFAULT = "emblem"  # the model, if nobody says which


class Progress(NamedTuple):
    """One step of one picture is done; `preview()` decodes the latent as it is now."""

    picture: int  # from 0
    pictures: int
    step: int  # from 1
    steps: int
    preview: Callable[[], Image.Image]


def draw(
    prompt: str | Sequence[str],
    *,
    negative: str | Sequence[str] | None = None,
    model: str | Path | None = None,
    count: int | None = None,
    seed: int | Sequence[int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
    eta: float | None = None,
    upscale: bool | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    attention: bool = False,
) -> list[Picture]:
    """`count` pictures of every prompt. What is None is the model's own default.

    Several prompts take one negative prompt or one each; `seed` is the first picture's (each next one has one more),
    or one for each picture; `size` is width and height in pixels, of the final picture where the model's own upscaler
    enlarges what was drawn (`upscale=False` leaves that). With `attention` the pictures bring heat maps.
    Raises InputError, NotFoundError, CheckpointError, ConfigError.
    """
    request = Request(
        prompts=texts(prompt),
        negatives=texts("" if negative is None else negative),
        count=1 if count is None else count,
        seeds=() if seed is None else several(seed),
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        size=size,
        eta=0.0 if eta is None else eta,
        upscale=upscale,
        attention=attention,
    )
    events = drawing(request, model, Where(device=device or "auto", dtype=dtype or "auto", threads=threads))
    return [event for event in events if isinstance(event, Picture)]


def drawing(request: Request, model: str | Path | None = None, where: Where = AUTO) -> Iterator[Progress | Picture]:
    """The same as one loop: a `Progress` after every step, a `Picture` whenever one is done.

    Everything is checked, and the model loaded, before this returns. Raises what `draw` does.
    """
    model = DEFAULT if model is None else model
    drawer = load_drawer(model, where)
    enlarger = None if request.upscale is False else enlarger_beside(model, where)
    if request.upscale and enlarger is None:
        raise InputError(f"upscale=True, but {label(model)} has no upscaler; enlarge its picture by: qkv upscale")
    settings, warnings = _settle(request, drawer, enlarger, label(model), where.threads)
    return devices.on_threads(where.threads, _draw_all(request, drawer, enlarger, settings, warnings))


@torch.inference_mode()
def _draw_all(
    request: Request, model: LatentDiffusion, enlarger: Enlarger | None, settings: Settings, warnings: list[str]
) -> Iterator[Progress | Picture]:
    seeds = request.choose_seeds()
    for number, seed in enumerate(seeds):
        prompt, negative = request.pairs[number // request.count]
        if number % request.count == 0:
            words, memory, negative_memory = read(model, prompt, negative if settings.guidance > 1 else "")
            request_warnings = [*warnings, *unsupported(prompt), *unsupported(negative)]
        mine = dataclasses.replace(settings, prompt=prompt, negative=negative, seed=seed)
        maps = AttentionMaps(_latent_size(model, mine)) if request.attention else None
        began = time.perf_counter()
        for step, latent in _denoise(model, memory, negative_memory, mine, maps):
            yield Progress(number, len(seeds), step, settings.steps, partial(_preview, model, latent))
        image, more = decode(model, latent)
        if enlarger:
            *_, (_, _, image) = enlarge(enlarger.network, image)
        sheet = heat_sheet(image, maps.words(words)) if maps else None
        seconds = time.perf_counter() - began
        yield Picture(image=image, settings=mine, warnings=(*request_warnings, *more), seconds=seconds, attention=sheet)


def read(model: LatentDiffusion, prompt: str, negative: str) -> tuple[Prompt, Tensor, Tensor]:
    """The prompt's words, and what the U-Net reads of both texts: (1, S, M) each, equally long."""
    context = model.context
    both = [model.tokenizer.chunks(parse(text), context) for text in (prompt, negative)]
    chunks = max(len(text.ids) for text in both)
    empty = model.tokenizer.chunks([], context)
    memory, negative_memory = (_encode(model, text, empty, chunks) for text in both)
    return both[0], memory, negative_memory


def _encode(model: LatentDiffusion, text: Prompt, empty: Prompt, chunks: int) -> Tensor:
    """The text tower's states of every chunk, one behind the other; empty chunks fill up to `chunks`."""
    missing = chunks - len(text.ids)
    ids = torch.from_numpy(np.concatenate([text.ids, *[empty.ids] * missing]))  # (N, T)
    weights = torch.from_numpy(np.concatenate([text.weights, *[empty.weights] * missing]))
    ids = ids.to(model.text.token.weight.device)
    states = _finite("text encoder", model.text, lambda: model.text(ids))  # (N, T, M)
    return _emphasise(states, weights.to(states.device)).flatten(0, 1)[None]  # (1, N * T, M)


def _emphasise(states: Tensor, weights: Tensor) -> Tensor:
    """States (N, T, M) times their token's weight (N, T), then back to each chunk's mean, as the web UI does it."""
    if bool((weights == 1).all()):
        return states
    mean = states.float().mean((1, 2), keepdim=True)
    weighted = states.float() * weights[:, :, None]
    return (weighted * (mean / weighted.mean((1, 2), keepdim=True))).to(states.dtype)


def _denoise(
    model: LatentDiffusion, memory: Tensor, negative_memory: Tensor, settings: Settings, maps: AttentionMaps | None
) -> Iterator[tuple[int, Tensor]]:
    """From the seed's noise to a latent: the number of each step and the latent (1, C, y, x) after it."""
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, model.unet.config.channels, *_latent_size(model, settings))

    def noise() -> Tensor:  # always drawn on the CPU, so that the device does not change the picture
        return torch.randn(shape, generator=generator).to(memory.device)

    def unet(condition: Condition) -> Network:
        read = model.remember(condition["memory"])

        def answer(x: Tensor, time: float) -> Tensor:
            with maps.watching(model.unet) if maps else nullcontext():
                return _finite("U-Net", model.unet, lambda: model.predict(x, time, read))

        return answer

    network = guided(unet, {"memory": memory}, {"memory": negative_memory}, settings.guidance)
    denoised = predict(network, model.noise)
    walk = sample(denoised, noise(), model.noise, settings.sampler, settings.steps, noise=noise, eta=settings.eta)
    for step in walk:
        yield step.number, step.latent


@torch.inference_mode()
def decode(model: LatentDiffusion, latent: Tensor) -> tuple[Image.Image, list[str]]:
    """The picture of a latent (1, C, y, x), and a warning if the autoencoder had to be run again in float32."""
    vae, dtype, warnings = model.vae, next(model.vae.parameters()).dtype, []
    try:
        pictures = _finite("autoencoder", vae, lambda: vae.decode(latent.to(dtype)))  # (1, 3, Y, X)
    except CheckpointError:
        if dtype is torch.float32:
            raise
        wide = copy.deepcopy(vae).float()
        pictures = _finite("autoencoder", wide, lambda: wide.decode(latent))
        warnings.append(f"vae-precision: the autoencoder overflowed in {_name(dtype)} and ran in float32")
    return to_images(pictures)[0], warnings


def _preview(model: LatentDiffusion, latent: Tensor) -> Image.Image:
    return decode(model, latent)[0]


def _finite(stage: str, module: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """What `run()` gives; CheckpointError names the first layer of `module` whose output is not finite, if any is."""
    result = run()
    if bool(result.isfinite().all()):
        return result
    with record(module) as outputs:
        run()
    layer = next((name for name, output in outputs.items() if not bool(output.isfinite().all())), "its end")
    raise CheckpointError(
        f"the {stage} gave NaN or infinity, first at {layer}; its weights are broken, or it needs dtype float32"
    )


def _settle(
    request: Request, model: Drawer, enlarger: Enlarger | None, name: str, threads: int | None
) -> tuple[Settings, list[str]]:
    """The settings that all pictures of a request share, and warnings. Raises what the model cannot do."""
    defaults, scale = model.defaults, enlarger.network.config.scale if enlarger else 1
    natural = (scale * model.size, scale * model.size)
    size = request.size or natural
    check_size(size, scale * max(SIZE_UNIT, model.vae.config.factor))
    settings = Settings(
        prompt="",
        seed=0,
        model=name,
        fingerprint=model.fingerprint,
        sampler=_sampler(request, model),
        steps=defaults.steps if request.steps is None else request.steps,
        guidance=float(defaults.guidance if request.guidance is None else request.guidance),
        eta=float(request.eta),
        size=size,
        device=model.unet.enter.weight.device.type,
        dtype=_name(model.unet.enter.weight.dtype),
        threads=threads or torch.get_num_threads(),
        versions={"qkv": version("qkv"), "torch": torch.__version__},
        upscale=_upscale(enlarger, name, size),
    )
    levels(model.noise, settings.sampler, settings.steps)
    if settings.eta and settings.sampler != "ddim":
        raise InputError(f"eta={settings.eta:g} with sampler {settings.sampler}: only ddim takes eta")
    warnings = [*model.warnings, *(enlarger.warnings if enlarger else ())]
    if settings.size != natural:
        given, trained = "{}x{}".format(*settings.size), "{}x{}".format(*natural)
        warnings.append(f"size: {given} is not the {trained} that the model was trained at; shapes may repeat or break")
    if settings.guidance <= 1 and any(request.negatives):
        warnings.append(
            f"negative-without-guidance: at guidance {settings.guidance:g} the negative prompt does nothing; "
            "set guidance above 1"
        )
    return settings, warnings


def _upscale(enlarger: Enlarger | None, name: str, size: tuple[int, int]) -> Upscale | None:
    if enlarger is None:
        return None
    scale = enlarger.network.config.scale
    drawn = (size[0] // scale, size[1] // scale)
    return Upscale(model=name, fingerprint=enlarger.fingerprint, scale=scale, size=drawn)


def _sampler(request: Request, model: LatentDiffusion) -> str:
    """The one that is asked for, or the authors' choice. ConfigError where that cannot be followed."""
    if sampler := request.sampler or model.noise.sampler:
        return sampler
    raise ConfigError(f"{model.noise.refused}; name a sampler, such as euler, to draw with another")


def _latent_size(model: LatentDiffusion, settings: Settings) -> tuple[int, int]:
    """Height and width of the latent."""
    width, height = settings.drawn
    return height // model.vae.config.factor, width // model.vae.config.factor


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in devices.DTYPES.items() if known is dtype)
