"""What a person might say of a Scenes picture: several phrasings, none longer than MAX_WORDS."""

from __future__ import annotations

import numpy as np

from nd.scenes.scene import LANDSCAPES, OBJECT_COLOURS, WALL_COLOURS, Scene, Thing

MAX_WORDS = 22  # leaves room for the start and end tokens in a context of 24

# A stream of its own, so that wording and picture are independent draws of the same (seed, index).
CAPTION_STREAM = 1

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
LANDSCAPE_PHRASES = {
    "meadow": ("in a meadow", "over green grass"),
    "desert": ("in the desert", "over dry sand"),
    "sea": ("by the sea", "over blue water"),
    "night": ("at night", "under a dark sky"),
}

ONE = (
    "a {size} {colour} {shape} {place} {ground}",
    "{ground} there is a {size} {colour} {shape} {place}",
    "a {colour} {shape} {ground}",
    "a picture of a {size} {colour} {shape} {ground}",
    "{place} a {colour} {shape} {ground}",
    "a {colour} {shape} which is {size} {place} {ground}",
    "one {size} {shape} in {colour} {ground}",
)
TWO = (
    "a {first} {before} a {second} {ground}",
    "a {second} {after} a {first} {ground}",
    "a {first} and a {second} {ground}",
    "{ground} there is a {first} {before} a {second}",
    "a picture of a {first} with a {second} {ground}",
    "a {first} {here} and a {second} {there} {ground}",
    "two things {ground} a {first} and a {second}",
)
PLACES_AND_WALLS = "at in on the top bottom left centre right a wall fade to vertical horizontal stripes checks"
RELATIONS = {  # before, after, here, there
    "across": ("left of", "right of", "on the left", "on the right"),
    "down": ("above", "below", "at the top", "at the bottom"),
}


def captions(scene: Scene, n: int = 5) -> list[str]:
    """`n` phrasings of the scene, in an order of its own; all differ as long as n <= 7."""
    rng = np.random.default_rng([scene.seed, scene.index, CAPTION_STREAM])
    templates = rng.permutation(ONE if len(scene.things) == 1 else TWO)
    return [_say(scene, str(templates[i % len(templates)]), rng) for i in range(n)]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*ONE, *TWO, PLACES_AND_WALLS]
    phrases += [p for group in (SIZE_WORDS, SHAPE_WORDS, LANDSCAPE_PHRASES) for words in group.values() for p in words]
    phrases += [p for words in RELATIONS.values() for p in words] + [*OBJECT_COLOURS, *WALL_COLOURS]
    return sorted({w for p in phrases for w in p.split() if "{" not in w})


def _say(scene: Scene, template: str, rng: np.random.Generator) -> str:
    ground = ground_phrase(scene, rng)
    if len(scene.things) == 1:
        thing = scene.things[0]
        names = {"size": _pick(rng, SIZE_WORDS[thing.size]), "shape": _pick(rng, SHAPE_WORDS[thing.shape])}
        return template.format(colour=thing.colour, place=place_phrase(thing), ground=ground, **names)
    first, second = scene.things
    before, after, here, there = RELATIONS["across" if second.x - first.x > second.y - first.y else "down"]
    named = {"first": _name(first, rng), "second": _name(second, rng), "before": before, "after": after}
    return template.format(ground=ground, here=here, there=there, **named)


def _name(thing: Thing, rng: np.random.Generator) -> str:
    return f"{_pick(rng, SIZE_WORDS[thing.size])} {thing.colour} {_pick(rng, SHAPE_WORDS[thing.shape])}"


def place_phrase(thing: Thing) -> str:
    """'on the left', 'at the top right', 'in the centre', ..."""
    if thing.row == "middle":
        return "in the centre" if thing.column == "centre" else f"on the {thing.column}"
    return f"at the {thing.row}" if thing.column == "centre" else f"at the {thing.row} {thing.column}"


def ground_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """The background in words, with its colours where it is a wall."""
    if scene.background in LANDSCAPES:
        return _pick(rng, LANDSCAPE_PHRASES[scene.background])
    colours = " to ".join(scene.wall_colours)
    if scene.background == "stripes":
        return f"on {'vertical' if scene.vertical else 'horizontal'} {colours} stripes"
    return f"on {colours} checks" if scene.background == "checks" else f"on a {colours} {_WALL_NOUN[scene.background]}"


_WALL_NOUN = {"plain": "wall", "fade": "fade"}


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
