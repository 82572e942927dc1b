"""What a person might say of a Scenes image: several phrasings, none longer than MAX_WORDS.

No phrasing tells everything. Colours and shapes are always named, unless objects are counted together; sizes are named
where they are unusual, textures often, places, relations, light and tilt now and then.
"""

from __future__ import annotations

import numpy as np

from nd.scenes.colours import COLOUR_WORDS
from nd.scenes.scene import Scene, Thing
from nd.scenes.shapes import SHAPES

MAX_WORDS = 22  # leaves room for the start and end tokens in a context of 24

# A stream of its own, so that wording and image are independent draws of the same (seed, index).
CAPTION_STREAM = 1

SIZE_WORDS = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
TEXTURE_WORDS = {"smooth": ("",), "striped": ("striped",), "spotted": ("spotted", "dotted")}
TEXTURE_SAID, TILT_SAID, LIGHT_SAID = 0.6, 0.3, 0.3  # how often each is worth a word
TILTED_RAD, LIGHT_SEEN = 0.35, 0.35  # from here on it is seen at all
ROUND = ("circle", "ring", "flower")  # never look tilted
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    **{shape: (shape,) for shape in SHAPES},
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "moon": ("moon", "crescent"),
}
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses", "fish": "fishes"}
NUMBERS = {2: "two", 3: "three"}
GROUND_PHRASES = {
    "meadow": ("in a meadow", "over green grass"),
    "desert": ("in the desert", "over dry sand"),
    "sea": ("by the sea", "over blue water"),
    "snow": ("in the snow", "over white snow"),
}
SKY_PHRASES = {
    "clear": ("under a clear sky", "on a sunny day"),
    "cloudy": ("under a grey sky", "on a cloudy day"),
    "sunset": ("at sunset", "under a red sky"),
    "night": ("at night", "under a dark sky"),
}
DIRECTIONS = ("vertical", "slanted", "horizontal")
LIGHT_PHRASES = ("lit from the right", "lit from below", "lit from the left", "lit from above")

ONE = (
    "{a} {at} {ground}",
    "{ground} there is {a} {at}",
    "{a} {ground}",
    "a picture of {a} {ground} {light}",
    "{at} {a} {ground}",
    "{a} which is {at} {ground}",
    "just {a} {at}",
)
TWO = (
    "{a} {before} {b} {ground}",
    "{b} {after} {a} {ground}",
    "{a} and {b} {ground}",
    "{ground} there is {a} {before} {b}",
    "a picture of {a} with {b} {ground}",
    "{a} {at} and {b} {bt}",
    "two things {ground} {a} and {b}",
)
THREE = (
    "{a} and {b} and {c} {ground}",
    "{ground} there is {a} with {b} and {c}",
    "{a} {before} {b} and {c} {ground}",
    "{b} {after} {a} with {c} {ground}",
    "{a} {at} {b} {bt} and {c} {ct}",
    "three things {ground} {a} {b} and {c}",
    "a picture of {c} {ct} and {a} and {b}",
)
COUNTED = "{many} {ground}"  # said of two or three objects of one shape and colour
RELATIONS = {  # before, after
    "front": ("behind", "in front of"),
    "across": ("left of", "right of"),
    "down": ("above", "below"),
}


def captions(scene: Scene, n: int = 5) -> list[str]:
    """`n` phrasings of the scene, in an order of its own; all differ as long as n <= 7."""
    rng = np.random.default_rng([scene.seed, scene.index, CAPTION_STREAM])
    templates = [str(t) for t in rng.permutation((ONE, TWO, THREE)[len(scene.things) - 1])]
    out = [_say(scene, templates[i % len(templates)], rng) for i in range(n)]
    if alike(scene.things):
        out[0] = COUNTED.format(many=_count(scene.things, rng), ground=ground_phrase(scene, rng))
    return out


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    groups = (SIZE_WORDS, TEXTURE_WORDS, SHAPE_WORDS, GROUND_PHRASES, SKY_PHRASES, RELATIONS)
    phrases = [*ONE, *TWO, *THREE, *COLOUR_WORDS, *NUMBERS.values(), *DIRECTIONS, *LIGHT_PHRASES, *WALL_PHRASES]
    phrases += ["tilted an and in the at on top bottom left right centre"]
    phrases += [p for group in groups for words in group.values() for p in words]
    phrases += [_plural(p) for words in SHAPE_WORDS.values() for p in words]
    return sorted({w for p in phrases for w in p.split() if "{" not in w})


