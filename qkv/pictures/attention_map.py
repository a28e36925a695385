"""Where the U-Net looked for each word while it drew: heat maps over the picture.

The cross-attention weights of core's `record` are averaged over heads, layers and steps, brought to the latent's size
and summed over a word's tokens; after DAAM (2210.04885). The middle resolutions count most: the finest look at edges,
the coarsest at the whole picture. Guidance runs the U-Net for two texts; the prompt's weights are taken.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from qkv.core.record import record
from qkv.pictures.sheet import contact_sheet
from qkv.text.tokenizer import Prompt

CELL = 128, 256  # pixels: the least and the largest width of one heat map on the sheet
# Dark to bright, each (red, green, blue): order can be seen without colour, too.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32)


class AttentionMaps:
    """Sums up attention weights while a picture is drawn; `latent` is the latent's height and width."""

    def __init__(self, latent: tuple[int, int]) -> None:
        self.sizes = _halvings(latent)
        self.sums: Tensor | None = None  # (S, y, x)

    @contextmanager
    def watching(self, unet: nn.Module) -> Iterator[None]:
        """Records the attention of one call of `unet`. The last row of its batch belongs to the prompt."""
        with record(unet, outputs=False, weights=True, wanted=lambda name: name.endswith("memory_attention")) as out:
            yield
        self._add(out)

    def _add(self, weights: Mapping[str, Tensor]) -> None:
        seen = {value.shape[-2] for value in weights.values()}
        resolutions = [size for size in self.sizes if size[0] * size[1] in seen]
        middle = (len(resolutions) - 1) / 2
        for value in weights.values():
            looked = value[-1].float().mean(0).mT  # (S, T)
            level = next(i for i, (height, width) in enumerate(resolutions) if height * width == looked.shape[-1])
            coarse = looked.unflatten(-1, resolutions[level])[None]  # (1, S, y, x)
            fine = F.interpolate(coarse, self.sizes[0], mode="bilinear", align_corners=False)[0]
            fine = fine * 0.5 ** abs(level - middle)
            self.sums = fine if self.sums is None else self.sums + fine

    def words(self, prompt: Prompt) -> list[tuple[str, Tensor]]:
        """Every word of `prompt` that has a letter or a digit, with its map (y, x) in 0..1."""
        assert self.sums is not None, "nothing was watched"
        word_of = torch.from_numpy(prompt.word_of).flatten()
        sums = self.sums.cpu()[: len(word_of)]  # behind it there is only padding
        maps = []
        for number, word in enumerate(prompt.words):
            if any(map(str.isalnum, word)) and (word_of == number).any():
                heat = sums[word_of == number].sum(0)
                maps.append((word, (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)))
        return maps


def _halvings(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes that a U-Net passes through, each half of the one before, rounded up."""
    sizes = [size]
    while max(sizes[-1]) > 1:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def heat_sheet(image: Image.Image, maps: list[tuple[str, Tensor]]) -> Image.Image:
    """The picture, then the picture under every word's map, on one sheet."""
    width = min(max(image.width, CELL[0]), CELL[1])
    base = image.resize((width, round(image.height * width / image.width)), Image.Resampling.BICUBIC)
    grey = base.convert("L").convert("RGB")  # so that colour means attention alone
    heated = [Image.blend(grey, _coloured(heat, base.size), 0.6) for _, heat in maps]
    return contact_sheet([base, *heated], ["", *(word for word, _ in maps)], columns=6)


def _coloured(heat: Tensor, size: tuple[int, int]) -> Image.Image:
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(heat.numpy(), places, _COLOURS[:, channel]) for channel in range(3)]
    small = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)
