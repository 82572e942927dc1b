"""Means over subjects and over seeds, which treat subjects and images as drawn; seeds are averaged within an image.

Rows that differ in anything but their seed are never averaged.

K seeds, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.pooling import Pooled, over_seeds, pooled_interval
from nd.runs.identity import identity_of
from nd.tables.specs import Averaged, Entry

PerImage = dict[str, NDArray[np.float64]]
N_BOOT = 2000  # resamples, as usual in a protocol: means have no comparisons whose ends must be known finely


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


def means_of(
    averaged: Sequence[Averaged], entries: Sequence[Entry], per_image: Callable[[str, str], PerImage]
) -> list[MeanRow]:
    """Every row's mean over subjects, if there are several, and every mean over seeds.

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


def _pooled(
    rows: Sequence[str], subjects: Sequence[str], per_image: Callable[[str, str], PerImage]
) -> dict[str, Pooled]:
    tables = [[_in_order(per_image(label, subject)) for label in rows] for subject in subjects]
    ids = tables[0][0]["image_id"]
    flat = [table for group in tables for table in group]
    if not all(np.array_equal(table["image_id"], ids) for table in flat):
        raise UserError(f"rows {', '.join(rows)} of {', '.join(subjects)} hold scores of different images: no mean.")
    metrics = [name for name in tables[0][0] if name != "image_id" and all(name in table for table in flat)]
    scores: dict[str, Pooled] = {}
    for metric in metrics:
        by_subject = [over_seeds(np.stack([table[metric] for table in group])) for group in tables]
        if not np.isnan(np.stack(by_subject)).any(0).all():
            scores[metric] = pooled_interval(by_subject, n_boot=N_BOOT)
    return scores


def _in_order(table: PerImage) -> PerImage:
    order = np.argsort(table["image_id"])
    return {name: values[order] for name, values in table.items()}