def alike(things: tuple[Thing, ...]) -> bool:
    """Whether several objects share shape and colour, so that people count them."""
    return len(things) > 1 and len({(t.shape, t.rgb) for t in things}) == 1


def _say(scene: Scene, template: str, rng: np.random.Generator) -> str:
    """One caption: the objects with all that is worth saying or, where that is too long, with colour and shape only."""
    order = rng.permutation(len(scene.things)) if len(scene.things) == 3 else range(len(scene.things))
    things = [scene.things[k] for k in order]
    words: dict[str, str] = {"ground": ground_phrase(scene, rng), "light": _light(scene, rng)}
    words |= dict(zip(("at", "bt", "ct"), map(place_phrase, things), strict=False))
    if len(things) > 1:
        words["before"], words["after"] = relation(things[0], things[1], scene.things)
    for brief in (False, True):
        names = dict(zip("abc", [_name(t, rng, brief) for t in things], strict=False))
        said = " ".join(template.format(**words, **names).split())
        if len(said.split()) <= MAX_WORDS:
            break
    return said


def _name(thing: Thing, rng: np.random.Generator, brief: bool) -> str:
    """'a little striped red star', or 'a red star'."""
    texture = _pick(rng, TEXTURE_WORDS[thing.texture]) if rng.random() < TEXTURE_SAID else ""
    turned = abs(thing.tilt_rad) > TILTED_RAD and thing.shape not in ROUND
    tilted = "tilted" if turned and rng.random() < TILT_SAID else ""
    told = "" if brief else f"{_pick(rng, SIZE_WORDS[thing.size])} {tilted} {texture}"
    words = f"{told} {thing.colour} {_pick(rng, SHAPE_WORDS[thing.shape])}".split()
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _count(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """'two red stars'."""
    return f"{NUMBERS[len(things)]} {things[0].colour} {_plural(_pick(rng, SHAPE_WORDS[things[0].shape]))}"


def _plural(word: str) -> str:
    return PLURALS.get(word, word + "s")


def place_phrase(thing: Thing) -> str:
    """'on the left', 'at the top right', 'in the centre', ..."""
    if thing.row == "middle":
        return "in the centre" if thing.column == "centre" else f"on the {thing.column}"
    return f"at the {thing.row}" if thing.column == "centre" else f"at the {thing.row} {thing.column}"


def relation(first: Thing, second: Thing, all_things: tuple[Thing, ...]) -> tuple[str, str]:
    """How the first lies to the second, and the second to the first."""
    dx, dy = second.x - first.x, second.y - first.y
    if np.hypot(dx, dy) < 0.85 * (first.radius + second.radius):
        before, after = RELATIONS["front"]  # later objects are painted over earlier ones
        return (before, after) if all_things.index(first) < all_things.index(second) else (after, before)
    before, after = RELATIONS["across" if abs(dx) > abs(dy) else "down"]
    return (before, after) if (dx if abs(dx) > abs(dy) else dy) > 0 else (after, before)


def ground_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """The background in words, with its colours where it is a wall."""
    if scene.background in GROUND_PHRASES:
        ground, sky = _pick(rng, GROUND_PHRASES[scene.background]), _pick(rng, SKY_PHRASES[scene.sky])
        return f"{ground} {sky}" if rng.random() < 0.7 else ground if rng.random() < 0.5 else sky
    colours, direction = scene.colours, _direction(scene, rng)
    return _WALLS[scene.background].format(
        first=colours[0], last=colours[-1], both=" and ".join(colours), direction=direction
    )


_WALLS = {
    "plain": "on a {first} wall",
    "fade": "on a {first} to {last} fade",
    "halves": "on a half {first} half {last} wall",
    "stripes": "on {direction} {both} stripes",
    "waves": "on {both} waves",
    "checks": "on {both} checks",
    "spots": "on {last} spots over {first}",
}
WALL_PHRASES = tuple(_WALLS.values())


def _direction(scene: Scene, rng: np.random.Generator) -> str:
    """How stripes run, now and then; they change along `angle_rad`, so at 0 they are vertical."""
    turn = min(scene.angle_rad, np.pi - scene.angle_rad) / (np.pi / 2)
    word = DIRECTIONS[int(np.searchsorted((0.25, 0.75), turn))]
    return word if rng.random() < 0.5 else ""


def _light(scene: Scene, rng: np.random.Generator) -> str:
    """Where the light comes from, if it is seen and worth a word."""
    side = int(np.round(scene.light_rad / (np.pi / 2))) % 4
    return LIGHT_PHRASES[side] if scene.light > LIGHT_SEEN and rng.random() < LIGHT_SAID else ""


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
