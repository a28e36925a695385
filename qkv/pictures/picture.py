"""A drawn picture that knows how it was drawn, and the PNG file that keeps it.

The file carries two texts: `parameters`, the lines that AUTOMATIC1111's web UI writes and everybody reads, and `qkv`,
our `Settings` as JSON, from which the very same picture can be drawn again. Neither holds a time or a duration, so
the same picture is the same file. Left out: JPEG and WebP, and the node graphs of other tools.
"""

import io
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from qkv.atomic import replacing
from qkv.config import as_dict, build
from qkv.errors import ConfigError, InputError, OutputError, shorten
from qkv.models.noise import SamplerName
from qkv.pictures import others, png
from qkv.pictures.others import Parameters

MAX_FILE = 64 << 20  # of a picture that is read back
MAX_TEXT = 1 << 20

# Ours: the web UI's sampler and schedule type.
PUBLISHED_SAMPLERS: Mapping[SamplerName, tuple[str, str | None]] = {
    "ddpm": ("DDPM", None),
    "ddim": ("DDIM", None),
    "pndm": ("PLMS", None),
    "euler": ("Euler", None),
    "euler_ancestral": ("Euler a", None),
    "heun": ("Heun", None),
    "dpmpp_2m": ("DPM++ 2M", None),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "unipc": ("UniPC", None),
    "lcm": ("LCM", None),
    "flow_euler": ("Flow Euler", None),
}


UPSCALED = "qkv upscale"  # the keyword of what was done to a picture after it was drawn, a JSON object a line


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """How a picture was enlarged, and from which size."""

    model: str
    fingerprint: str  # of the upscaler's files
    scale: int
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides how a picture looks; sizes in pixels, width first."""

    prompt: str
    negative: str = ""
    seed: int
    model: str  # its name, or its folder's: nothing of where that lies
    fingerprint: str  # of the model's files
    sampler: str
    steps: int
    guidance: float
    eta: float = 0.0
    size: tuple[int, int]  # of the picture as it is, enlarged if it was
    device: str
    dtype: str
    threads: int
    versions: dict[str, str]
    upscale: Upscale | None = None
    image: str | None = None  # where it began from one: a hash of it
    mask: str | None = None
    strength: float | None = None

    @property
    def drawn(self) -> tuple[int, int]:
        """The size that the decoder gave."""
        return self.upscale.size if self.upscale else self.size


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A result of `draw`. `warnings` say what was asked for and could not be honoured as it was."""

    image: Image.Image
    settings: Settings
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    attention: Image.Image | None = field(default=None, repr=False)  # the heat maps, if they were asked for

    @property
    def prompt(self) -> str:
        return self.settings.prompt

    @property
    def negative(self) -> str:
        return self.settings.negative

    @property
    def seed(self) -> int:
        return self.settings.seed

    def save(self, path: str | Path) -> Path:
        """Writes a PNG file, whole or not at all. Raises OutputError."""
        return _write(path, self.png())

    def png(self) -> bytes:
        """The PNG file."""
        return _png(self.image, {"parameters": parameters(self.settings), "qkv": json.dumps(as_dict(self.settings))})


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """A result of `upscale`. `texts` are those of the picture's file, by their keywords."""

    image: Image.Image
    upscale: Upscale
    texts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def save(self, path: str | Path) -> Path:
        """Writes a PNG file, whole or not at all. Raises OutputError."""
        return _write(path, self.png())

    def png(self) -> bytes:
        """The PNG file, with the texts that were there and what was done."""
        done = [*self.texts.get(UPSCALED, "").splitlines(), json.dumps(as_dict(self.upscale))]
        texts = {**self.texts, UPSCALED: "\n".join(done)}
        if "parameters" in texts:
            texts["parameters"] += ", " + _line(_enlarging(self.upscale))
        return _png(self.image, texts)


def _write(path: str | Path, data: bytes) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"cannot write {path}: pictures are PNG files; give a name that ends in .png")
    with replacing(path) as file:
        file.write(data)
    return path


