"""Several reconstructions of one stimulus: made into one score, by name, and how alike they are.

``each``        every repeat is scored, scores are averaged: what one image is worth. All tables here use it.
``first``       the first repeat alone, as published protocols do that sample one image.
``best``        the best-scored repeat, metric by metric: it takes the true image to choose, so it is a ceiling.
``pixel_mean``  the repeats are averaged as images before scoring: noise cancels, which raises pixel scores and blurs.

Published claims of consistency name no formula; whether guidance raises it depends on the measure, so three are given.

N images, R repeats, n some images, H W image; B stimuli, C H W image, D features, P pairs of repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError, unknown
from nd.metrics.correlation import cosine, pixcorr
from nd.metrics.ssim import ssim

Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES: dict[str, Similarity] = {"pixcorr": pixcorr, "ssim": ssim, "feature": cosine}
# What tables and scores.json say of each; the words take part in what may be compared.
AGGREGATIONS = {
    "each": "each repeat scored, repeats averaged within an image, interval over images",
    "first": "first repeat of an image scored, interval over images",
    "best": "best repeat of an image by each metric, chosen by the true image: a ceiling; interval over images",
    "pixel_mean": "repeats averaged as images and then scored, interval over images",
}
BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Repeat:
    """One image of every image, ``at`` a place among its repeats (None: their mean), read as it is asked for.

    images: (N, R, H, W, 3), an array or what is sliced like one; uint8, or floats in [0, 1].
    """

    images: Any
    at: int | None = 0

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """(n, H, W, 3) as they are; means of repeats are float32 in [0, 1]."""
        if self.at is None:
            return pixel_mean(self.images[rows])
        return np.asarray(self.images[rows, self.at])


def repeats_of(images_NRHW3: Any, aggregation: str) -> list[Repeat]:
    """Return the reconstructions of every stimulus that are scored, one at a time.

    Args:
        images_NRHW3: an array, or what is sliced like one.
        aggregation: one of ``AGGREGATIONS``.

    Raises:
        UserError: unknown aggregation, no repeat.
    """
    if aggregation not in AGGREGATIONS:
        raise unknown("protocol.aggregation", aggregation, AGGREGATIONS)
    n_repeats = images_NRHW3.shape[1]
    if n_repeats < 1:
        raise UserError("the reconstructions hold no repeat (second axis of length 0); at least one is wanted.")
    if aggregation == "pixel_mean":
        return [Repeat(images_NRHW3, None)]
    return [Repeat(images_NRHW3, at) for at in range(1 if aggregation == "first" else n_repeats)]


def of_repeats(scores: Sequence[Tensor], aggregation: str, better: str = "higher") -> Tensor:
    """(N,) one score of those (N,) of every repeat; NaN where a repeat has none.

    Args:
        scores: of each repeat.
        aggregation: ``best`` takes the highest, or the lowest where lower is better; others average.
        better: one of ``BETTER``.
    """
    if better not in BETTER:
        raise unknown("direction of a metric", better, BETTER)
    scores_RN = torch.stack(list(scores))
    if aggregation != "best":
        return scores_RN.mean(0)
    return scores_RN.amax(0) if better == "higher" else scores_RN.amin(0)


def pixel_mean(images_NRHW3: NDArray[Any]) -> NDArray[np.float32]:
    """(N, H, W, 3) float32 in [0, 1]: the mean image of the repeats, of uint8 or floats in [0, 1]."""
    scale = 255.0 if images_NRHW3.dtype == np.uint8 else 1.0
    return np.asarray(np.asarray(images_NRHW3).mean(1, dtype=np.float64) / scale, np.float32)


# ---- consistency


def pair_similarities(repeats_BR: Tensor, similarity: Similarity) -> Tensor:
    """Similarity (B, P) of each of the P = R (R - 1) / 2 pairs of repeats.

    Args:
        repeats_BR: (B, R, ...) images in [0, 1] (pixcorr, ssim) or features (cosine).
        similarity: one of ``SIMILARITIES``.

    Raises:
        UserError: fewer than two repeats.
    """
    if repeats_BR.shape[1] < 2:
        raise UserError(f"repeat consistency: {repeats_BR.shape[1]} repeat per image, at least 2 are needed.")
    pairs = combinations(range(repeats_BR.shape[1]), 2)
    return torch.stack([similarity(repeats_BR[:, a], repeats_BR[:, b]) for a, b in pairs], 1)


def consistencies(repeats_BR: Tensor, kind: str) -> dict[str, Tensor]:
    """Return the columns of one kind of consistency: mean and, where there is more than one pair, variance over pairs.

    Args:
        repeats_BR: as in ``pair_similarities``.
        kind: one of ``SIMILARITIES``.

    Returns:
        (B,) by name of column.

    The variance says whether some repeats stand apart. It describes these repeats and estimates nothing (divided by the
    number of pairs): pairs that share a repeat are not independent.
    """
    pairs_BP = pair_similarities(repeats_BR, SIMILARITIES[kind])
    found = {f"consistency_{kind}": pairs_BP.mean(1)}
    if pairs_BP.shape[1] > 1:
        found[f"consistency_{kind}_variance"] = pairs_BP.var(1, correction=0)
    return found
