"""Repeat consistency: how alike the images are that were sampled for one stimulus from different noise.

Published claims of consistency name no formula; whether guidance raises it depends on the measure, so three are given.

B stimuli, R repeats, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from nd.errors import UserError
from nd.metrics.correlation import cosine, pixcorr
from nd.metrics.ssim import ssim

Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES: dict[str, Similarity] = {"pixcorr": pixcorr, "ssim": ssim, "feature": cosine}


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


def repeat_consistency(repeats_BR: Tensor, similarity: Similarity) -> Tensor:
    """Mean similarity (B,) over all pairs of repeats; arguments and errors as ``pair_similarities``."""
    return pair_similarities(repeats_BR, similarity).mean(1)


def consistencies(repeats_BR: Tensor, kind: str) -> dict[str, Tensor]:
    """The columns (B,) of one of ``SIMILARITIES``: mean and, where there is more than one pair, variance over pairs.

    The variance says whether some repeats stand apart. It describes these repeats and estimates nothing (divided by the
    number of pairs): pairs that share a repeat are not independent.
    """
    pairs_BP = pair_similarities(repeats_BR, SIMILARITIES[kind])
    found = {f"consistency_{kind}": pairs_BP.mean(1)}
    if pairs_BP.shape[1] > 1:
        found[f"consistency_{kind}_variance"] = pairs_BP.var(1, correction=0)
    return found
