"""The picture shows what the facts say: order, height, number, overlap; and it depends on them and on chance alone."""

import hashlib
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lab.scenes.figures import Artist, bounds, mirrored, stood
from lab.scenes.imagine import EVENTS
from lab.scenes.layout import layout
from lab.scenes.places import PLACES, paint_place
from lab.scenes.render import TARGETS, _necked, draw, recolour
from lab.scenes.scene import SHIRT, Actor, Scene
from lab.scenes.shapes import SHAPES, draw_shape

DRAWN = sorted(set(EVENTS) - {"dressed", "accessory", "people", "shown"})


@pytest.fixture(scope="module")
def placed(scenes):
    """A function from facts to the bounds of their figures, back to front."""

    def figures(scene, turn=0):
        artist = Artist(scenes.sprites, scenes.vocabulary, scene.style)
        calm = replace(scene, place="meadow", condition="day")
        return [bounds(figure) for figure in layout(calm, artist, Random(turn))[1]]

    return figures


def middle(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@pytest.mark.parametrize("event", DRAWN)
def test_every_event_is_drawn(scenes, many, event):
    for scene in many[event][:8]:
        picture = draw(scene, scenes.sprites, scenes.vocabulary, Random(5))
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 1 or scene.event == "scenery"


def test_a_picture_depends_on_its_number_alone(scenes):
    alone = {number: scenes.picture(number) for number in (7, 3)}
    stack = scenes.pictures(8)
    assert all((stack[number] == picture).all() for number, picture in alone.items())
    digests = {hashlib.sha256(scenes.picture(number).tobytes()).hexdigest() for number in range(40)}
    assert len(digests) == 40


def test_the_side_is_free(scenes):
    large = scenes.picture(11, side=256)
    small = scenes.picture(11)
    assert large.shape == (256, 256, 3)
    shrunk = large.reshape(128, 2, 128, 2, 3).mean((1, 3))
    if not scenes.facts(11).painting:
        assert np.abs(shrunk - small).mean() < 12


def test_things_stand_from_left_to_right(many, placed):
    for scene in many["beside"][:60]:
        xs = [middle(box)[0] for box in placed(scene)]
        assert xs == sorted(xs)
        assert all(after - before > 0.15 for before, after in pairwise(xs))


def test_counted_things_can_be_counted(many, placed):
    for scene in many["count"][:60]:
        boxes = placed(scene)
        assert len(boxes) == scene.count
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                wide = min(one[2], other[2]) - max(one[0], other[0])
                tall = min(one[3], other[3]) - max(one[1], other[1])
                assert wide < 0.03 or tall < 0.06


def test_above_is_above(many, placed):
    for scene in many["above"][:40]:
        low, high = placed(scene)
        assert middle(high)[1] < middle(low)[1] - 0.1


def test_before_is_lower_and_drawn_last(many, placed):
    for scene in many["before"][:40]:
        back, front = placed(scene)
        assert front[3] > back[3]
        assert min(front[2], back[2]) > max(front[0], back[0])


def test_nearly_all_of_a_figure_is_in_the_picture(many, placed):
    for event, rows in many.items():
        for scene in rows[:25]:
            for box in placed(scene):
                seen = (min(box[2], 1) - max(box[0], 0)) * (min(box[3], 1) - max(box[1], 0))
                assert seen > 0.8 * (box[2] - box[0]) * (box[3] - box[1]), (event, box)


def test_a_rider_sits_in_its_mount(scenes, words):
    """The mount is behind the rider and, below the seat, before it."""
    artist = Artist(scenes.sprites, words, "noto")
    rider = artist.single("1F9D9")
    mount, *sitting, front = artist.riding(rider, "1F40E")
    assert mount.concept == front.concept == "1F40E"
    assert front.top > 0
    assert bounds(sitting)[3] > front.y + front.top * front.height
    assert bounds(sitting)[1] < mount.y + front.top * mount.height


def test_a_driver_looks_out_behind_the_roof(scenes, words):
    driver, car = Artist(scenes.sprites, words, "noto").riding(
        Artist(scenes.sprites, words, "noto").single("1F9D9"), "1F697"
    )
    assert (driver.concept, car.concept) == ("1F9D9", "1F697")
    assert bounds([driver])[1] < car.y


@pytest.mark.parametrize("style", ["noto", "flat", "twemoji"])
def test_nothing_of_the_first_face_stays(scenes, words, style):
    """Only the outfit below the neck and its hat are shown."""
    artist = Artist(scenes.sprites, words, style)
    for outfit, row in words.outfits.items():
        if not row.at(style) or row.inside:
            continue
        figure = artist.dressed("1F436", outfit)
        body, head, *hat = figure
        assert body.top == row.at(style)[0]
        assert head.y + head.height > body.y + body.top * body.height, "the chin covers the cut"
        assert all(part.low == row.at(style)[2] for part in hat)
        assert bool(hat) == bool(row.at(style)[2])


def test_a_yellow_neck_takes_the_heads_colour():
    """Only skin, only in the middle, only just below the cut."""
    outfit, head = Image.new("RGBA", (100, 100), (40, 40, 60, 255)), Image.new("RGBA", (40, 40), (90, 60, 30, 255))
    draw_on = ImageDraw.Draw(outfit)
    draw_on.rectangle((45, 40, 55, 55), fill=(255, 204, 50, 255))
    draw_on.rectangle((0, 40, 10, 55), fill=(255, 204, 50, 255))
    done = _necked(outfit, 0.4, head)
    assert done.getpixel((50, 45))[:3] == (90, 60, 30)
    assert done.getpixel((5, 45))[:3] == (255, 204, 50)
    assert done.getpixel((50, 80))[:3] == (40, 40, 60)


def test_a_helmet_shows_the_head_within_it(scenes, words):
    suit, hollow, head = Artist(scenes.sprites, words, "noto").dressed("1F436", "1F9D1-200D-1F680")
    assert (suit.top, suit.low) == (0, 1)
    assert hollow.concept == "@hollow"
    assert head.oval


def test_a_shirt_has_the_colour_that_is_said(scenes, words):
    shirt, head = Artist(scenes.sprites, words, "noto").actor(Actor(concept="1F9D1", outfit=SHIRT, colour="red"))
    assert (shirt.concept, shirt.colour) == (SHIRT, "red")
    assert (head.concept, head.colour) == ("1F9D1", "")


def test_a_person_is_cut_at_the_neck_and_wears_the_hat_on_the_brow(scenes, words):
    actor = Actor(concept="1F469-200D-1F9B0", outfit=SHIRT, colour="red", worn="1F3A9")
    shirt, face, hat = Artist(scenes.sprites, words, "noto").actor(actor)
    brow, _, neck = words.face("1F469-200D-1F9B0", "noto")
    assert face.low == neck < 1
    assert shirt.y < face.y + neck * face.height < shirt.y + 0.3 * shirt.height
    assert hat.y + hat.height == pytest.approx(face.y + (brow + 0.05) * face.height)


def test_figures_stand_where_they_are_put(scenes, words):
    figure = stood(Artist(scenes.sprites, words, "flat").actor(Actor(concept="1F436", outfit="1F935")), 0.5, 0.3, 0.9)
    for shown in (figure, stood(mirrored(figure), 0.5, 0.3, 0.9)):
        left, top, right, bottom = bounds(shown)
        assert max(right - left, bottom - top) == pytest.approx(0.5)
        assert ((left + right) / 2, bottom) == (pytest.approx(0.3), pytest.approx(0.9))


def test_mirroring_twice_is_nothing(scenes, words):
    figure = Artist(scenes.sprites, words, "noto").dressed("1F436", "1F9D1-200D-1F680")
    again = mirrored(mirrored(figure))
    assert [part.mirrored for part in again] == [part.mirrored for part in figure]
    assert [part.x for part in again] == pytest.approx([part.x for part in figure])


def test_a_bite_takes_pixels(scenes, words):
    facts = Scene(event="eat", actors=(Actor(concept="1F436"), Actor(concept="1F34E")), condition="white", style="noto")
    figure = Artist(scenes.sprites, words, "noto").eating("1F436", "1F34E")
    assert [part.bitten for part in figure] == [False, True]
    assert draw(facts, scenes.sprites, words, Random(1)).std() > 1


@pytest.mark.parametrize("colour", list(TARGETS))
def test_recolouring_meets_the_colour(scenes, colour):
    """The middle of what is coloured is the colour; what was clear stays clear."""
    sprite = scenes.sprites.get("noto", "1F34C").convert("RGBA")
    painted = np.asarray(recolour(sprite, colour)).astype(int)
    alpha = np.asarray(sprite)[..., 3]
    assert (painted[..., 3] == alpha).all()
    near = np.abs(painted[alpha > 200][:, :3] - np.array(TARGETS[colour])).max(-1)
    assert near.min() < 12


def test_a_white_thing_with_a_coloured_edge_is_recoloured_whole():
    """As a white shirt with red seams: what is mostly without a colour takes it everywhere."""
    shirt = Image.new("RGBA", (40, 40), (236, 238, 240, 255))
    ImageDraw.Draw(shirt).rectangle((0, 0, 39, 5), fill=(220, 30, 40, 255))
    painted = np.asarray(recolour(shirt, "blue"))[..., :3].astype(int)
    assert np.abs(painted[20, 20] - np.array(TARGETS["blue"])).max() < 12


@pytest.mark.parametrize("name", list(PLACES))
def test_places_differ_by_condition_and_chance(name):
    place = PLACES[name]
    pictures = [np.asarray(paint_place(name, condition, 128, Random(1))) for condition in place.conditions]
    assert all(picture.shape == (128, 128, 3) for picture in pictures)
    for one, other in pairwise(pictures):
        assert np.abs(one.astype(int) - other).mean() > 2
    same = np.asarray(paint_place(name, place.conditions[0], 128, Random(1)))
    assert (same == pictures[0]).all()
    assert (np.asarray(paint_place(name, place.conditions[0], 128, Random(2))) != same).any()


def test_night_is_darker_than_day():
    for name, place in PLACES.items():
        if {"day", "night"} <= set(place.conditions):
            day, night = (np.asarray(paint_place(name, when, 64, Random(3))).mean() for when in ("day", "night"))
            assert night < 0.75 * day, name


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_are_drawn(name):
    image = draw_shape(name, 60, 40)
    assert image.size == (60, 40)
    assert image.getchannel("A").getextrema() == (0, 255) or name == "board"
