"""Which word came from which: the weights with which a translator's decoder looked at the source, as a picture.

Bahdanau et al. (1409.0473), figure 3, for the cross-attention of one layer, the mean over its heads. The layer before
the last follows the words best (Garg et al. 1909.02074, section 4.1).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from qkv.core.record import record
from qkv.errors import InputError
from qkv.loaded.translator import LoadedTranslator, encode
from qkv.text.moses import to_moses

CELL, MARGIN, LETTERS = 26, 8, 13  # pixels; of the letters the height


class Alignment(NamedTuple):
    """`weights` (T, S): how much each word of the target looked at each of the source; rows sum to at most 1."""

    source: list[str]
    target: list[str]
    weights: npt.NDArray[np.float32]


@torch.inference_mode()
def align(ready: LoadedTranslator, source: str, target: str, *, layer: int | None = None) -> Alignment:
    """The alignment of a sentence with a translation of it; `layer` of the decoder, the last but one unless given.

    What is longer than the model reads is left out. Raises InputError if one of the two is empty.
    """
    layers = ready.model.config.decoder.layers
    layer = max(layers - 2, 0) if layer is None else layer
    if not 0 <= layer < layers:
        raise InputError(f"layer={layer} is out of range; the decoder has layers 0 to {layers - 1}")
    said = to_moses(target, ready.target or "en") if ready.text == "moses-lower" else target
    limit = ready.model.config.context
    read, written = encode(ready, source)[:limit], ready.pieces.encode(said, target=True)[:limit]
    words = ready.pieces.words(read), ready.pieces.words(written)
    if not all(words):
        raise InputError("there is no word to align; give a text and its translation")
    name = f"decoder.blocks.{layer}.memory_attention"
    device = ready.model.token.weight.device
    given = torch.tensor([[ready.model.config.start, *written[:-1]]], device=device)
    with record(ready.model, outputs=False, weights=True, wanted=lambda each: each == name) as out:
        ready.model(torch.tensor([read], device=device), given)
    weights = out[f"{name}.weights"][0].float().mean(0).cpu().numpy()  # (T, S) of pieces
    # A word looked at another with the mean of its pieces, at all pieces of that together.
    rows = np.stack([weights[places].mean(0) for _, places in words[1]])
    table = np.stack([rows[:, places].sum(1) for _, places in words[0]], axis=1)
    names = [[word for word, _ in side] for side in words]
    return Alignment(names[0], names[1], table)


def draw_alignment(alignment: Alignment) -> Image.Image:
    """The source's words above, the target's at the left, darker where more was looked at."""
    font = ImageFont.load_default(LETTERS)
    left, above = (int(max(map(font.getlength, side))) + 2 * MARGIN for side in (alignment.target, alignment.source))
    width, height = (CELL * len(side) for side in (alignment.source, alignment.target))
    picture = Image.new("RGB", (left + width + MARGIN, above + height + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(alignment.weights):
        for j, weight in enumerate(row):
            shade = round(255 * (1 - min(float(weight), 1.0)))
            x, y = left + j * CELL, above + i * CELL
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=(shade, shade, 255 - (255 - shade) // 3))
    for i, word in enumerate(alignment.target):
        draw.text((left - MARGIN, above + (i + 0.5) * CELL), word, fill="black", font=font, anchor="rm")
    for j, word in enumerate(alignment.source):
        label = Image.new("RGB", (above - MARGIN, CELL), "white")
        ImageDraw.Draw(label).text((0, CELL / 2), word, fill="black", font=font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (left + j * CELL, 0))
    return picture
