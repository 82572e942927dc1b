"""Rows compared image by image: what a table says of each pair, and what its number of images could show at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.comparison import compare_paired, holm
from nd.metrics.power import smallest_difference
from nd.tables.specs import Column, Pair

N_BOOT = 10_000  # resamples of the images for a paired difference
FEW_IMAGES = 100  # below this a table says what it could have found
PerImage = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """Mean over n images of ``a - b`` in one metric with its 95% interval, sign-flip p-value and effect sizes."""

    a: str
    b: str
    subject: str
    metric: str
    mean: float
    lo: float
    hi: float
    n: int
    p: float
    d_z: float
    rank_biserial: float
    spread: float  # standard deviation of the differences over images
    p_holm: float = float("nan")  # corrected for all comparisons of the table


def differences_of(
    pairs: Sequence[Pair], subjects: Sequence[str], per_image: Callable[[str, str], PerImage]
) -> list[Difference]:
    """Compare all pairs of a table for every subject; ``per_image(label, subject)`` gives a row's scores.

    Raises:
        UserError: a row lacks a metric, or two rows have other images.
    """
    found: list[Difference] = []
    for subject in subjects:
        for pair in pairs:
            found += _paired(pair, subject, per_image(pair.a, subject), per_image(pair.b, subject))
    corrected = holm([difference.p for difference in found])
    return [replace(difference, p_holm=p) for difference, p in zip(found, corrected, strict=True)]


def _paired(pair: Pair, subject: str, a: PerImage, b: PerImage) -> list[Difference]:
    absent = [metric for metric in pair.metrics if metric not in a or metric not in b]
    if absent:
        raise UserError(f"paired rows {pair.a!r} and {pair.b!r} have no per-image scores for {', '.join(absent)}.")
    order_a, order_b = np.argsort(a["image_id"]), np.argsort(b["image_id"])
    if not np.array_equal(a["image_id"][order_a], b["image_id"][order_b]):
        raise UserError(f"paired rows {pair.a!r} and {pair.b!r} ({subject}) hold scores of different images.")
    found = []
    for metric in pair.metrics:
        got = compare_paired(a[metric][order_a], b[metric][order_b], N_BOOT)
        mean, lo, hi, n = got.difference.mean, got.difference.lo, got.difference.hi, got.difference.n
        facts = (got.p, got.d_z, got.rank_biserial, got.spread)
        found.append(Difference(pair.a, pair.b, subject, metric, mean, lo, hi, n, *facts))
    return found


def power_note(differences: Sequence[Difference], columns: Sequence[Column], subjects: Sequence[str]) -> str:
    """What so few images could show of each pair, as one sentence; empty where no pair has fewer than 100 images."""
    few = [difference for difference in differences if 2 <= difference.n < FEW_IMAGES]
    if not few:
        return ""
    by_metric = {column.metric: column for column in columns}
    said = []
    for one in few:
        column = by_metric[one.metric]
        who = f", {one.subject}" if len(subjects) > 1 else ""
        found = column.shown(smallest_difference(one.spread, one.n))
        said.append(f"{column.title} {found} ({one.a} minus {one.b}{who})")
    return (
        f"With {min(one.n for one in few)} images and the spread seen here, the smallest difference found with 80% "
        f"power at the 5% level (uncorrected) is: {'; '.join(said)}."
    )
