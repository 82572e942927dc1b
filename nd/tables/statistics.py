"""Statistics over the rows of a table: paired differences image by image, and means over subjects and seeds.

Means treat subjects and images as drawn; seeds are averaged within an image. Rows that differ in anything but their
seed are never averaged.

K seeds, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nd.errors import UserError
from nd.evaluation.scores import PerImage
from nd.metrics.comparison import compare_paired, holm, smallest_difference
from nd.metrics.intervals import Pooled, over_seeds, pooled_interval
from nd.runs.identity import identity_of
from nd.tables.specs import Averaged, Column, Entry, Pair

N_BOOT = 10_000  # resamples of the images for a paired difference
N_BOOT_MEANS = 2000  # as usual in a protocol: means have no comparisons whose ends must be known finely
FEW_IMAGES = 100  # below this a table says what it could have found
Scores = Callable[[str, str], PerImage]  # of a row's label and a subject, images in the order of their ids


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
    pairs: Sequence[Pair], metrics: Sequence[str], subjects: Sequence[str], per_image: Scores
) -> list[Difference]:
    """Compare all pairs of a table for every subject.

    Args:
        pairs: of labels, with the metrics compared.
        metrics: of the table's columns, compared by a pair that names none, as far as both rows have them by image.
        subjects: for whom.
        per_image: gives a row's scores, images in the order of their ids.

    Raises:
        UserError: a row lacks a metric, or two rows have other images.
    """
    found: list[Difference] = []
    for subject in subjects:
        for pair in pairs:
            a, b = per_image(pair.a, subject), per_image(pair.b, subject)
            every = [metric for metric in metrics if metric in a and metric in b]
            found += _paired(replace(pair, metrics=pair.metrics or every), subject, a, b)
    corrected = holm([difference.p for difference in found])
    return [replace(difference, p_holm=p) for difference, p in zip(found, corrected, strict=True)]


def _paired(pair: Pair, subject: str, a: PerImage, b: PerImage) -> list[Difference]:
    absent = [metric for metric in pair.metrics if metric not in a or metric not in b]
    if absent:
        raise UserError(f"paired rows {pair.a!r} and {pair.b!r} have no per-image scores for {', '.join(absent)}.")
    if not np.array_equal(a["image_id"], b["image_id"]):
        raise UserError(f"paired rows {pair.a!r} and {pair.b!r} ({subject}) hold scores of different images.")
    found = []
    for metric in pair.metrics:
        got = compare_paired(a[metric], b[metric], N_BOOT)
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


# ---- means over subjects and seeds


@dataclass(frozen=True)
class MeanRow:
    """One row of the block of means."""

    label: str
    role: str
    subjects: list[str]
    n_seeds: int
    scores: dict[str, Pooled]


def check_seeds(averaged: Averaged, entries: Sequence[Entry]) -> None:
    """Refuse rows that differ in anything but their seed, or not even in that.

    Raises:
        UserError: naming the two rows and what differs.
    """
    for subject in dict.fromkeys(entry.subject for entry in entries):
        group = [entry for entry in entries if entry.subject == subject and entry.row.label in averaged.rows]
        identities = [identity_of("evaluate", entry.cfg) for entry in group]
        first, *others = [{k: v for k, v in identity.items() if k != "seed"} for identity in identities]
        for entry, other in zip(group[1:], others, strict=True):
            if entry.row.role != group[0].row.role:
                first, other = first | {"role": group[0].row.role}, other | {"role": entry.row.role}
            if other != first:
                _refuse(averaged, group[0], entry, _changed(first, other))
        seeds = [identity.get("seed", "default") for identity in identities]
        for k, (seed, entry) in enumerate(zip(seeds, group, strict=True)):
            if seed in seeds[:k]:
                _refuse(averaged, group[seeds.index(seed)], entry, "nothing, not even their seed: they are one run")


def _changed(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    return ", ".join(f"{key} ({first.get(key, 'default')} against {other.get(key, 'default')})" for key in keys)


def _refuse(averaged: Averaged, a: Entry, b: Entry, what: str) -> None:
    raise UserError(
        f"averaged {averaged.label!r}: rows {a.row.label!r} and {b.row.label!r} ({a.subject}) may differ in their seed "
        f"alone, but they differ in {what}. Average only repetitions of one thing; others are rows of their own."
    )


def means_of(averaged: Sequence[Averaged], entries: Sequence[Entry], per_image: Scores) -> list[MeanRow]:
    """Return every row's mean over subjects, if there are several, and every mean over seeds.

    Raises:
        UserError: rows that may not be averaged.
    """
    for one in averaged:
        check_seeds(one, entries)
    subjects = list(dict.fromkeys(entry.subject for entry in entries))
    roles = {entry.row.label: entry.row.role for entry in entries}
    within = {label for one in averaged for label in one.rows}
    groups = {label: [label] for label in roles if label not in within} if len(subjects) > 1 else {}
    groups |= {one.label: one.rows for one in averaged}
    return [
        MeanRow(label, roles[rows[0]], subjects, len(rows), _pooled(rows, subjects, per_image))
        for label, rows in groups.items()
    ]


def _pooled(rows: Sequence[str], subjects: Sequence[str], per_image: Scores) -> dict[str, Pooled]:
    tables = [[per_image(label, subject) for label in rows] for subject in subjects]
    ids = tables[0][0]["image_id"]
    flat = [table for group in tables for table in group]
    if not all(np.array_equal(table["image_id"], ids) for table in flat):
        raise UserError(f"rows {', '.join(rows)} of {', '.join(subjects)} hold scores of different images: no mean.")
    metrics = [name for name in tables[0][0] if name != "image_id" and all(name in table for table in flat)]
    scores: dict[str, Pooled] = {}
    for metric in metrics:
        by_subject = [over_seeds(np.stack([table[metric] for table in group])) for group in tables]
        if not np.isnan(np.stack(by_subject)).any(0).all():
            scores[metric] = pooled_interval(by_subject, n_boot=N_BOOT_MEANS)
    return scores
