"""Run folders to one table: rows found by identity, refused when they may not stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.statistics import paired_difference
from nd.results.folder import RunFolder, command_for
from nd.results.scores import RunScores, Score, read_per_image, read_scores
from nd.results.specs import Column, Entry, Pair, Row, TableSpec

N_BOOT = 10_000  # resamples of the images for a paired difference
ROLE_NOTES = {
    "oracle": "oracle: made from the true features of the test images; a ceiling, not decoding",
    "control": "control: voxels shuffled over the images before decoding; must be at chance",
    "shuffled_labels": "control: training images paired with the targets of others; must be at chance",
    "floor": "floor: no picture is generated; what a method should beat",
    "reference": "reference: another decoder, for comparison",
}


@dataclass(frozen=True)
class TableRow:
    """One row for one subject: the entry of the spec, its evaluate run, and the scores there."""

    entry: Entry
    folder: RunFolder
    run: RunScores

    @property
    def row(self) -> Row:
        """The row of the spec."""
        return self.entry.row

    @property
    def subject(self) -> str:
        """Whose voxels."""
        return self.entry.subject

    @property
    def label(self) -> str:
        """The row's label, with its role unless it is a method."""
        return self.row.label if self.row.role == "method" else f"{self.row.label} ({self.row.role})"


@dataclass(frozen=True)
class Difference:
    """Mean over images of ``a - b`` in one metric, with its 95% bootstrap interval over the n images."""

    a: str
    b: str
    subject: str
    metric: str
    mean: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True)
class Table:
    """All rows of a spec; they share protocol, test set and number of images."""

    spec: TableSpec
    rows: list[TableRow]
    differences: list[Difference]

    @property
    def title(self) -> str:
        """The spec's title and whether the voxels were measured or simulated."""
        return f"{self.spec.title} - {'simulated' if self.rows[0].run.simulated else 'measured'} fMRI"

    @property
    def caption(self) -> str:
        """Who, which protocol, which images, what the intervals are."""
        run = self.rows[0].run
        return (
            f"{', '.join(self.subjects)}; protocol {run.protocol}; {run.n_images} test images (set {run.test_set}); "
            "95% bootstrap intervals over images; scores of repeats are averaged within an image."
        )

    @property
    def subjects(self) -> list[str]:
        """The subjects, in order."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    @property
    def columns(self) -> list[Column]:
        """The columns of the spec."""
        return self.spec.columns

    @property
    def notes(self) -> list[str]:
        """One line for each role in the table, and the rows' own notes."""
        shuffled = "shuffled_labels"  # the other kind of control
        roles = dict.fromkeys(shuffled if row.run.control == shuffled else row.row.role for row in self.rows)
        own = dict.fromkeys((row.row.label, row.row.note) for row in self.rows if row.row.note)
        marks = dict.fromkeys(row.row.label for row in self.rows if row.run.transductive)
        return [
            *(ROLE_NOTES[role] for role in roles if role in ROLE_NOTES),
            *(f"{label}: {note}" for label, note in own),
            *(
                f"{label}: transductive, voxels or predictions were scaled with statistics of the test images"
                for label in marks
            ),
        ]

    def arrow(self, column: Column) -> str:
        """Return the column's name with an arrow that points to better."""
        better = next((s.better for row in self.rows if (s := row.run.scores.get(column.metric))), "higher")
        return f"{column.name or column.metric} {'↑' if better == 'higher' else '↓'}"

    def chance(self, column: Column) -> float | None:
        """Return the column's value by chance, where one is known."""
        known = [s.chance for row in self.rows if (s := row.run.scores.get(column.metric)) and s.chance is not None]
        return known[0] if known else None

    def score(self, label: str, subject: str, metric: str) -> Score | None:
        """Return one score, or None where that row lacks it."""
        row = next(row for row in self.rows if row.row.label == label and row.subject == subject)
        return row.run.scores.get(metric)


