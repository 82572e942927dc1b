"""Several pictures of one stimulus made into one score: by name, because each means something else.

``mean``        every repeat is scored, scores are averaged: what one picture is worth. All tables here use it.
``best``        the best-scored repeat: needs the true picture to choose, so it is a ceiling and no decoding result.
``pixel_mean``  the repeats are averaged as pictures before scoring: noise cancels, which raises pixel scores and blurs.

N images, R repeats, H W picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError, unknown

BETTER = ("higher", "lower")
ScoreAggregation = Callable[[NDArray[np.float64], str], NDArray[np.float64]]
PictureAggregation = Callable[[NDArray[Any]], NDArray[np.float32]]


def mean_of_repeats(scores_NR: NDArray[np.float64], better: str = "higher") -> NDArray[np.float64]:
    """(N,) mean over repeats; NaN where a repeat has no score."""
    _check(scores_NR, better)
    return np.asarray(scores_NR.mean(1))


def best_of_repeats(scores_NR: NDArray[np.float64], better: str = "higher") -> NDArray[np.float64]:
    """(N,) the highest score of the repeats, or the lowest where lower is better; NaN where one has no score."""
    _check(scores_NR, better)
    return np.asarray(scores_NR.max(1) if better == "higher" else scores_NR.min(1))


def pixel_mean(images_NRHW3: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 1, H, W, 3) float32 in [0, 1]: the mean picture of the repeats, itself the only repeat.

    Args:
        images_NRHW3: uint8, or floats in [0, 1].
    """
    if images_NRHW3.ndim < 3 or images_NRHW3.shape[1] < 1:
        raise UserError(f"pictures {images_NRHW3.shape} were found; (images, repeats, H, W, 3) are wanted.")
    scale = 255.0 if images_NRHW3.dtype == np.uint8 else 1.0
    return np.asarray(images_NRHW3.mean(1, keepdims=True, dtype=np.float64) / scale, np.float32)


def _check(scores_NR: NDArray[np.float64], better: str) -> None:
    if scores_NR.ndim != 2 or scores_NR.shape[1] < 1:
        raise UserError(f"scores {scores_NR.shape} were found; (images, repeats) with at least one repeat are wanted.")
    if better not in BETTER:
        raise unknown("direction of a metric", better, BETTER)


OF_SCORES: dict[str, ScoreAggregation] = {"mean": mean_of_repeats, "best": best_of_repeats}
OF_PICTURES: dict[str, PictureAggregation] = {"pixel_mean": pixel_mean}
AGGREGATIONS = (*OF_SCORES, *OF_PICTURES)
