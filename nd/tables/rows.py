"""Rows of a table: their runs and scores, and whether they may stand beside each other.

They need one protocol, one test set and the role that their run had; and in one column networks with the same weights.
The protocol's hash covers the weights whose publisher states their digits. Of others it knows the name alone, and what
was found is recorded with the scores: two rows of one protocol can still have been judged by different networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nd.errors import UserError
from nd.evaluation.scores import PerImage, RunScores
from nd.metrics.measures import RETRIEVAL, columns
from nd.runs.folder import RunFolder
from nd.runs.identity import generator_of
from nd.tables.specs import Column, Entry, Row


@dataclass(frozen=True)
class TableRow:
    """One row for one subject: the entry of the spec, its evaluate run, and the scores there, also those of each image.

    Images are in the order of their ids.
    """

    entry: Entry
    folder: RunFolder
    run: RunScores
    per_image: PerImage

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
        """The row's label, with its role unless it is a method, and the variant where that needs a note."""
        marks = [*([] if self.row.role == "method" else [self.row.role]), *([self.variant] if self.note else [])]
        return f"{self.row.label} ({', '.join(marks)})" if marks else self.row.label

    @property
    def note(self) -> str:
        """What the row's generator declares that every table says of it; mostly nothing."""
        return generator_of(self.entry.cfg).note

    @property
    def variant(self) -> str:
        """Whose arithmetic the row's generator follows."""
        return str(getattr(self.entry.cfg.method, "variant", "nd"))


def refuse_incomparable(columns: Sequence[Column], table: str, rows: Sequence[TableRow]) -> None:
    """Refuse rows that may not stand in one table.

    Raises:
        UserError: other protocols, settings or images; a role that the run had not; measured beside simulated voxels; a
            column that no row has; one network with other weights in one column.
    """
    _refuse_mixed(rows)
    _refuse_mislabelled(rows)
    metrics = [column.metric for column in columns]
    _refuse_empty_columns(metrics, table, rows)
    _refuse_other_weights(metrics, rows)


def _refuse_mixed(rows: Sequence[TableRow]) -> None:
    first = rows[0]
    others = [row for row in rows if row.run.comparable != first.run.comparable]
    if not others:
        return
    listed = "\n".join(f"  - {row.row.label} ({row.subject}): {_judged(row.run)}" for row in [first, *others])
    listed += "".join(_changed_settings(first, other) for other in others)
    raise UserError(
        "these rows were scored under different protocols or on different images and cannot stand in one table:\n"
        f"{listed}\nEvaluate them under one protocol and on the same images, or give them tables of their own."
    )


def _judged(run: RunScores) -> str:
    """How and on what a run was scored."""
    settings = f" (settings {run.settings_hash})" if run.settings_hash else ""
    aggregation = f", {run.aggregation}" if run.aggregation else ""
    return f"protocol {run.protocol}{settings}, {run.n_images} images, set {run.test_set}{aggregation}"


def _changed_settings(first: TableRow, other: TableRow) -> str:
    a, b = first.run.settings, other.run.settings
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    changed = ", ".join(f"{name} {a.get(name, 'absent')} against {b.get(name, 'absent')}" for name in names)
    return f"\n  {first.row.label} and {other.row.label} differ in {changed}" if changed else ""


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


def _refuse_empty_columns(metrics: Sequence[str], table: str, rows: Sequence[TableRow]) -> None:
    present = sorted({metric for row in rows for metric in row.run.scores})
    absent = [metric for metric in metrics if metric not in present]
    if absent:
        raise UserError(
            f"no row of table {table} has the scores {', '.join(absent)}. Scores there are: {', '.join(present)}."
        )


def networks_of(metric: str, networks: Iterable[str]) -> set[str]:
    """Return those of ``networks`` that decide a column; all of them for a column that no measure declares.

    None decides what decoded targets retrieve.
    """
    if metric.startswith(RETRIEVAL):
        return set()
    measure = columns().get(metric)
    return set(networks) if measure is None else {measure.view.network} & set(networks)


def _refuse_other_weights(metrics: Sequence[str], rows: Sequence[TableRow]) -> None:
    """Scores of old runs, which do not say which weights there were, are accepted."""
    networks = sorted({network for row in rows for network in row.run.weights})
    problems = [problem for network in networks if (problem := _mixed_weights(network, metrics, rows))]
    if problems:
        raise UserError(
            "these rows were judged by the same network with other weights and cannot stand in one column:\n"
            + "\n".join(problems)
            + "\nScore them with one set of weights (protocol.weights=<folder>): remove the folders of those that had "
            "others and run `nd evaluate` again. Or give them tables of their own."
        )


def _mixed_weights(network: str, metrics: Sequence[str], rows: Sequence[TableRow]) -> str:
    """The columns in which weights of a network differ, and every row there with its own; empty where there are none.

    A row stands in a column if it has a score there and says which weights judged it.
    """
    known = [row for row in rows if network in row.run.weights]
    standing = {
        metric: [row for row in known if metric in row.run.scores]
        for metric in metrics
        if networks_of(metric, [network])
    }
    mixed = {m: there for m, there in standing.items() if len({row.run.weights[network] for row in there}) > 1}
    if not mixed:
        return ""
    there = [row for row in known if row.run.scores.keys() & mixed.keys()]
    lines = (f"  - {row.entry.label}: {network} {row.run.weights[network]}, in {row.run.path}" for row in there)
    return "\n".join([f"{network}, columns {', '.join(mixed)}:", *lines])
