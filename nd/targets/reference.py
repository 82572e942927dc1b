"""Four fixed images with fixed captions, whose features tell whether extraction still gives what it gave.

A store holds the features that they had when it was begun. Settings, weights and stimuli are part of a store's name
already; what these four add is everything that nobody thought of: a library that resizes, normalises or attends
otherwise than before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.machine import versions
from nd.targets.base import Extractor, Items

N_REFERENCE = 4
CAPTIONS = (
    ["a red circle on a grey wall", "a round red thing"],
    ["a small white dog runs over a green meadow"],
    ["two people sit at a table with plates of food, a window behind them", "dinner for two", "a meal"],
    ["stripes"],
)
# Relative distance of an image's features from those stored that is still rounding: other processors and thread
# counts move float32 by 1e-5 or so; half precision keeps 8 to 11 bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}


def reference_items(side: int) -> Items:
    """The four images, uint8 (4, side, side, 3), and their captions: smooth colours, edges, texture, fine detail."""
    y, x = np.mgrid[0:side, 0:side] / max(1, side - 1)
    smooth = np.stack([x, y, 1 - x], -1)
    disc = np.where(((x - 0.4) ** 2 + (y - 0.55) ** 2 < 0.06)[..., None], [0.85, 0.12, 0.1], [0.5, 0.5, 0.52])
    waves = 0.5 + 0.4 * np.stack([np.sin(9 * x + 4 * y), np.sin(23 * y), np.cos(17 * x * y)], -1)
    # Not drawn at random: generators may change between versions, sines of large numbers do not.
    grain = np.modf(np.abs(np.sin((np.arange(side * side * 3) + 1.0) * 12.9898) * 4375.8545))[0].reshape(side, side, 3)
    pictures = np.stack([smooth, disc, waves, 0.1 + 0.8 * grain])
    images = np.rint(pictures * 255).astype(np.uint8)
    return Items(np.arange(N_REFERENCE, dtype=np.int32), images, [list(texts) for texts in CAPTIONS])


def reference_features(extractor: Extractor, side: int) -> NDArray[np.float32]:
    """(4, P) float32: what the extractor gives for the four images."""
    return extractor(reference_items(side)).reshape(N_REFERENCE, -1)


def drift(stored_4P: NDArray[np.float32], now_4P: NDArray[np.float32]) -> float:
    """The largest relative distance among the four images; infinite where features are not finite."""
    if not np.isfinite(now_4P).all():
        return float("inf")
    distance = np.linalg.norm(now_4P.astype(np.float64) - stored_4P, axis=1)
    return float((distance / np.maximum(np.linalg.norm(stored_4P.astype(np.float64), axis=1), 1e-30)).max())


def check_drift(
    what: str, stored_4P: NDArray[np.float32], now_4P: NDArray[np.float32], precision: str, made_with: Any
) -> None:
    """Raise UserError where the four images have other features than when the store was made; says what changed.

    Args:
        what: the store, for the message.
        precision: arithmetic of the networks.
        made_with: versions() when the store was made.
    """
    found = drift(stored_4P, now_4P)
    if found <= TOLERANCE[precision]:
        return
    now, before = versions(), dict(made_with or {})
    changed = [
        f"{n} {version} -> {now.get(n, 'absent')}" for n, version in sorted(before.items()) if now.get(n) != version
    ]
    cause = f"Since then: {', '.join(changed)}." if changed else "No version of a package changed; did the machine?"
    raise UserError(
        f"{what}: four reference images have other features now than when it was made, by {found:.1%} (tolerance "
        f"{TOLERANCE[precision]:.1%}), though weights and settings are the same. {cause} Decoders trained on this "
        "store do not fit features made now: go back to the former versions, or remove the store and everything made "
        "from it."
    )
