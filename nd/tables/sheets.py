"""CSV files beside a table's own, for no column to hold two kinds of numbers: comparisons, panel, means, published."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, fields

from nd.evaluation.panel import Standing
from nd.tables.differences import Difference
from nd.tables.table import Table


def sheets_of(table: Table) -> dict[str, Callable[[Table], str]]:
    """Return what makes each CSV file that the table has lines for, by the kind of its lines."""
    kinds: dict[str, tuple[Sequence[object], Callable[[Table], str]]] = {
        "paired": (table.differences, paired_csv),
        "panel": (table.panel.standings, panel_csv),
        "means": (table.means, means_csv),
        "published": (table.spec.published, published_csv),
    }
    return {kind: sheet for kind, (lines, sheet) in kinds.items() if lines}


def _csv(head: tuple[str, ...], lines: Iterable[tuple[object, ...]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue()


def paired_csv(table: Table) -> str:
    """Return one CSV line per comparison of two rows."""
    head = tuple(field.name for field in fields(Difference))
    return _csv(head, (astuple(difference) for difference in table.differences))


def panel_csv(table: Table) -> str:
    """Return one CSV line per method and metric: where it stands between the best floor and the best oracle."""
    head = tuple(field.name for field in fields(Standing))
    return _csv(head, (astuple(standing) for standing in table.panel.standings))


def means_csv(table: Table) -> str:
    """Return one CSV line per mean over subjects and seeds, and metric."""
    head = ("row", "role", "subjects", "n_seeds", "metric", "mean", "lo", "hi", "n_images")
    return _csv(
        head,
        (
            (
                row.label,
                row.role,
                " ".join(row.subjects),
                row.n_seeds,
                metric,
                score.mean,
                score.lo,
                score.hi,
                score.n_images,
            )
            for row in table.means
            for metric, score in row.scores.items()
        ),
    )


def published_csv(table: Table) -> str:
    """Return one CSV line per published row and metric, with an empty value where none was seen."""
    head = (
        "method",
        "protocol",
        "version",
        "n_images",
        "subjects",
        "metric",
        "value",
        "seen",
        "basis",
        "source",
        "note",
    )
    return _csv(
        head,
        (
            (
                *(row.label, row.protocol, _blank(row.version), _blank(row.n_images), " ".join(row.subjects), metric),
                *(_blank(value), row.seen, row.basis, row.source, row.note),
            )
            for row in table.spec.published
            for metric, value in row.scores.items()
        ),
    )


def _blank(value: object) -> object:
    return "" if value is None else value
