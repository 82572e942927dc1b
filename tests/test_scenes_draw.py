"""Drawn pictures and their captions: each is a function of (seed, index) and says and shows what the scene holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nd.scenes.captions import MAX_WORDS, SHAPE_WORDS, SIZE_WORDS, captions, vocabulary
from nd.scenes.draw import draw, draw_many, draw_scenes
from nd.scenes.scene import BACKGROUNDS, OBJECT_COLOURS, SHAPES, Scene, sample_scene

SCENES = [sample_scene(3, i) for i in range(300)]
SINGLE = [s for s in SCENES if len(s.things) == 1]
PAIRS = [s for s in SCENES if len(s.things) == 2]


def cover(scene: Scene, size: int = 64) -> np.ndarray:
    """Where the objects change the picture: (size, size) bool."""
    with_objects, without = draw_scenes([scene, replace(scene, things=())], size).astype(int)
    return np.abs(with_objects - without).max(-1) > 12


def test_a_picture_depends_on_its_seed_and_index_only() -> None:
    together = draw_many(3, [5, 900, 17])
    np.testing.assert_array_equal(together[1], draw_many(3, [900])[0])
    np.testing.assert_array_equal(together[2], draw(sample_scene(3, 17)))
    assert together.dtype == np.uint8
    assert together.shape == (3, 64, 64, 3)
    assert (draw_many(4, [17])[0] != together[2]).mean() > 0.5


def test_neighbours_of_other_shapes_do_not_matter() -> None:
    batch = draw_scenes(SCENES[:40])
    for n in range(0, 40, 7):
        np.testing.assert_array_equal(batch[n], draw(SCENES[n]))


def test_the_world_holds_every_kind_of_thing() -> None:
    assert {s.background for s in SCENES} == set(BACKGROUNDS)
    assert {t.shape for s in SCENES for t in s.things} == set(SHAPES)
    assert {t.colour for s in SCENES for t in s.things} == set(OBJECT_COLOURS)
    assert 0.3 < len(PAIRS) / len(SCENES) < 0.5


def test_an_object_lies_where_the_scene_says() -> None:
    for scene in [s for s in SINGLE if s.things[0].shape in ("circle", "square", "cross", "ring")][:40]:
        rows, columns = np.nonzero(cover(scene))
        thing = scene.things[0]
        assert (columns.mean() + 0.5) / 64 == pytest.approx(thing.x, abs=0.02)
        assert (rows.mean() + 0.5) / 64 == pytest.approx(thing.y, abs=0.02)


def test_areas_follow_geometry() -> None:
    scene = SINGLE[0]
    thing = replace(scene.things[0], radius=0.22, x=0.5, y=0.5, tilt_rad=0.0, colour="red", rgb=(0.9, 0.1, 0.1))
    areas = {s: cover(replace(scene, things=(replace(thing, shape=s),)), 128).mean() for s in SHAPES}
    unit = 0.22**2
    assert areas["circle"] == pytest.approx(np.pi * unit, rel=0.06)
    assert areas["square"] == pytest.approx((2 * 0.88) ** 2 * unit, rel=0.06)
    assert areas["ring"] == pytest.approx(np.pi * (1.03**2 - 0.49**2) * unit, rel=0.08)
    assert areas["cross"] == pytest.approx((2 * 2 * 0.68 - 0.68**2) * unit, rel=0.08)
    assert len({round(a, 3) for a in areas.values()}) == len(SHAPES)


def test_objects_have_their_colour() -> None:
    names, values = list(OBJECT_COLOURS), np.array(list(OBJECT_COLOURS.values()))
    for scene in [s for s in SINGLE if s.things[0].shape != "ring"][:60]:
        thing = scene.things[0]
        seen = draw(scene)[int(thing.y * 64), int(thing.x * 64)] / 255
        assert names[np.abs(values - seen).sum(1).argmin()] == thing.colour


def test_edges_are_antialiased() -> None:
    """A picture drawn large and reduced is nearly the one drawn small."""
    small, large = draw_scenes(PAIRS[:20], 64), draw_scenes(PAIRS[:20], 256)
    reduced = large.reshape(20, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.abs(reduced - small).mean() < 2.0


def test_captions_are_several_short_and_repeatable() -> None:
    words = set(vocabulary())
    for scene in SCENES:
        said = captions(scene)
        assert said == captions(scene)
        assert len(set(said)) == 5
        assert max(len(c.split()) for c in said) <= MAX_WORDS
        assert {w for c in said for w in c.split()} <= words


def test_the_vocabulary_holds_no_word_that_is_never_said() -> None:
    said = {w for i in range(1500) for c in captions(sample_scene(5, i), 7) for w in c.split()}
    assert set(vocabulary()) == said


def test_captions_are_true() -> None:
    for scene in SCENES:
        for caption in captions(scene, 7):
            for thing in scene.things:
                assert thing.colour in caption
                assert any(word in caption.split() for word in SHAPE_WORDS[thing.shape])
            told = [size for size, words in SIZE_WORDS.items() if set(words) & set(caption.split())]
            assert set(told) <= {t.size for t in scene.things}


@pytest.mark.parametrize(("words", "axis", "sign"), [("left of", "x", 1), ("above", "y", 1), ("right of", "x", -1)])
def test_relations_are_true(words: str, axis: str, sign: int) -> None:
    checked = 0
    for scene in PAIRS:
        first, second = scene.things
        for caption in captions(scene, 7):
            if f" {words} " in caption:
                named_first = first if first.colour in caption.split(f" {words} ")[0] else second
                other = second if named_first is first else first
                assert sign * (getattr(other, axis) - getattr(named_first, axis)) > 0.2
                checked += 1
    assert checked > 10
