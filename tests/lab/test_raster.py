"""Pictures: centred, whole, on white; and colours named as a person would."""

import numpy as np
import pytest
from PIL import Image

from lab.emblem.raster import COLOURS, MARGIN, SIZE, draw_svg, name_colours, place
from qkv.errors import CheckpointError


def solid(*colours: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture of equal vertical stripes inside a white frame, and its silhouette."""
    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    silhouette = np.zeros((SIZE, SIZE), bool)
    silhouette[20:-20, 20:-20] = True
    for columns, colour in zip(np.array_split(np.arange(20, SIZE - 20), len(colours)), colours):
        picture[20:-20, columns[0] : columns[-1] + 1] = colour
    return picture, silhouette


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((255, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((255, 220, 40), "yellow"),
        ((0, 160, 60), "green"),
        ((0, 150, 150), "teal"),
        ((40, 90, 220), "blue"),
        ((130, 60, 180), "purple"),
        ((255, 130, 180), "pink"),
        ((120, 70, 40), "brown"),
        ((245, 220, 185), "beige"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_a_solid_colour_has_its_name(rgb: tuple[int, int, int], word: str) -> None:
    assert name_colours(*solid(rgb)) == (word,)


def test_large_colours_come_first_and_specks_are_silent() -> None:
    picture, silhouette = solid((255, 0, 0), (255, 0, 0), (10, 10, 10))
    picture[20:24, 20:24] = (0, 160, 60)
    assert name_colours(picture, silhouette) == ("red", "black")
    assert name_colours(picture, np.zeros_like(silhouette)) == ()


def test_the_background_is_no_colour_but_white_things_are_white() -> None:
    assert "white" not in name_colours(*solid((255, 0, 0)))
    assert name_colours(*solid((255, 0, 0), (255, 255, 255))) == ("red", "white")


def test_every_example_is_named_by_its_own_word() -> None:
    for word, codes in COLOURS.items():
        for code in codes:
            red, green, blue = bytes.fromhex(code[1:])
            assert name_colours(*solid((red, green, blue))) == (word,)


def test_an_icon_is_centred_and_keeps_its_size() -> None:
    square = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><rect x="0" y="5" width="40" height="20"/></svg>'
    )
    picture, silhouette = draw_svg(square, 1.0)
    rows, columns = np.where(silhouette)
    assert picture.shape == (SIZE, SIZE, 3)
    assert abs((rows.min() + rows.max()) / 2 - (SIZE - 1) / 2) <= 0.5
    assert abs((columns.min() + columns.max()) / 2 - (SIZE - 1) / 2) <= 0.5
    assert np.ptp(columns) + 1 == pytest.approx(0.4 * SIZE, abs=1)  # a small icon is not blown up
    assert (picture[~silhouette].min(axis=-1) >= 120).all()


def test_a_large_icon_keeps_the_margin() -> None:
    _, silhouette = place(Image.new("RGBA", (256, 256), "red"), 1.3)
    rows, columns = np.where(silhouette)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (MARGIN, SIZE - 1 - MARGIN) * 2


def test_hidden_colours_do_not_bleed() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))  # invisible red
    image.paste((0, 0, 255, 255), (16, 16, 48, 48))
    picture, _ = place(image, 1.0)
    assert (picture[..., 0] <= picture[..., 2]).all()


def test_an_empty_image_is_white_with_no_silhouette() -> None:
    picture, silhouette = place(Image.new("RGBA", (64, 64)), 1.0)
    assert (picture == 255).all()
    assert not silhouette.any()


def test_a_broken_svg_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="cannot draw"):
        draw_svg("<svg", 1.0)
