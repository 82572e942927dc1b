"""What stands beside the scores of a table in grids of its own: sanity checks, means, and published scores.

Published scores of one protocol make one block. They are in no column with computed ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nd.tables.published import SEEN, Published
from nd.tables.sanity_checks import Decoded, Finding, Standing
from nd.tables.specs import Column
from nd.tables.table import Table

CHECKS = "Sanity checks: methods between their floors and their ceiling"
DIVERSITY = "Diversity: effective dimension of what was decoded, and of the true features of the same images"
DIVERSITY_HOW = (
    "effective dimension: participation ratio of the eigenvalues of the covariance over images; a decoder that names "
    "one of a few stored answers has few dimensions"
)
HOW = (
    "differences are over the same images, positive where the row named first is better, with uncorrected 95% "
    "intervals; no better: the interval holds 0; share of the way: from the best floor (0%) to the best oracle (100%)"
)


@dataclass(frozen=True)
class Block:
    """A grid with a heading; its first line names the columns."""

    heading: str
    grid: list[list[str]]
    notes: list[str] = field(default_factory=list)


def blocks(table: Table) -> list[Block]:
    """Return the blocks of a table in the order in which they are shown."""
    means = [_means(table)] if table.means else []
    groups: dict[tuple[object, ...], list[Published]] = {}
    for row in table.published_apart:
        groups.setdefault((row.protocol, row.version, row.n_images, tuple(row.subjects)), []).append(row)
    return _sanity_blocks(table) + means + [_published(table, rows) for rows in groups.values()]


def _means(table: Table) -> Block:
    several = len(table.subjects) > 1
    heading = f"Mean over subjects ({', '.join(table.subjects)})" if several else "Mean over seeds"
    head = ["", "seeds", *(table.arrow(column) for column in table.columns)]
    lines = [
        [
            row.label if row.role == "method" else f"{row.label} ({row.role})",
            str(row.n_seeds),
            *(column.with_interval(row.scores.get(column.metric)) for column in table.columns),
        ]
        for row in table.means
    ]
    return Block(heading, [head, *lines], [table.means_note])


def _published(table: Table, rows: list[Published]) -> Block:
    """One block: the rows of one protocol, with the metrics that any of them has."""
    metrics = list(dict.fromkeys(metric for row in rows for metric, x in row.scores.items() if x is not None))
    columns = {metric: _as_printed(metric, rows) for metric in metrics}
    columns |= {column.metric: column for column in table.columns}
    head = ["", "seen", *(columns[metric].title for metric in metrics)]
    lines = [
        [
            published_label(row),
            row.seen,
            *(_value(row.scores.get(m), columns[m]) for m in metrics),
        ]
        for row in rows
    ]
    return Block(_heading(rows[0]), [head, *lines], _notes(rows))


def _as_printed(metric: str, rows: list[Published]) -> Column:
    """A column for a metric the table lacks: all digits that were printed, at least three."""
    printed = [repr(float(x)) for row in rows if (x := row.scores.get(metric)) is not None]
    return Column(metric=metric, decimals=max(3, *(len(text.partition(".")[2]) for text in printed)))


def _heading(row: Published) -> str:
    version = "" if row.version is None else f" v{row.version}"
    images = "number of images not known" if row.n_images is None else f"{row.n_images} images"
    subjects = ", ".join(row.subjects) or "subjects not known"
    return (
        f"Published values of another protocol ({row.protocol}{version}; {images}; {subjects}), "
        "not comparable with the rows above"
    )


def published_label(row: Published) -> str:
    """Return a published row's label, marked as one."""
    return f"{row.label} (published)"


def _value(value: float | None, column: Column) -> str:
    return "-" if value is None or math.isnan(value) else column.shown(value)


