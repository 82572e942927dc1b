"""Run folders to one table: rows found by identity, refused when they may not stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nd.errors import UserError
from nd.evaluation.panel import Judged, Panel, panel_of
from nd.metrics.pooling import subjects_note
from nd.runs.folder import RunFolder, command_for
from nd.tables.differences import Difference, PerImage, differences_of, power_note
from nd.tables.judges import refuse_other_weights
from nd.tables.means import MeanRow, means_of
from nd.tables.published import Published
from nd.tables.scores import RunScores, Score, read_per_image, read_scores
from nd.tables.specs import Column, Entry, Row, TableSpec

ROLE_NOTES = {
    "oracle": "oracle: made from the true features of the test images; a ceiling, not decoding",
    "control": "control: voxels shuffled over the images before decoding; must be at chance",
    "shuffled_labels": "control: training images paired with the targets of others; must be at chance",
    "floor": "floor: no image is generated; what a method should beat",
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
class Table:
    """All rows of a spec; they share protocol, test set and number of images."""

    spec: TableSpec
    rows: list[TableRow]
    differences: list[Difference]
    means: list[MeanRow] = field(default_factory=list)
    panel: Panel = field(default_factory=Panel)

    @property
    def title(self) -> str:
        """The spec's title and whether the voxels were measured or simulated."""
        return f"{self.spec.title} - {'simulated' if self.rows[0].run.simulated else 'measured'} fMRI"

    @property
    def caption(self) -> str:
        """Who, which protocol, which images, what the intervals are, and what few images could show."""
        run = self.rows[0].run
        power = power_note(self.differences, self.columns, self.subjects)
        return (
            f"{', '.join(self.subjects)}; protocol {run.protocol}; {run.n_images} test images (set {run.test_set}); "
            "95% bootstrap intervals over images; scores of repeats are averaged within an image."
            f"{' ' if power else ''}{power}"
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
    def published_beside(self) -> list[Published]:
        """Published rows that may stand in one column with ours: same protocol, version and number of images."""
        return [row for row in self.spec.published if self._is_beside(row)]

    @property
    def published_apart(self) -> list[Published]:
        """Published rows of other protocols."""
        return [row for row in self.spec.published if not self._is_beside(row)]

    def _is_beside(self, row: Published) -> bool:
        run = self.rows[0].run
        named = row.version is not None and f"{row.protocol} v{row.version}" == run.protocol
        return named and row.n_images == run.n_images and not run.simulated

    @property
    def means_note(self) -> str:
        """What the intervals of the means are over."""
        few = subjects_note(len(self.subjects))
        return "95% intervals by drawing subjects and images; seeds are averaged within an image" + (
            f". {few[0].upper()}{few[1:]}." if few else "."
        )

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
        return f"{column.title} {'↑' if better == 'higher' else '↓'}"

    def chance(self, column: Column) -> float | None:
        """Return the column's value by chance, where one is known."""
        known = [s.chance for row in self.rows if (s := row.run.scores.get(column.metric)) and s.chance is not None]
        return known[0] if known else None

    def score(self, label: str, subject: str, metric: str) -> Score | None:
        """Return one score, or None where that row lacks it."""
        row = next(row for row in self.rows if row.row.label == label and row.subject == subject)
        return row.run.scores.get(metric)


def collect(spec: TableSpec, entries: Sequence[Entry], command: str) -> Table:
    """Read every row's scores. Rows that are missing or not comparable are a ``UserError`` that names them.

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
    refuse_other_weights([column.metric for column in spec.columns], [(row.entry.label, row.run) for row in rows])

    def per_image(label: str, subject: str) -> PerImage:
        row = next(row for row in rows if row.row.label == label and row.subject == subject)
        return read_per_image(row.run.path / "per_image.csv")

    subjects = list(dict.fromkeys(entry.subject for entry in entries))
    differences = differences_of(spec.paired, subjects, per_image)
    judged = [
        Judged(e.row.label, e.row.role, e.subject, *_scores(row.run)) for e, row in zip(entries, rows, strict=True)
    ]
    panel = panel_of(judged, spec.columns)
    return Table(spec, rows, differences, means_of(spec.averaged, entries, per_image), panel)


def _scores(run: RunScores) -> tuple[dict[str, Score], PerImage]:
    return run.scores, read_per_image(run.path / "per_image.csv")


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


def _refuse_empty_columns(spec: TableSpec, rows: Sequence[TableRow]) -> None:
    present = sorted({metric for row in rows for metric in row.run.scores})
    absent = [column.metric for column in spec.columns if column.metric not in present]
    if absent:
        raise UserError(
            f"no row of table {spec.name} has the scores {', '.join(absent)}. Scores there are: {', '.join(present)}."
        )


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
