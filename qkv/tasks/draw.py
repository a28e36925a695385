"""From a prompt to a picture. Read this first: every line below is one step of the way.

    prompt ─ tokens ─ memory ─┐
    seed ─── noise ─────── sampler ─ latent ─ picture ─ larger picture
    picture, mask ─ latent ───┘

Latent diffusion (2112.10752), with guidance (2207.12598). Pictures are computed one after another, each from its own
generator, so a picture is the same alone and in a batch of eight. Drawing may begin from a picture, and keep what a
mask says of it (pictures/initial.py).
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
from qkv.models.vae import VAE
from qkv.pictures import initial
from qkv.pictures.attention_map import AttentionMaps, heat_sheet
from qkv.pictures.enlarge import enlarge
from qkv.pictures.initial import Beginning, Initial, Spread
from qkv.pictures.picture import Picture, Settings, Upscale
from qkv.pictures.request import SIZE_UNIT, Request, check_size, several, texts
from qkv.pictures.sheet import to_images
from qkv.registry import DEFAULTS, label
from qkv.sample.denoise import first_row, levels, sample
from qkv.sample.predict import Condition, Network, guided, predict
from qkv.text.tokenizer import Prompt
from qkv.text.weighting import parse, unsupported


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
    image: Image.Image | str | Path | None = None,
    mask: Image.Image | str | Path | None = None,
    strength: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    attention: bool = False,
) -> list[Picture]:
    """`count` pictures of every prompt. What is None is the model's own default.

    Several prompts take one negative prompt or one each; `seed` is the first picture's (each next one has one more),
    or one for each picture; `size` is width and height in pixels, of the final picture where the model's own upscaler
    enlarges what was drawn (`upscale=False` leaves that). Drawing begins from `image`, if there is one, made `strength`
    noisy; where `mask` is black, it stays. With `attention` the pictures bring heat maps.
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
        image=initial.as_image(image),
        mask=initial.as_image(mask),
        strength=strength,
        attention=attention,
    )
    events = drawing(request, model, Where(device=device or "auto", dtype=dtype or "auto", threads=threads))
    return [event for event in events if isinstance(event, Picture)]


def drawing(request: Request, model: str | Path | None = None, where: Where = AUTO) -> Iterator[Progress | Picture]:
    """The same as one loop: a `Progress` after every step, a `Picture` whenever one is done.

    Everything is checked, and the model loaded, before this returns. Raises what `draw` does.
    """
    model = DEFAULTS["pictures"] if model is None else model
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
    base, base_warnings = _initial(request, model, settings)
    steps = settings.steps - _first(settings)
    for number, seed in enumerate(seeds):
        prompt, negative = request.pairs[number // request.count]
        if number % request.count == 0:
            words, memory, negative_memory = read(model, prompt, negative if settings.guidance > 1 else "")
            request_warnings = [*warnings, *base_warnings, *unsupported(prompt), *unsupported(negative)]
        mine = dataclasses.replace(settings, prompt=prompt, negative=negative, seed=seed)
        maps = AttentionMaps(_latent_size(model, mine)) if request.attention else None
        began = time.perf_counter()
        for step, latent in _denoise(model, memory, negative_memory, mine, maps, base):
            yield Progress(number, len(seeds), step, steps, partial(_preview, model, latent))
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


def _initial(request: Request, model: LatentDiffusion, settings: Settings) -> tuple[Initial | None, list[str]]:
    """The picture that a request begins from, as the autoencoder sees it, and warnings."""
    if request.image is None:
        return None, []
    pixels = initial.pixels(request.image, settings.drawn).to(model.device)
    picture, warnings = encode(model, pixels)
    if request.mask is None:
        return Initial(model.vae, picture), warnings
    white = initial.white(request.mask, settings.drawn).to(model.device)
    factor = model.vae.config.factor
    rest = encode(model, pixels * ~white)[0] if model.inpaints else None
    return Initial(model.vae, picture, white[..., ::factor, ::factor], rest), warnings


def _first(settings: Settings) -> int:
    """The row of the schedule where drawing begins."""
    return 0 if settings.strength is None else first_row(settings.steps, settings.strength)


def _denoise(
    model: LatentDiffusion,
    memory: Tensor,
    negative_memory: Tensor,
    settings: Settings,
    maps: AttentionMaps | None,
    base: Initial | None,
) -> Iterator[tuple[int, Tensor]]:
    """From the seed's noise to a latent: the number of each step and the latent (1, C, y, x) after it."""
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, model.vae.config.latent_channels, *_latent_size(model, settings))

    def noise() -> Tensor:  # always drawn on the CPU, so that the device does not change the picture
        return torch.randn(shape, generator=generator).to(memory.device)

    x, start, keep, seen = base.begin(_first(settings), noise) if base else Beginning(noise())

    def unet(condition: Condition) -> Network:
        read = model.remember(condition["memory"])

        def answer(x: Tensor, time: float) -> Tensor:
            with maps.watching(model.unet) if maps else nullcontext():
                return _finite("U-Net", model.unet, lambda: model.predict(x, time, read, seen))

        return answer

    network = guided(unet, {"memory": memory}, {"memory": negative_memory}, settings.guidance)
    denoised, walk = predict(network, model.noise), (model.noise, settings.sampler, settings.steps)
    for step in sample(denoised, x, *walk, noise=noise, eta=settings.eta, start=start, keep=keep):
        yield step.number, step.latent


def encode(model: LatentDiffusion, pixels: Tensor) -> tuple[Spread, list[str]]:
    """The latents that a picture (1, 3, Y, X) in [-1, 1] may have, and a warning as `decode` gives it."""
    both, warnings = _autoencode(model.vae, pixels, lambda vae, pixels: torch.cat(vae.distribution(pixels), dim=1))
    return Spread(*both.float().chunk(2, dim=1)), warnings


@torch.inference_mode()
def decode(model: LatentDiffusion, latent: Tensor) -> tuple[Image.Image, list[str]]:
    """The picture of a latent (1, C, y, x), and a warning if the autoencoder had to be run again in float32."""
    pictures, warnings = _autoencode(model.vae, latent, VAE.decode)  # (1, 3, Y, X)
    return to_images(pictures)[0], warnings


def _autoencode(vae: VAE, x: Tensor, run: Callable[[VAE, Tensor], Tensor]) -> tuple[Tensor, list[str]]:
    """What `run` makes of x in the autoencoder's own precision, or in float32 with a warning."""
    dtype = next(vae.parameters()).dtype
    try:
        return _finite("autoencoder", vae, lambda: run(vae, x.to(dtype))), []
    except CheckpointError:
        if dtype is torch.float32:
            raise
        wide = copy.deepcopy(vae).float()
        warning = f"vae-precision: the autoencoder overflowed in {_name(dtype)} and ran in float32"
        return _finite("autoencoder", wide, lambda: run(wide, x.float())), [warning]


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
        image=initial.digest(request.image),
        mask=initial.digest(request.mask),
        strength=None if request.strength is None else float(request.strength),
    )
    levels(model.noise, settings.sampler, settings.steps)
    _first(settings)
    if model.inpaints and request.mask is None:
        raise InputError(f"{name} draws into pictures only; give it an image and a mask")
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
    if request.image is not None and request.image.size != settings.drawn:
        given, drawn = ("{}x{}".format(*size) for size in (request.image.size, settings.drawn))
        warnings.append(f"image-size: the picture of {given} was resampled to {drawn}")
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
