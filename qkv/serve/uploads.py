"""Pictures that clients send, as files or in base64; none is ever fetched from an address."""

import base64

from PIL import Image

from qkv.errors import InputError, shorten
from qkv.pictures.files import UnreadableError, decode

MAX_SAID = 40  # characters of a broken one that are shown


def from_base64(name: str, text: object) -> bytes:
    """The bytes of bare base64 or of a data URL. InputError."""
    if not isinstance(text, str):
        raise InputError(f"{name} is not a picture in base64")
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InputError(f"{name} is a data URL without base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        what = f"{name}={shorten(text, MAX_SAID)!r}"
        raise InputError(f"{what} is not a picture in base64; addresses are not fetched") from error


def opened(name: str, data: bytes, *, alpha: bool = False) -> Image.Image:
    """The picture in a file's bytes, in RGB, or with `alpha` in RGBA where it has any. InputError."""
    try:
        image, animated = decode(data, alpha=alpha)
    except UnreadableError as error:
        raise InputError(f"{name} cannot be read: {error}") from error
    if animated:
        raise InputError(f"{name} holds several pictures; send one of them")
    return image


def transparent(image: Image.Image) -> Image.Image | None:
    """White where the picture is transparent; None where it nowhere is."""
    if image.mode != "RGBA":
        return None
    mask = image.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0)
    return mask if mask.getbbox() else None