def _notes(rows: list[Published]) -> list[str]:
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.label)
    unsure = [row.label for row in rows if row.n_images is not None and row.basis in ("inferred", "unchecked")]
    return [
        "; ".join(f"{name}: {SEEN[name]}" for name in dict.fromkeys(row.seen for row in rows)),
        *(f"{', '.join(labels)}: {source}" for source, labels in by_source.items()),
        *([f"protocol and number of images are inferred or unchecked: {', '.join(unsure)}"] if unsure else []),
        *(f"{row.label}: {row.note}" for row in rows if row.note),
    ]


# ---- sanity checks


def _sanity_blocks(table: Table) -> list[Block]:
    """The sanity checks of a table: a grid of where methods stand, the findings in words, and the diversity."""
    checks = table.sanity
    if not checks.standings:
        return []
    several = len(table.subjects) > 1
    head = ["", *(["subject"] if several else []), "score", "best floor", "method", "oracle", "share of the way"]
    lines = [_line(standing, table.columns, several) for standing in checks.standings]
    findings = _sentences(checks.findings, table.columns, several) or [none_found(table)]
    ceilings = [_ceiling(subject, found) for subject, found in checks.voxels.items()]
    return [Block(CHECKS, [head, *lines], [*findings, HOW, *ceilings]), *_diversity(checks.decoded, several)]


def none_found(table: Table) -> str:
    """Say that nothing is wrong, as far as there are rows, and a value by chance, to tell by."""
    roles, has_chance = {row.row.role for row in table.rows}, any(table.chance(c) is not None for c in table.columns)
    above = " and ".join(f"{role}s" for role in ("floor", "control") if role in roles)
    said = {
        f"above its {above}": bool(above),
        "below its oracle": "oracle" in roles,
        "and controls are at chance": "control" in roles and has_chance,
    }
    return f"nothing found: every method is {', '.join(words for words, holds in said.items() if holds)}"


def _ceiling(subject: str, found: dict[str, Any]) -> str:
    return (
        f"noise ceiling of {subject}'s {found['n_voxels']} voxels, the explainable share of the variance of means over "
        f"{found['n_trials']:.3g} trials: median {found['median']:.2f}, 95th percentile {found['high']:.2f}"
    )


def _diversity(decoded: Sequence[Decoded], several: bool) -> list[Block]:
    if not decoded:
        return []
    who = ["decoded for", *(["subject"] if several else [])]
    head = [*who, "target", "images", "predicted", "true", "predicted / true"]
    lines = [
        [
            ", ".join(one.labels),
            *([one.subject] if several else []),
            one.target,
            str(one.n),
            *(f"{value:.1f}" for value in (one.predicted, one.true)),
            f"{one.ratio:.2f}",
        ]
        for one in decoded
    ]
    return [Block(DIVERSITY, [head, *lines], [DIVERSITY_HOW])]


def _line(standing: Standing, columns: Sequence[Column], several: bool) -> list[str]:
    column = _column(standing.metric, columns)
    values = [_value(value, column) for value in (standing.floor, standing.score, standing.oracle)]
    share = "-" if math.isnan(standing.share) else f"{standing.share:.0%}"
    return [standing.label, *([standing.subject] if several else []), column.title, *values, share]


def _sentences(findings: Sequence[Finding], columns: Sequence[Column], several: bool) -> list[str]:
    """One line for each thing said of a row, with the metrics it holds for."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        together.setdefault((one.label, one.subject, one.text), []).extend(_numbers(one, columns))
    return [
        f"{label}{f', {subject}' if several else ''}: {text}" + (f" ({'; '.join(numbers)})" if numbers else "")
        for (label, subject, text), numbers in together.items()
    ]


def _numbers(finding: Finding, columns: Sequence[Column]) -> list[str]:
    if finding.difference is None:
        return []
    column = _column(finding.metric, columns)
    return [f"{column.title} {column.with_interval(finding.difference)}"]


def _column(metric: str, columns: Sequence[Column]) -> Column:
    return next(column for column in columns if column.metric == metric)
