"""The points of a sweep as one table: a long CSV with a column per swept key, Markdown, and a plot.

A point is a job; points that are the same run share its scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

from nd.evaluation.scores import RunScores, Score, read_scores
from nd.files import atomic_path, sha256_json, write_text
from nd.runs.catalogue import MAIN_SCORES
from nd.runs.chain import state_of, steps_of
from nd.runs.folder import RunFolder
from nd.runs.identity import generator_of
from nd.tables.csv_export import as_csv
from nd.tables.spec_rows import Column
from nd.tables.spec_rows import Point as AtPoint
from nd.tables.specs import Entry

SHOWN_SCORES = 4  # where a protocol has none of the main ones
NO_CHOICE = {"seed", "subject", "subject.name"}  # keys that nobody chooses by their scores
FACTS = (
    "n_images", "n_repeats", "protocol", "test_set", "simulated", "oracle", "control", "transductive",
)  # fmt: skip
ON_TEST = "These are scores of test images: choose settings by those of validation images (part=val)."


@dataclass(frozen=True)
class SweepRow:
    """One row of one point, its run, and its scores where there are any."""

    values: dict[str, str]
    entry: Entry
    folder: RunFolder
    run: RunScores | None
    state: str = "done"

    @property
    def label(self) -> str:
        """Label of the table's row, of a grid that of all its points, and the subject."""
        row = self.entry.row
        return f"{row.of if isinstance(row, AtPoint) else row.label} ({self.entry.subject})"

    def score(self, metric: str) -> Score | None:
        """Return a score, or None where there is none."""
        return self.run.scores.get(metric) if self.run else None


