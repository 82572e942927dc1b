"""Drawn images and their captions: each is a function of (seed, index) and says and shows what the scene holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nd.scenes.captions import MAX_WORDS, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS, alike, captions, vocabulary
from nd.scenes.colours import COLOUR_WORDS, colour_word, from_hsv, lab
from nd.scenes.draw import draw, draw_many, draw_scenes
from nd.scenes.scene import BACKGROUNDS, GROUNDS, SKIES, TEXTURES, Thing, rearranged, sample_scene
from nd.scenes.shapes import DISTANCE, SHAPES

SCENES = [sample_scene(3, i) for i in range(400)]
SINGLE = [s for s in SCENES if len(s.things) == 1]
PAIRS = [s for s in SCENES if len(s.things) == 2]
# A uniform scene: the objects alone decide where it differs from the bare background.
EVEN = replace(
    SINGLE[0],
    background="plain",
    level_rgbs=((0.5, 0.5, 0.5),) * 4,
    texture=0.0,
    light=0.0,
    glow=(0.5, 0.5, 0.3, 0.0),
    things=(),
)
RED = Thing(
    shape="circle", rgb=(0.9, 0.1, 0.1), rgb2=(1.0, 0.6, 0.6), texture="smooth", radius=0.22, x=0.5, y=0.5, tilt_rad=0.0
)


def cover(things: tuple[Thing, ...], size: int = 64) -> np.ndarray:
    """Where objects change an even image: (size, size) bool."""
    with_objects, without = draw_scenes([replace(EVEN, things=things), EVEN], size).astype(int)
    return np.abs(with_objects - without).max(-1) > 12


def test_an_image_depends_on_its_seed_and_index_only() -> None:
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
    assert len(SHAPES) >= 12
    assert {s.background for s in SCENES} == set(BACKGROUNDS)
    assert {s.sky for s in SCENES} == {"", *SKIES}
    assert {t.shape for s in SCENES for t in s.things} == set(SHAPES)
    assert {t.colour for s in SCENES for t in s.things} == set(COLOUR_WORDS)
    assert {t.texture for s in SCENES for t in s.things} == set(TEXTURES)
    counts = np.bincount([len(s.things) for s in SCENES]) / len(SCENES)
    assert counts[0] == 0
    assert (counts[1:] > 0.2).all()


def test_the_best_training_image_is_no_reconstruction() -> None:
    """Median correlation of 200 test images with the most similar of 1,500 others: at most .55 in the default world."""
    flat = draw_many(7, range(1700)).reshape(1700, -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.median((flat[1500:] @ flat[:1500].T).max(1)) <= 0.55


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_lies_where_the_scene_says(shape: str) -> None:
    """Its outline, at any tilt, stays within its radius about its place, and fills a good part of it."""
    for x, y, tilt in ((0.3, 0.6, 0.0), (0.62, 0.35, 0.5)):
        seen = cover((replace(RED, shape=shape, x=x, y=y, tilt_rad=tilt),), 128)
        rows, columns = np.nonzero(seen)
        distance = np.hypot((columns + 0.5) / 128 - x, (rows + 0.5) / 128 - y)
        # Corners of a star, house or square reach a little beyond the unit circle.
        assert distance.max() < 0.22 * 1.25
        assert distance.max() > 0.22 * 0.9
        assert 0.2 < seen.mean() / (np.pi * 0.22**2) < 1.01


def test_areas_follow_geometry() -> None:
    areas = {s: cover((replace(RED, shape=s),), 256).mean() for s in SHAPES}
    unit = 0.22**2
    assert areas["circle"] == pytest.approx(np.pi * 0.95**2 * unit, rel=0.03)
    assert areas["square"] == pytest.approx((2 * 0.84) ** 2 * unit, rel=0.03)
    assert areas["ring"] == pytest.approx(np.pi * (1.0**2 - 0.44**2) * unit, rel=0.04)
    assert areas["cross"] == pytest.approx((2 * 2 * 0.64 - 0.64**2) * unit, rel=0.04)
    assert areas["diamond"] == pytest.approx(2 * 1.05 * 0.62 * unit, rel=0.04)
    assert areas["triangle"] == pytest.approx(0.95 * 1.75 * unit, rel=0.04)
    assert len({round(a, 4) for a in areas.values()}) == len(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_distances_near_their_outline(shape: str) -> None:
    """Within antialiasing's reach of the outline the gradient is about one, so that edges are equally soft."""
    u, v = np.meshgrid(*(np.linspace(-1.3, 1.3, 521, dtype=np.float32),) * 2)
    d = DISTANCE[shape](u, v)
    slope = np.hypot(*np.gradient(d, u[0, 1] - u[0, 0]))
    near = np.abs(d) < 0.05
    assert 0.6 < np.quantile(slope[near], 0.05) <= np.quantile(slope[near], 0.95) < 1.5


def test_objects_have_their_colour() -> None:
    """Where no light falls the middle of an object shows its colour, in words and in display values."""
    for scene in [s for s in SINGLE if s.things[0].shape in ("circle", "square", "heart", "house")]:
        thing = replace(scene.things[0], x=0.5, y=0.5, radius=0.3, texture="smooth")
        seen = draw(replace(EVEN, things=(thing,)))[32, 32] / 255
        np.testing.assert_allclose(seen, thing.rgb, atol=0.01)
        assert colour_word(tuple(seen)) == thing.colour


def test_colour_words_are_their_own_nearest() -> None:
    for word, rgb in COLOUR_WORDS.items():
        assert colour_word(rgb) == word


