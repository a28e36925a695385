"""Captions say the facts, all that they must and nothing else; every phrase of every language can be filled."""

import re
from dataclasses import replace
from random import Random

import pytest

from lab.scenes.captions import _table, article, caption, french_plural, plural
from lab.scenes.imagine import PAINTINGS
from lab.scenes.places import PLACES
from lab.scenes.scene import SHIRT, Actor, Scene
from lab.scenes.sprites import STYLES
from lab.scenes.vocabulary import LANGUAGES
from qkv.errors import NotFoundError


def said(scene, words, language, turns=12, **how):
    return [caption(scene, words, Random(turn), language=language, **how) for turn in range(turns)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_nothing_unfilled(many, words, language):
    for rows in many.values():
        for scene in rows[:15]:
            for text in said(scene, words, language, 4):
                assert not re.search(r"[{}]|\bNone\b|  ", text), text
                spoken = text.lower()
                for actor in scene.actors:
                    name = words.name(actor.concept, language).lower()
                    mount = words.mounts.get(actor.concept)
                    if mount and scene.event == "ride" and actor is scene.actors[1] and language != "en":
                        assert {"de": mount.de, "fr": mount.fr, "zh-hant": mount.zh}[language].lower() in spoken
                    else:
                        assert name in spoken, (text, scene)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_place_is_the_scenes_own(many, words, language):
    """No caption names another place; with everything said, it names its own."""
    table = _table()[language]["place"]
    for rows in many.values():
        for scene in rows[:10]:
            if scene.place == "plain" or scene.event == "scenery":
                continue
            phrases = table[scene.place]
            assert any(any(phrase in text for phrase in phrases) for text in said(scene, words, language, 3, share=1.0))
            assert not any(phrase in text for phrase in phrases for text in said(scene, words, language, 3, share=0.0))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_is_there(language):
    tables = _table()[language]
    assert set(tables["place"]) == set(PLACES)
    assert set(tables["scenery"]) == set(PLACES) - {"plain"}
    conditions = {condition for name, place in PLACES.items() if name != "plain" for condition in place.conditions}
    assert set(tables["condition"]) == conditions - {""}
    assert set(tables["painting"]) == set(PAINTINGS)
    assert set(tables["events"]) == set(_table()["en"]["events"])
    assert len(tables["said"]["count"]) == 4


def test_left_is_left(words):
    a, b = (Actor(concept=key) for key in ("1F408", "1F415"))
    scene = Scene(event="beside", actors=(a, b), condition="white", style="noto")
    first, second = words.name("1F408", "en"), words.name("1F415", "en")
    for text in said(scene, words, "en", 60, share=0.0):
        left = re.search(r"(en-thing-[\w-]+)(?: to the)? left of", text)
        right = re.search(r"(en-thing-[\w-]+)(?: to the)? right of", text)
        assert not left or left[1] == first
        assert not right or right[1] == second
    assert any("left of" in text for text in said(scene, words, "en", 60, share=0.0))


@pytest.mark.parametrize(("language", "numbers"), [("en", "two three four five"), ("de", "zwei drei vier fünf")])
def test_numbers(words, language, numbers):
    for count, number in zip(range(2, 6), numbers.split()):
        scene = Scene(event="count", actors=(Actor(concept="1F415"),), count=count, condition="white", style="noto")
        assert all(number in text for text in said(scene, words, language))


def test_colours_are_said(words):
    scene = Scene(event="alone", actors=(Actor(concept="1F34C", colour="blue"),), condition="white", style="noto")
    for language, word in {"en": "blue", "de": "Blau", "fr": "bleue", "zh-hant": "藍色"}.items():
        assert all(word in text for text in said(scene, words, language, share=0.0))


def test_a_shirts_colour_is_the_shirts(words):
    person = Actor(concept="1F9D1", outfit=SHIRT, colour="red")
    scene = Scene(event="alone", actors=(person,), condition="white", style="noto")
    for text in said(scene, words, "en", 40, share=0.0):
        assert "red en-thing" not in text
        assert text.count("red") == text.count("red shirt")


def test_outfits_and_hats(words):
    suit = Scene(event="alone", actors=(Actor(concept="1F436", outfit="1F935"),), condition="white", style="noto")
    assert all("a suit" in text for text in said(suit, words, "en"))
    assert all("im Anzug" in text for text in said(suit, words, "de"))
    hat = replace(suit, actors=(Actor(concept="1F436", worn="1F3A9"),))
    assert all("a top hat" in text for text in said(hat, words, "en"))
    assert all("戴高禮帽的" in text for text in said(hat, words, "zh-hant"))


def test_people_are_said_part_by_part(words):
    actor = Actor(concept="1F469", outfit=SHIRT, colour="green", worn="1F453")
    scene = Scene(event="alone", actors=(actor,), condition="white", style="noto")
    name = words.name("1F469", "en")
    assert any(
        text.endswith(f"{name} with glasses in a green shirt") for text in said(scene, words, "en", 60, share=0.0)
    )
    assert all("glasses" in text for text in said(scene, words, "en"))
    assert all("戴眼鏡的" in text for text in said(scene, words, "zh-hant"))


def test_driving_and_riding(words):
    ride = Scene(event="ride", actors=(Actor(concept="1F9D9"), Actor(concept="1F40E")), condition="white", style="noto")
    assert not any("driv" in text for text in said(ride, words, "en", 40))
    drive = replace(ride, actors=(Actor(concept="1F9D9"), Actor(concept="1F697")))
    assert not any("rid" in text for text in said(drive, words, "en", 40, share=0.0))


def test_styles_are_named_but_the_houses_own(words):
    def named(style):
        scene = Scene(event="alone", actors=(Actor(concept="1F415"),), condition="white", style=style)
        return sum("style" in text for text in said(scene, words, "en", 200))

    shares = {style: named(style) / 200 for style in STYLES}
    assert all((share == 1) == (style not in ("noto", "gradient")) for style, share in shares.items()), shares
    assert all(share < 0.3 for style, share in shares.items() if style in ("noto", "gradient"))


def test_a_photo_is_called_one(words):
    scene = Scene(event="alone", actors=(Actor(concept="1F415"),), condition="white", painting="photo", style="noto")
    assert all("photo" in text for text in said(scene, words, "en", share=1.0))
    plain = replace(scene, painting="")
    assert not any("photo" in text for text in said(plain, words, "en", 60))


def test_chance_gives_many_captions(scenes, words):
    texts = set(said(scenes.facts(4), words, "en", 60))
    assert len(texts) >= 8
    assert caption(scenes.facts(4), words, Random(1)) == caption(scenes.facts(4), words, Random(1))


def test_an_unknown_language(scenes, words):
    with pytest.raises(NotFoundError, match="language"):
        caption(scenes.facts(4), words, Random(1), language="xx")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "dogs"), ("box", "boxes"), ("cherry", "cherries"), ("toy", "toys"), ("woman", "women"),
        ("cut of meat", "cuts of meat"), ("man with beard", "men with beard"), ("mouse", "mice"),
        ("woman scientist", "women scientists"), ("man mountain biking", "men mountain biking"),
        ("man surfing", "men surfing"), ("police officer", "police officers"),
        ("dress", "dresses"), ("octopus", "octopuses"), ("blue wolf", "blue wolves"), ("rhinoceros", "rhinoceroses"),
        ("french fries", "french fries"), ("sandwich", "sandwiches"),
    ],
)  # fmt: skip
def test_english_plurals(name, expected):
    assert plural(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a dog"), ("apple", "an apple"), ("unicorn", "a unicorn"), ("hourglass done", "an hourglass done"),
        ("grapes", "grapes"), ("bus", "a bus"), ("dress", "a dress"), ("x-ray", "an x-ray"), ("popcorn", "popcorn"),
        ("orange cat", "an orange cat"), ("rhinoceros", "a rhinoceros"), ("axe", "an axe"),
    ],
)  # fmt: skip
def test_english_articles(name, expected):
    assert article(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("chien", "chiens"), ("cheval", "chevaux"), ("bateau à voile", "bateaux à voile")],
)
def test_french_plurals(name, expected):
    assert french_plural(name) == expected