@dataclass(frozen=True)
class SweepTable:
    """All rows of all points, in the order of the jobs."""

    rows: list[SweepRow]

    @property
    def keys(self) -> list[str]:
        """The swept keys; a row of a table need not have all of them."""
        return list(dict.fromkeys(key for row in self.rows for key in row.values))

    @property
    def name(self) -> str:
        """Name of its files: the same points, in whatever order, have the same."""
        points = sorted(f"{sorted(row.values.items())} {row.label} {row.folder.run_id}" for row in self.rows)
        return f"sweep-{sha256_json(points)}"

    @property
    def runs(self) -> dict[str, list[SweepRow]]:
        """The rows that are one run, by its id."""
        found: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            found.setdefault(row.folder.run_id, []).append(row)
        return found

    @property
    def series(self) -> dict[str, list[SweepRow]]:
        """The rows of a table's row and subject over all points, by label; without a table there is one."""
        found: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            found.setdefault(row.label if row.entry.cfg.table else "", []).append(row)
        return found

    @property
    def metrics(self) -> list[str]:
        """The main scores that there are."""
        there = dict.fromkeys(name for row in self.rows if row.run for name in row.run.scores)
        return [name for name in MAIN_SCORES if name in there] or list(there)[:SHOWN_SCORES]

    @property
    def comparable(self) -> bool:
        """Whether all scores are of one protocol and of the same images."""
        return len({row.run.comparable for row in self.rows if row.run}) <= 1

    def heading(self, metric: str) -> str:
        """Return a metric with an arrow that points to better."""
        better = next((score.better for row in self.rows if (score := row.score(metric))), "higher")
        return f"{metric} {'↑' if better == 'higher' else '↓'}"

    @property
    def text(self) -> str:
        """The table as Markdown, as it is printed too."""
        body = [f"### Sweep of {' and '.join(self.keys) or 'the rows of a table'}", "", " ".join(self._facts()), ""]
        head = [*self.keys, *(["row"] if len(self.series) > 1 else []), *map(self.heading, self.metrics), "run"]
        lines = [self._line(rows) for rows in self.runs.values()]
        table = tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True, colalign=["left"] * len(head))
        return "\n".join([*body, str(table)]) + "\n"

    def _line(self, rows: Sequence[SweepRow]) -> list[str]:
        """Cells of one run; of a key in which its points differ all values."""
        values = [", ".join(dict.fromkeys(row.values.get(key, "") for row in rows)) for key in self.keys]
        scores = [Column(metric=metric).with_interval(rows[0].score(metric)) for metric in self.metrics]
        label = [", ".join(dict.fromkeys(row.label for row in rows))] if len(self.series) > 1 else []
        state = "" if rows[0].run else f" {rows[0].state.upper()}"
        run = f"{rows[0].folder.run_id}{state}"
        return [cell.replace("|", "\\|") for cell in (*values, *label, *scores, run)]

    def _facts(self) -> Iterator[str]:
        yield f"{len(self.rows)} points, {len(self.runs)} runs" + (
            "; points that are the same run were done once." if len(self.runs) < len(self.rows) else "."
        )
        scored = [row.run for row in self.rows if row.run]
        if scored and self.comparable:
            of = "simulated" if scored[0].simulated else "measured"
            part = {"val": "validation"}.get(self.rows[0].entry.cfg.part, "test")
            yield f"Protocol {scored[0].protocol}, {scored[0].n_images} {part} images, {of} fMRI;"
            yield "means with 95% bootstrap intervals over images."
        elif scored:
            yield "Points differ in protocol or images: their scores do not compare."
        if set(self.keys) - NO_CHOICE and any(row.entry.cfg.part == "test" for row in self.rows):
            yield ON_TEST
        yield from dict.fromkeys(
            f"{row.entry.cfg.method.name}: {note}." for row in self.rows if (note := generator_of(row.entry.cfg).note)
        )
        if any(row.entry.cfg.debug.name != "off" for row in self.rows):
            yield "Made in debug sizes: the numbers mean nothing."
        if any(row.run and row.run.oracle for row in self.rows):
            yield "Oracle features: a ceiling, not decoding."

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield a line per point and score for the CSV file; a point without scores has one that says so."""
        for row in self.rows:
            who = dict.fromkeys(self.keys, "") | row.values
            who |= {"row": row.entry.row.label, "subject_name": row.entry.subject}
            where = {"run": row.folder.run_id, "state": row.state}
            facts = {name: getattr(row.run, name, None) for name in FACTS}  # None: an empty cell
            scores = row.run.scores if row.run else {"": None}
            for metric, score in scores.items():
                values = {one.name: getattr(score, one.name, None) for one in fields(Score)}
                yield who | where | {"metric": metric} | values | facts


def sweep_table(entries: Sequence[tuple[dict[str, str], Entry]]) -> SweepTable:
    """Return the table of a sweep, of the swept keys' values of every point with each of its rows."""
    folders = [RunFolder.open(entry.cfg, "evaluate") for _, entry in entries]
    scores = {folder.run_id: read_scores(folder.path) for folder in folders if folder.done}
    rows = []
    for (values, entry), folder in zip(entries, folders, strict=True):
        state = "done" if folder.run_id in scores else state_of(steps_of(entry.cfg))
        rows.append(SweepRow(entry.row.point | values, entry, folder, scores.get(folder.run_id), state))
    return SweepTable(rows)


def write_sweep(table: SweepTable, folder: Path) -> list[Path]:
    """Write ``sweep-<id>.md``, ``.csv`` and, of one or two swept keys, ``.png`` into a folder; returns the paths."""
    from nd.tables.sweep_plots import sweep_plot

    stem = folder / table.name
    write_text(stem.with_suffix(".md"), table.text)
    write_text(stem.with_suffix(".csv"), as_csv(table.lines()))
    plot = sweep_plot(table)
    if plot is None:
        stem.with_suffix(".png").unlink(missing_ok=True)  # of an earlier attempt, which the table no longer shows
    else:
        with atomic_path(stem.with_suffix(".png")) as temporary:
            plot.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    suffixes = (".md", ".csv", *([] if plot is None else [".png"]))
    return [stem.with_suffix(suffix) for suffix in suffixes]


def number(text: str) -> float:
    """Return a value as typed as a number; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
