"""Chance: the same for the same number, and never what is held out."""

import pytest

from lab.scenes import heldout
from lab.scenes.dataset import Scenes
from lab.scenes.heldout import KINDS, PROMPTED, held_out, is_held_out
from lab.scenes.imagine import EVENTS, SHARES, imagine
from lab.scenes.places import PLACES
from lab.scenes.scene import SHIRT, Actor, Scene, combinations
from qkv.errors import InputError


def test_facts_depend_on_seed_and_number(words):
    assert [imagine(words, 3, n) for n in range(20)] == [imagine(words, 3, n) for n in range(20)]
    assert [imagine(words, 3, n) for n in range(20)] != [imagine(words, 4, n) for n in range(20)]
    assert len({imagine(words, 3, n) for n in range(50)}) > 45


def test_training_sees_nothing_held_out(words):
    scenes = [imagine(words, 3, number) for number in range(1500)]
    assert [scene for scene in scenes if held_out(scene)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_scenes_hold_exactly_that(words, kind):
    scenes = [imagine(words, 3, number, kinds=frozenset([kind])) for number in range(30)]
    assert {frozenset(held_out(scene)) for scene in scenes} == {frozenset([kind])}


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_that_is_held_out(kind):
    found = sum(is_held_out((kind, f"a{i}", f"b{j}")) for i in range(40) for j in range(40)) / 1600
    assert found == pytest.approx(heldout.SHARES[kind], abs=0.02)


def test_the_prompts_are_seen():
    """The README's prompts ask for these; they are trained on, and the card says so."""
    assert not any(map(is_held_out, PROMPTED))
    astronaut, horse = "1F9D1-200D-1F680", "1F40E"
    ride = Scene(event="ride", actors=(Actor(concept=astronaut), Actor(concept=horse)), place="mars", style="noto")
    assert not held_out(ride)
    suit = Scene(event="alone", actors=(Actor(concept="1F436", outfit="1F935"),), style="noto")
    assert not held_out(suit)
    both = (Actor(concept="1F3F0"), Actor(concept="1F332"))
    castle = Scene(event="surround", actors=both, place="forest", style="noto")
    assert {kind for kind, *names in combinations(castle) if "1F3F0" in names} == {"pair", "place"}
    assert "pair" not in held_out(castle)


def test_what_the_prompts_ask_for_is_seen_often(words):
    scenes = [imagine(words, 3, number) for number in range(1500)]
    rides = [
        scene for scene in scenes if [actor.concept for actor in scene.actors] == [heldout.ASTRONAUT, heldout.HORSE]
    ]
    suits = [scene for scene in scenes if scene.actors and scene.actors[0].outfit == heldout.SUIT]
    assert len([scene for scene in rides if scene.event == "ride"]) >= 2
    assert sum(scene.actors[0].concept == heldout.DOG for scene in suits) >= 2
    assert 0.001 < sum(scene.event == "scenery" and scene.painting == "oil" for scene in scenes) / 1500 < 0.03


def test_combinations_are_unordered_pairs():
    for pair in (("1F408", "1F415"), ("1F415", "1F408")):
        scene = Scene(event="beside", actors=tuple(Actor(concept=key) for key in pair), style="flat")
        assert combinations(scene) == [("pair", "1F408", "1F415")]


def test_a_shirt_is_no_outfit():
    scene = Scene(event="alone", actors=(Actor(concept="1F9D1", outfit=SHIRT, colour="red"),), style="flat")
    assert combinations(scene) == []


def test_every_event_and_place_is_imagined(many):
    events = set(EVENTS) - {"dressed", "accessory", "people", "shown"}
    assert set(many) == events
    scenes = [scene for rows in many.values() for scene in rows]
    assert {scene.place for scene in scenes} == set(PLACES)
    assert all(scene.condition in PLACES[scene.place].conditions for scene in scenes)
    assert any(actor.outfit not in ("", SHIRT) for scene in scenes for actor in scene.actors)
    assert set(SHARES) == {*EVENTS, "shown"}
    assert sum(SHARES.values()) == pytest.approx(1)


def test_a_mount_is_one_that_the_style_draws(many, words):
    assert all(words.mounts[scene.actors[1].concept].at(scene.style) for scene in many["ride"])


def test_without_painting(scenes: Scenes):
    plain = Scenes(sprites=scenes.sprites, vocabulary=scenes.vocabulary, seed=1, painted=False)
    assert any(scenes.facts(number).painting for number in range(50))
    assert not any(plain.facts(number).painting for number in range(50))


def test_what_cannot_be_is_an_error(words, monkeypatch):
    monkeypatch.setattr("lab.scenes.imagine.held_out", lambda scene: {"ride"})
    with pytest.raises(InputError, match="no scene whose held-out"):
        imagine(words, 3, 0)