def test_lab_agrees_with_known_colours() -> None:
    """White, black and the sRGB primaries, within what a gamma of 2.2 for the sRGB curve changes."""
    np.testing.assert_allclose([lab((1.0, 1.0, 1.0)), lab((0.0, 0.0, 0.0))], [(100, 0, 0), (0, 0, 0)], atol=0.1)
    known = [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86)]
    np.testing.assert_allclose([lab((1, 0, 0)), lab((0, 1, 0)), lab((0, 0, 1))], known, atol=0.2)
    np.testing.assert_allclose(from_hsv(1 / 3, 1.0, 0.5), (0.0, 0.5, 0.0), atol=1e-12)


def test_edges_are_antialiased() -> None:
    """An image drawn large and reduced is nearly the one drawn small."""
    small, large = draw_scenes(PAIRS[:20], 64), draw_scenes(PAIRS[:20], 256)
    reduced = large.reshape(20, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.abs(reduced - small).mean() < 2.0


def test_a_rearranged_scene_keeps_background_and_colours() -> None:
    for scene in SCENES[:60]:
        assert rearranged(scene, 0) == scene
        other = rearranged(scene, 1)
        assert other == rearranged(scene, 1)
        assert replace(other, things=scene.things) == scene
        assert other.things != scene.things
        assert set(other.palette) == set(scene.palette)


def test_captions_are_several_short_and_repeatable() -> None:
    words = set(vocabulary())
    for scene in SCENES:
        said = captions(scene)
        assert said == captions(scene)
        assert len(set(said)) == 5
        assert max(len(c.split()) for c in said) <= MAX_WORDS
        assert {w for c in said for w in c.split()} <= words


def test_the_vocabulary_holds_no_word_that_is_never_said() -> None:
    """Plurals are rare, so that scenes of two objects alike are made of every shape."""
    alike_ones = [
        replace(scene, things=tuple(replace(scene.things[0], shape=shape, x=x) for x in (0.2, 0.8)))
        for scene in SCENES[:16]
        for shape in SHAPES
    ]
    scenes = alike_ones + [sample_scene(5, i) for i in range(1500)]
    assert set(vocabulary()) == {w for scene in scenes for c in captions(scene, 7) for w in c.split()}


def test_captions_are_true() -> None:
    """They name each object's colour and shape, and no size, texture or tilt that none has."""
    for scene in SCENES:
        for caption in captions(scene, 7):
            words = set(caption.replace("boxes", "box").split())
            for thing in scene.things:
                assert thing.colour in words
                assert any(w.startswith(word) for word in SHAPE_WORDS[thing.shape] for w in words)
            for field, table in (("size", SIZE_WORDS), ("texture", TEXTURE_WORDS)):
                told = {name for name, said in table.items() if set(said) & words}
                assert told <= {getattr(t, field) for t in scene.things}
            assert "tilted" not in words or any(abs(t.tilt_rad) > 0.3 for t in scene.things)


def test_objects_alike_are_counted() -> None:
    scene = replace(EVEN, things=(RED, replace(RED, x=0.2)))
    assert alike(scene.things)
    assert captions(scene)[0].startswith(("two red circles on a grey wall", "two red discs on a grey wall"))
    assert not alike(replace(scene, things=(RED, replace(RED, shape="star"))).things)


@pytest.mark.parametrize(
    ("second", "words", "reverse"),
    [
        ({"x": 0.9}, "left of", "right of"),
        ({"y": 0.1}, "below", "above"),
        ({"x": 0.6}, "behind", "in front of"),
    ],
)
def test_relations_are_true(second: dict[str, float], words: str, reverse: str) -> None:
    """A red circle in the middle, to which a blue star lies as said; both orders are said."""
    star = replace(RED, shape="star", rgb=(0.1, 0.2, 0.9), **second)
    scene = replace(EVEN, things=(replace(RED, radius=0.18), star))
    said = {
        " ".join(w for w in c.split() if w not in ("large", "big", "small", "little"))
        for i in range(30)
        for c in captions(replace(scene, index=i), 7)
    }
    assert any(f"a red circle {words} a blue star" in c for c in said)
    assert any(f"a blue star {reverse} a red circle" in c for c in said)
    assert not any(f"a red circle {reverse} a blue star" in c for c in said)


def test_relations_of_drawn_scenes_are_true() -> None:
    checked = 0
    for scene in PAIRS:
        first, second = scene.things
        if first.colour == second.colour:
            continue
        for caption in captions(scene, 7):
            for words, axis, sign in (
                ("left of", "x", 1),
                ("above", "y", 1),
                ("right of", "x", -1),
                ("below", "y", -1),
            ):
                if f" {words} " in caption:
                    named_first = first if first.colour in caption.split(f" {words} ")[0].split() else second
                    other = second if named_first is first else first
                    # Names of backgrounds hold colours too; only captions that begin with an object are told apart.
                    if caption.split()[0] in ("a", "an"):
                        assert sign * (getattr(other, axis) - getattr(named_first, axis)) > 0
                        checked += 1
    assert checked > 20


def test_landscapes_are_known_by_name_and_walls_by_colour() -> None:
    for scene in SCENES:
        assert (scene.colours == ()) == (scene.background in GROUNDS)
        assert bool(scene.sky) == (scene.background in GROUNDS)


def test_places_lie_inside() -> None:
    things = [t for s in SCENES for t in s.things]
    assert min(min(t.x, t.y, 1 - t.x, 1 - t.y) - 0.85 * t.radius for t in things) > -1e-9
