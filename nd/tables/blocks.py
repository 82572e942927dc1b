"""What stands beside the scores of a table in grids of its own: validity panel, means, and published scores.

Published scores of one protocol make one block. They are in no column with computed ones.
"""

from __future__ import annotations

from nd.metrics.pooling import Pooled
from nd.tables.block import Block
from nd.tables.panel_block import panel_blocks
from nd.tables.published import SEEN, Published
from nd.tables.specs import Column
from nd.tables.table import Table


def blocks(table: Table) -> list[Block]:
    """Return the blocks of a table in the order in which they are shown."""
    means = [_means(table)] if table.means else []
    groups: dict[tuple[object, ...], list[Published]] = {}
    for row in table.published_apart:
        groups.setdefault((row.protocol, row.version, row.n_images, tuple(row.subjects)), []).append(row)
    return panel_blocks(table) + means + [_published(table, rows) for rows in groups.values()]


def _means(table: Table) -> Block:
    several = len(table.subjects) > 1
    heading = f"Mean over subjects ({', '.join(table.subjects)})" if several else "Mean over seeds"
    head = ["", "seeds", *(table.arrow(column) for column in table.columns)]
    lines = [
        [
            row.label if row.role == "method" else f"{row.label} ({row.role})",
            str(row.n_seeds),
            *(_pooled(row.scores.get(column.metric), column) for column in table.columns),
        ]
        for row in table.means
    ]
    return Block(heading, [head, *lines], [table.means_note])


def _pooled(score: Pooled | None, column: Column) -> str:
    if score is None:
        return "-"
    return f"{column.shown(score.mean)} [{column.shown(score.lo)}, {column.shown(score.hi)}]"


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
    return "-" if value is None else column.shown(value)


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
