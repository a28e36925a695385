"""A contact sheet: many pictures on one, each with a line of text under it."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN, LINE = 6, 14


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, Y, X) in [-1, 1] as Pillow images; values beyond are clipped, halves round up."""
    scaled = (pictures.float().clamp(-1, 1) + 1) * 127.5
    return [Image.fromarray(array) for array in np.asarray(scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu())]


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str] = (), *, columns: int = 8) -> Image.Image:
    """The images in rows of `columns`, on white; captions are cut to the width of their image."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    width, height = max(image.width for image in images), max(image.height for image in images)
    cell = (width + MARGIN, height + MARGIN + (LINE if captions else 0))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i, image in enumerate(images):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        sheet.paste(image, (x, y))
        if i < len(captions):
            draw.text((x, y + height), fit_text(captions[i], width, font), fill="black", font=font)
    return sheet


def fit_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` cut to `width` pixels, the cut shown."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