def _png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for keyword, text in texts.items():
        info.add_text(keyword, _valid(text))
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _valid(text: str) -> str:
    """`text` as a PNG may hold it: no half surrogate pairs, no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")


def parameters(settings: Settings) -> str:
    """The web UI's lines: prompt, negative prompt, then everything else on one line."""
    sampler, schedule = PUBLISHED_SAMPLERS.get(settings.sampler, (settings.sampler, None))  # type: ignore[call-overload]
    fields = {
        "Steps": settings.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{settings.guidance:g}",
        "Seed": settings.seed,
        "Size": "{}x{}".format(*settings.drawn),
        "Model hash": settings.fingerprint,
        "Model": Path(settings.model).name,
        "Denoising strength": None if settings.strength is None else f"{settings.strength:g}",
        "Eta": settings.eta or None,
        "RNG": "CPU",
        "Version": f"qkv {settings.versions.get('qkv', '')}",
        **(_enlarging(settings.upscale) if settings.upscale else {}),
    }
    line = _line(fields)
    negative = [f"{_NEGATIVE} {settings.negative}"] if settings.negative else []
    return "\n".join([settings.prompt, *negative, line])


def _line(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items() if value is not None)


def _enlarging(upscale: Upscale) -> dict[str, Any]:
    """The web UI's words for it."""
    return {"Postprocess upscale by": upscale.scale, "Postprocess upscaler": upscale.model}


_NEGATIVE = "Negative prompt:"
# Matched at one place after the other and without giving back, so that hostile text costs linear time.
_FIELD = re.compile(r'\s*+(?P<name>\w[\w \-/]++):\s*+(?P<value>"(?:\\.|[^\\"])*+"|[^,]*+)(?:,|$)')


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def parse_parameters(text: str) -> Parameters:
    """Reads the web UI's lines, of our pictures and others'. The last line counts if it has at least 3 fields."""
    *lines, last = text.strip().split("\n")
    fields = _fields(last)
    if len(fields) < 3:
        lines, fields = [*lines, last], {}
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part, line = negative, line.removeprefix(_NEGATIVE).strip()
        part.append(line)
    return Parameters("\n".join(prompt).strip(), "\n".join(negative).strip(), fields)


def _fields(line: str) -> dict[str, str]:
    fields = {}
    start = 0
    while start < len(line):
        match = _FIELD.match(line, start)
        if match:
            fields[match["name"]] = _unquoted(match["value"].strip())
        start = match.end() if match else line.find(",", start) + 1 or len(line)
    return fields


def _unquoted(value: str) -> str:
    try:
        plain = json.loads(value) if value.startswith('"') else value
    except ValueError:
        return value
    return plain if isinstance(plain, str) else value


class Written(NamedTuple):
    """The settings that a picture file holds."""

    settings: Settings | None  # ours
    parameters: Parameters | None  # the web UI's, or another tool's put into its words
    tool: str | None = None  # who drew it, where there is neither
    upscaled: bool = False  # afterwards


def read(path: str | Path) -> Written:
    """The texts in a PNG file; its pixels are not looked at. Raises InputError, also for a hostile file."""
    where = shorten(str(path), 200)
    data = _read_file(path, where)
    try:
        texts = png.texts(data, ("qkv", "parameters", UPSCALED), MAX_TEXT)
        given = texts.get("parameters")
        parameters = (others.from_json(given) or parse_parameters(given)) if given else None
    except ValueError as error:  # InputError is one
        raise InputError(f"cannot read {where}: {error}") from error
    settings = _read_settings(texts["qkv"], path) if texts.get("qkv") else None
    return Written(settings, parameters, png.has(data, others.TOOLS), UPSCALED in texts)


def _read_file(path: str | Path, where: str) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            raise InputError(f"{where} is not a picture file of at most {MAX_FILE >> 20} MiB")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from error
    if not data.startswith(png.SIGNATURE):
        raise InputError(f"cannot read {where}: it is not a PNG picture")
    return data


def _read_settings(text: str, path: str | Path) -> Settings:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ConfigError("it is not a JSON object")
        return build(Settings, values)
    except (ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise InputError(f"{path}: its `qkv` text cannot be read: {shorten(str(error))}") from error