def collect(spec: TableSpec, entries: Sequence[Entry], command: str) -> Table:
    """Read every row's scores. Missing rows, and rows that are not comparable, are a ``UserError`` naming them.

    ``command`` is what runs all missing rows, for the message.
    """
    folders = [RunFolder.open(entry.cfg, "evaluate") for entry in entries]
    missing = [entry for entry, folder in zip(entries, folders, strict=True) if not folder.is_done()]
    if missing:
        raise UserError(_missing_message(spec, missing, len(entries), command))
    rows = [TableRow(entry, folder, read_scores(folder.path)) for entry, folder in zip(entries, folders, strict=True)]
    _refuse_mixed(rows)
    _refuse_mislabelled(rows)
    _refuse_empty_columns(spec, rows)
    differences = [
        d for s in dict.fromkeys(e.subject for e in entries) for p in spec.paired for d in _paired(p, s, rows)
    ]
    return Table(spec, rows, differences)


def _missing_message(spec: TableSpec, missing: Sequence[Entry], total: int, command: str) -> str:
    rows = "".join(f"\n  - {entry.label}: {command_for(entry.cfg, 'run', 'table=')}" for entry in missing)
    return (
        f"{len(missing)} of {total} rows of table {spec.name} have not been run. To run all that is missing:\n"
        f"  {command}\nor one by one:{rows}"
    )


def _refuse_mixed(rows: Sequence[TableRow]) -> None:
    first = rows[0]
    others = [row for row in rows if row.run.comparable != first.run.comparable]
    if not others:
        return
    listed = "\n".join(
        f"  - {row.row.label} ({row.subject}): protocol {run.protocol}, {run.n_images} images, set {run.test_set}"
        for row, run in ((row, row.run) for row in [first, *others])
    )
    raise UserError(
        "these rows were scored under different protocols or on different images and cannot stand in one table:\n"
        f"{listed}\nEvaluate them under one protocol and on the same images, or give them tables of their own."
    )


def _refuse_mislabelled(rows: Sequence[TableRow]) -> None:
    """A row that saw the true features, or shuffled voxels, must be shown as such; the spec cannot say otherwise."""
    for row in rows:
        facts = (("oracle", "an oracle", row.run.oracle), ("control", "a control", row.run.control != "none"))
        for role, kind, fact in facts:
            if fact != (row.row.role == role):
                is_or_not = "is" if fact else "is not"
                raise UserError(
                    f"row {row.row.label!r} has role {row.row.role!r}, but its run {is_or_not} {kind} run "
                    f"({row.run.path}). Correct the role or the overrides in the table spec."
                )
    if len({row.run.simulated for row in rows}) > 1:
        raise UserError("the table mixes rows from measured and from simulated fMRI. Give each a table of its own.")


def _refuse_empty_columns(spec: TableSpec, rows: Sequence[TableRow]) -> None:
    present = sorted({metric for row in rows for metric in row.run.scores})
    absent = [column.metric for column in spec.columns if column.metric not in present]
    if absent:
        raise UserError(
            f"no row of table {spec.name} has the scores {', '.join(absent)}. Scores there are: {', '.join(present)}."
        )


def _paired(pair: Pair, subject: str, rows: Sequence[TableRow]) -> list[Difference]:
    a, b = (_per_image(label, subject, rows) for label in (pair.a, pair.b))
    absent = [metric for metric in pair.metrics if metric not in a or metric not in b]
    if absent:
        raise UserError(f"paired rows {pair.a!r} and {pair.b!r} have no per-image scores for {', '.join(absent)}.")
    order_a, order_b = np.argsort(a["image_id"]), np.argsort(b["image_id"])
    intervals = {m: paired_difference(a[m][order_a], b[m][order_b], N_BOOT) for m in pair.metrics}
    return [Difference(pair.a, pair.b, subject, m, i.mean, i.lo, i.hi, i.n) for m, i in intervals.items()]


def _per_image(label: str, subject: str, rows: Sequence[TableRow]) -> dict[str, NDArray[np.float64]]:
    row = next(row for row in rows if row.row.label == label and row.subject == subject)
    return read_per_image(row.run.path / "per_image.csv")


def unexpected(table: Table) -> list[str]:
    """Return a line for every score that differs from the spec's expected value by more than its tolerance."""
    spec = table.spec
    if not spec.expected:
        raise UserError(
            f"table {spec.name} has no expected values to compare with. Add them to its spec as `expected:`."
        )
    lines = []
    for label, scores in spec.expected.items():
        for metric, wanted in scores.items():
            score = table.score(label, spec.subjects[0], metric)
            got = float("nan") if score is None else score.mean
            if not abs(got - wanted) <= spec.tolerance:
                lines.append(f"{label}, {metric}: {got:.4f}, expected {wanted:.4f} within {spec.tolerance}")
    return lines
