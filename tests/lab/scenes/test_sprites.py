"""Sprites: cut along their alpha, kept as bytes, refused when these are cut off."""

import pytest
from PIL import Image, ImageDraw

from lab.scenes import sprites
from lab.scenes.sprites import Cut
from qkv.errors import CheckpointError, NotFoundError

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{0}" viewBox="0 0 16 16">'
    '<rect x="4" y="6" width="8" height="4" fill="red"/></svg>'
)


def test_an_svg_is_cut_along_its_alpha():
    pytest.importorskip("resvg_py")
    cut = sprites._cut((SVG.format(16), 64))
    assert cut.pixels.shape == (16, 32, 4)
    assert tuple(cut.pixels[8, 16]) == (255, 0, 0, 255)


def test_an_empty_svg_has_no_pixels():
    pytest.importorskip("resvg_py")
    assert sprites._cut(('<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"/>', 64)).pixels.size == 0


def test_colours_are_premultiplied():
    """A sprite is resized: hidden colours of clear pixels must not bleed in."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((2, 2, 5, 5), fill=(0, 0, 255, 255))
    small = Cut.of(image).image().resize((3, 3)).convert("RGBA")
    assert max(small.getchannel("R").tobytes()) == 0


def test_what_is_kept_is_read_again(tmp_path):
    shapes = {"A": ((3, 5), (1, 2, 3, 255)), "B": ((2, 2), (9, 8, 7, 255))}
    cuts = {key: Cut.of(Image.new("RGBA", size, colour)) for key, (size, colour) in shapes.items()}
    sprites._keep(tmp_path / "set", iter(cuts.items()))
    again = sprites._read(tmp_path / "set")
    assert [cut.pixels.tolist() for cut in again.values()] == [cut.pixels.tolist() for cut in cuts.values()]
    assert again["A"].image().convert("RGBA").getpixel((2, 4)) == (1, 2, 3, 255)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    sprites._keep(tmp_path / "set", iter([("A", Cut.of(Image.new("RGBA", (3, 5), (1, 2, 3, 255))))]))
    data = (tmp_path / "set.bin").read_bytes()
    (tmp_path / "set.bin").write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match="expected 60"):
        sprites._read(tmp_path / "set")


def test_a_sprite_that_is_not_there_is_named(request):
    with pytest.raises(NotFoundError, match="1F999F in style noto"):
        request.getfixturevalue("sprites").get("noto", "1F999F")
