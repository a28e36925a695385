"""What is asked of `draw`, checked: nothing is computed or allocated for a request that cannot be."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from qkv.config import make_plain, plain
from qkv.errors import InputError, quoted, shorten
from qkv.models.noise import SamplerName
from qkv.pictures import initial
from qkv.pictures.others import Parameters
from qkv.pictures.picture import PUBLISHED_SAMPLERS, Settings, read
from qkv.sample.denoise import find
from qkv.text.weighting import check_length

MAX_PICTURES = 1000
MAX_PIXELS = 2048 * 2048
MAX_STEPS = 100_000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1  # torch.Generator's, and ComfyUI's
SIZE_UNIT = 8  # pixels


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish for pictures: `count` of every prompt, in order. None stands for the model's own default.

    `negatives` holds one text for all prompts or one each; `seeds` none (they are chosen), the first picture's (each
    next one has one more), or one for each picture. `size` is width and height of the final picture. `upscale` says
    whether the model's upscaler enlarges what was drawn (None: if it has one). `sampler` may be called as the web UI
    calls it ("Euler a"). With `image`, drawing starts from it: it is made `strength` noisy (1 is nothing but noise;
    None is 0.8, or 1 with a mask); `mask` is white where it is drawn anew. Raises InputError, NotFoundError.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...] = ("",)
    count: int = 1
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    size: tuple[int, int] | None = None
    eta: float = 0.0
    upscale: bool | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    strength: float | None = None
    attention: bool = False  # also heat maps of where every word was looked at

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("prompts", "negatives", "seeds"):
            object.__setattr__(self, name, several(getattr(self, name)))
        _whole("count", self.count, 1, MAX_PICTURES)
        if not 1 <= self.pictures <= MAX_PICTURES:
            raise InputError(f"{len(self.prompts)} prompts, {self.count} of each: ask for 1 to {MAX_PICTURES} pictures")
        for prompt in self.prompts:
            _text("prompt", prompt)
            if not prompt.strip():
                raise InputError("the prompt is empty; say what to draw")
        for negative in self.negatives:
            _text("negative", negative)
        if len(self.negatives) not in (1, len(self.prompts)):
            raise InputError(
                f"{len(self.negatives)} negative prompts for {len(self.prompts)} prompts; give one, or one each"
            )
        if len(self.seeds) not in (0, 1, self.pictures):
            raise InputError(f"{len(self.seeds)} seeds for {self.pictures} pictures; give one, or one each")
        for seed in self.seeds:
            _whole("seed", seed, 0, MAX_SEED + 1 - (self.pictures if len(self.seeds) == 1 else 1))
        if self.steps is not None:
            _whole("steps", self.steps, 1, MAX_STEPS)
        if self.guidance is not None:
            _number("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        _number("eta", self.eta, 0.0, 1.0)
        if self.sampler is not None:
            if isinstance(self.sampler, str):
                object.__setattr__(self, "sampler", _SAMPLERS.get(self.sampler, self.sampler))
            find(self.sampler)
        if self.size is not None:
            check_size(self.size, SIZE_UNIT)
        if self.upscale is not None and not isinstance(self.upscale, bool):
            raise InputError(f"upscale={quoted(self.upscale)} is not true or false")
        self._check_image()

    def _check_image(self) -> None:
        for name in ("strength", "mask"):
            if self.image is None and getattr(self, name) is not None:
                raise InputError(f"there is a {name}, but no image that it is for; give one")
        if self.strength is not None:
            _number("strength", self.strength, 0.0, 1.0)
        if self.image is not None:
            object.__setattr__(self, "image", initial.checked("image", self.image))
            usual = 0.8 if self.mask is None else 1.0
            object.__setattr__(self, "strength", usual if self.strength is None else self.strength)
        if self.image is not None and self.mask is not None:
            object.__setattr__(self, "mask", initial.checked_mask(self.mask, self.image.size))

    @property
    def pictures(self) -> int:
        return len(self.prompts) * self.count

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every prompt with its negative prompt."""
        negatives = self.negatives if len(self.negatives) > 1 else self.negatives * len(self.prompts)
        return list(zip(self.prompts, negatives))

    def choose_seeds(self) -> list[int]:
        """A seed for every picture; where none was given, the first is drawn by lot."""
        if len(self.seeds) == self.pictures:
            return list(self.seeds)
        first = self.seeds[0] if self.seeds else secrets.randbelow(2**32)
        return [first + number for number in range(self.pictures)]


