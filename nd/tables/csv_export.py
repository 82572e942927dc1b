"""CSV export: a line per score, and files of their own for what no column may mix with scores.

Numbers keep all their digits. Comparisons, sanity checks, means and published scores each have a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nd.tables.table import Table
from nd.terminal import plain_cell

Line = dict[str, Any]


def csv_files(table: Table) -> dict[str, str]:
    """Return the CSV files of a table by what their names end with; those without lines are left out."""
    kinds = {
        ".csv": scores(table),
        "-paired.csv": (asdict(difference) for difference in table.differences),
        "-sanity-checks.csv": (asdict(standing) for standing in table.sanity.standings),
        "-means.csv": means(table),
        "-published.csv": published(table),
    }
    return {suffix: made for suffix, lines in kinds.items() if (made := as_csv(lines))}


def as_csv(lines: Iterator[Line]) -> str:
    """Return lines under the names of their fields; None leaves a cell empty, and a number that is none is ``nan``."""
    import pandas as pd

    # As objects: whole numbers stay whole beside empty cells, and every float has the digits of its repr.
    frame = pd.DataFrame(
        [{k: "" if v is None else plain_cell(v) for k, v in line.items()} for line in lines], dtype=object
    )
    return "" if frame.empty else str(frame.to_csv(index=False, lineterminator="\n", na_rep="nan"))


def scores(table: Table) -> Iterator[Line]:
    """A line per row, subject and metric, with everything that makes rows comparable and the point on a grid."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row.row.point))
    for row in table.rows:
        run = row.run
        point = {key: row.row.point.get(key) for key in keys}
        who = {"table": table.spec.name, "row": row.row.label, "role": row.row.role, "subject": row.subject} | point
        facts = {
            "n_images": run.n_images, "n_repeats": run.n_repeats, "protocol": run.protocol, "test_set": run.test_set,
            "simulated": run.simulated, "oracle": run.oracle, "control": run.control, "run": row.folder.run_id,
        }  # fmt: skip
        for metric, score in run.scores.items():
            yield who | {"metric": metric} | asdict(score) | facts


def means(table: Table) -> Iterator[Line]:
    """A line per mean over subjects and seeds, and metric."""
    for row in table.means:
        who = {"row": row.label, "role": row.role, "subjects": " ".join(row.subjects), "n_seeds": row.n_seeds}
        for metric, score in row.scores.items():
            values = {name: getattr(score, name) for name in ("mean", "lo", "hi", "n_images")}
            yield who | {"metric": metric} | values


def published(table: Table) -> Iterator[Line]:
    """A line per published row and metric, with an empty value where none was seen."""
    for row in table.spec.published:
        of_row = {name: getattr(row, name) for name in ("protocol", "version", "n_images")}
        where = {name: getattr(row, name) for name in ("seen", "basis", "source", "note")}
        for metric, value in row.scores.items():
            score = {"subjects": " ".join(row.subjects), "metric": metric, "value": value}
            yield {"method": row.label} | of_row | score | where
