"""Icons become pictures: SVG or WebP in, 128 x 128 RGB on white out, with the words for their colours.

Place: `python -m lab data emblem`, between the packages and the items. Every icon is centred by its silhouette and
scaled by its set's own factor, so that the sets fill the frame alike while a small square stays smaller than
a large one. Left out: recolouring, dark variants, animation.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from qkv.errors import CheckpointError, MissingDependencyError

SIZE = 128  # pixels a side
MARGIN = 4  # white pixels that even the largest silhouette keeps on each side
CANVAS = 256  # the side at which icons are rendered before they are resized: twice oversampled

Picture = npt.NDArray[np.uint8]  # (Y, X, 3)
Silhouette = npt.NDArray[np.bool_]  # (Y, X)

# sRGB examples of every colour word; a pixel takes the word of the nearest example in CIELAB.
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("#ee3a5c", "#e6263a", "#be1931", "#f8312f", "#ff5050", "#8b0f1e"),
    "orange": ("#ff8a00", "#f4900c", "#ff6723", "#f57c00", "#ffa040"),
    "yellow": ("#ffcc22", "#ffdc5d", "#fcea2b", "#ffe680", "#fcc21b", "#f2c500"),
    "green": ("#5c9e31", "#78b159", "#00a651", "#2e7d32", "#86d72f", "#b7d96a", "#1b5e20", "#747c3c", "#556b2f"),
    "teal": ("#00a6a6", "#26c6b0", "#008080", "#5fd3c8"),
    "blue": ("#3b88c3", "#0074ba", "#55acee", "#1565c0", "#2244cc", "#8ac8f5", "#b3e1ff", "#1a237e"),
    "purple": ("#8d65c5", "#aa4fc8", "#7c3aed", "#5c2d91", "#b39ddb"),
    "pink": ("#ea596e", "#ff8cb4", "#f48fb1", "#f8bbd0", "#e91e8c", "#ffb3c7"),
    "brown": ("#a0643c", "#7d4533", "#5d4037", "#6d4c41", "#c1694f", "#8a4b2a", "#4a2c20", "#a98862"),
    "beige": ("#fadcbc", "#f3d2a2", "#e8c9a0", "#e0b890", "#f7dece", "#fff0d5"),
    "black": ("#000000", "#1c1c1c", "#2b2b2b", "#3c3c3c", "#454545", "#2e1a3c"),
    "grey": ("#808080", "#9e9e9e", "#616161", "#b4b4b4", "#8899a6", "#66757f", "#4a5560", "#ccd6dd"),
    "white": ("#ffffff", "#f2f2f2", "#e8eef2"),
}
SHARE = 0.12  # of the silhouette that a colour covers before it is named
MOST = 3  # colour words a picture


def draw_svg(svg: str, scale: float) -> tuple[Picture, Silhouette]:
    """An SVG document as a picture on white. `scale`: see `place`. Raises CheckpointError if it cannot be drawn."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependencyError.needs("resvg-py", "train") from error
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=CANVAS, height=CANVAS, skip_system_fonts=True)
    except ValueError as error:
        raise CheckpointError(f"cannot draw an icon: {error}") from error
    return place(Image.open(io.BytesIO(bytes(png))), scale)


def draw_file(path: Path, scale: float) -> tuple[Picture, Silhouette]:
    """A picture file with transparency as a picture on white; as `draw_svg`."""
    try:
        with Image.open(path) as image:
            return place(image, scale)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error}") from error


def place(image: Image.Image, scale: float) -> tuple[Picture, Silhouette]:
    """`image` on a white square, its silhouette centred, and the silhouette itself.

    `scale` is the frame's side divided by the canvas's side; a silhouette that would then cross the margin is
    shrunk until it fits. An image without a visible pixel gives a white picture and an empty silhouette.
    """
    image = image.convert("RGBA").convert("RGBa")  # premultiplied: resizing must not bleed hidden colours
    box = image.getchannel("a").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    frame = Image.new("RGBa", (SIZE, SIZE))
    if box is not None:
        cut = image.crop(box)
        factor = min(scale * SIZE / max(image.size), (SIZE - 2 * MARGIN) / max(cut.size))
        width, height = (max(1, round(side * factor)) for side in cut.size)
        cut = cut.resize((width, height), Image.Resampling.LANCZOS)
        frame.paste(cut, ((SIZE - width) // 2, (SIZE - height) // 2))
    drawn = np.asarray(frame).astype(np.int16)  # (Y, X, 4)
    alpha = drawn[..., 3:]
    return np.clip(drawn[..., :3] + 255 - alpha, 0, 255).astype(np.uint8), alpha[..., 0] > 127


def name_colours(picture: Picture, silhouette: Silhouette) -> tuple[str, ...]:
    """The words for the colours that cover most of the silhouette, largest first; () if it is empty."""
    pixels = picture[silhouette]  # (N, 3)
    if not len(pixels):
        return ()
    # Five bits a channel leave few distinct colours, each named once.
    packed = (pixels >> 3).astype(np.int32) @ np.array([1 << 10, 1 << 5, 1], np.int32)  # (N,)
    codes, counts = np.unique(packed, return_counts=True)
    coarse = np.stack([codes >> 10, codes >> 5 & 31, codes & 31], axis=-1) * 8 + 4
    distance = np.linalg.norm(_lab(coarse)[:, None] - _EXAMPLES, axis=-1)  # (codes, examples)
    area = np.bincount(_WORDS[distance.argmin(axis=1)], weights=counts, minlength=len(COLOURS)) / len(pixels)
    order = np.argsort(-area, kind="stable")
    names = list(COLOURS)
    return tuple(names[i] for rank, i in enumerate(order[:MOST]) if rank == 0 or area[i] >= SHARE)


def _lab(rgb: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """sRGB 0..255 as CIELAB under D65 (CIE 15:2004, section 8.2.1)."""
    c = rgb / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_EXAMPLES = _lab(np.array([list(bytes.fromhex(code[1:])) for codes in COLOURS.values() for code in codes]))
_WORDS = np.repeat(np.arange(len(COLOURS)), [len(codes) for codes in COLOURS.values()])