def texts(given: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several as a tuple; what is neither is refused later, by name."""
    return several(given)


def several(given: Any) -> tuple[Any, ...]:
    """A value, or several, as a tuple."""
    given = plain(given)
    return given if isinstance(given, tuple) else (given,)


def check_size(size: tuple[int, int], unit: int) -> None:
    """InputError unless width and height are multiples of `unit` pixels, and not absurdly many."""
    if not isinstance(size, tuple) or len(size) != 2:
        raise InputError(f"size={quoted(size)} is not width and height")
    for name, side in zip(("width", "height"), size):
        _whole(name, side, 1, MAX_PIXELS)
        if side % unit:
            near = max(unit, round(side / unit) * unit)
            raise InputError(f"{name}={side} is not a multiple of {unit}; the nearest is {near}")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"size {size[0]}x{size[1]} has more than {MAX_PIXELS:,} pixels; ask for a smaller picture")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name}={quoted(value)} is not a text")
    check_length(value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is no Unicode text: half a surrogate pair at character {error.start}") from error


def _whole(name: str, value: object, low: int, high: int) -> None:
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name}={quoted(value)} is not a whole number in {low}..{high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    value = plain(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:  # NaN is not
        raise InputError(f"{name}={quoted(value)} is not a number in {low:g}..{high:g}")


class Again(NamedTuple):
    """The options that draw the picture of a file again."""

    asked: dict[str, Any]  # fields of Request
    settings: Settings | None  # ours, if qkv drew it
    warnings: tuple[str, ...] = ()  # what it says and cannot be honoured


def written_in(path: str | Path, *, image: bool = False, mask: bool = False) -> Again:
    """What to ask for so that the picture at `path` is drawn again, where it began from a picture from the same one:
    `image` and `mask` say whether they are there.

    A picture of another tool gives what its `parameters` say; it cannot come out the same, and a warning says so.
    Raises InputError.
    """
    settings, parameters, tool, upscaled = read(path)
    if settings is not None:
        asked: dict[str, Any] = {
            "prompts": (settings.prompt,),
            "negatives": (settings.negative,),
            "seeds": (settings.seed,),
        }
        for name, there in (("image", image), ("mask", mask)):
            if getattr(settings, name) and not there:
                raise InputError(f"{path} began from a picture that it does not hold; give its {name} with --{name}")
        same = ("steps", "guidance", "sampler", "size", "eta", "strength")
        asked |= {name: getattr(settings, name) for name in same}
        later = (
            (f"upscaled-since: {path} was enlarged after it was drawn; this draws it as it was",) if upscaled else ()
        )
        return Again(asked | {"upscale": settings.upscale is not None}, settings, later)
    if parameters is None and tool is not None:
        raise InputError(f"{path} was drawn by {tool}, whose settings are not read; give its prompt yourself")
    if parameters is None:
        raise InputError(f"{path} does not say how it was drawn; it has neither a `qkv` nor a `parameters` text")
    return _from_web_ui(parameters, path, image)


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


_SAMPLERS = {" ".join(filter(None, names)): ours for ours, names in PUBLISHED_SAMPLERS.items()}
_AUTOMATIC = {"DPM++ 2M": "Karras"}  # what the web UI's automatic schedule is, where it is not the plain one
_READ: dict[str, tuple[str, Callable[[str], Any]]] = {  # the web UI's field: ours, and how it is read
    "Seed": ("seeds", lambda text: (int(text),)),
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Size": ("size", _pixels),
}
# Fields that change nothing here, the last two in one value only.
_TELLING_NOTHING = {"Model hash": None, "Version": None, "Clip skip": "1", "RNG": "CPU"}


def web_uis_sampler(sampler: str, schedule: str) -> SamplerName | None:
    """Ours, that the web UI calls by these two names; None for a pair that we have not."""
    if schedule == "Automatic":
        schedule = _AUTOMATIC.get(sampler, "")
    return _SAMPLERS.get(f"{sampler} {schedule}" if schedule else sampler)


def _from_web_ui(parameters: Parameters, path: str | Path, image: bool) -> Again:
    asked: dict[str, Any] = {"prompts": (parameters.prompt,), "negatives": (parameters.negative,)}
    rest = dict(parameters.fields)
    sampler, schedule = rest.pop("Sampler", ""), rest.pop("Schedule type", "")
    if sampler:
        known = web_uis_sampler(sampler, schedule)
        if known is None and schedule not in ("", "Automatic"):
            rest["Schedule type"] = schedule
        # An unknown one may be replaced before it is refused.
        asked["sampler"] = known or _SAMPLERS.get(sampler, sampler)
    readers = _READ | ({"Eta": ("eta", float)} if asked.get("sampler") == "ddim" else {})
    readers |= {"Denoising strength": ("strength", float)} if image else {}
    for name, (ours, read_field) in readers.items():
        if value := rest.pop(name, ""):
            try:
                asked[ours] = read_field(value)
            except ValueError as error:
                raise InputError(f"{path}: its `parameters` cannot be read: {name}: {shorten(value)}") from error
    lost = [f"{name}: {value}" for name, value in rest.items() if _TELLING_NOTHING.get(name, "") not in (None, value)]
    warning = f"another-tool: {path} was not drawn by qkv and cannot come out the same"
    if lost:
        warning += f"; not honoured: {shorten(', '.join(lost), 200)}"
    return Again(asked, None, (warning,))
