"""Random numbers that belong to an image and to one use of it, and to nothing else.

Drawn on the CPU with a counter-based generator, so that batch size, order, device count and what was drawn before
never change them. B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keyed_generator(seed: int, image_id: int, repeat: int) -> np.random.Generator:
    """Return the random generator of one repeat (or layer, or other use) of one image; all three at least 0.

    Args:
        seed: of the run.
        image_id: stimulus number.
        repeat: number of the repeat, from 0.

    Returns:
        A generator on the CPU, the same wherever and in whatever order images are made.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, image_id, repeat])))


def keyed_normal(seed: int, image_ids: Sequence[int], repeat: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Draw standard normal numbers, a function of (seed, image id, repeat) alone.

    Args:
        seed: at least 0.
        image_ids: B stimulus numbers, at least 0.
        repeat: at least 0; whatever tells several draws for one image apart.
        shape: of the numbers of one image, for example (4, 16, 16).

    Returns:
        (B, *shape) float32.
    """
    noise = np.empty((len(image_ids), *shape), dtype=np.float32)
    for row, image_id in enumerate(image_ids):
        noise[row] = keyed_generator(seed, int(image_id), repeat).standard_normal(tuple(shape), dtype=np.float32)
    return noise
