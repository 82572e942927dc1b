"""Run folders to one table: rows found by identity, compared, averaged and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nd.config import Config
from nd.errors import UserError
from nd.evaluation.scores import PerImage, Score, read_per_image, read_scores
from nd.metrics.intervals import subjects_note
from nd.metrics.measures import RETRIEVAL, columns
from nd.runs.folder import RunFolder, command_for
from nd.tables.published import Published
from nd.tables.rows import TableRow, refuse_incomparable
from nd.tables.sanity_checks import SanityChecks, sanity_checks
from nd.tables.specs import Column, Entry, TableSpec
from nd.tables.statistics import Difference, MeanRow, differences_of, means_of, power_note

ROLE_NOTES = {
    "oracle": "oracle: made from the true features of the test images; a ceiling, not decoding",
    "control": "control: voxels shuffled over the images before decoding; must be at chance",
    "shuffled_labels": "control: training images paired with the targets of others; must be at chance",
    "floor": "floor: no image is generated; what a method should beat",
    "reference": "reference: another decoder, for comparison",
}
DEBUG_NOTE = "Made in debug sizes: the numbers mean nothing."
REPEATS = {  # by protocol.aggregation
    "each": "scores of repeats are averaged within an image",
    "first": "of the repeats of an image the first is scored",
    "best": "of the repeats of an image each metric takes the best, chosen by the true image: a ceiling",
    "pixel_mean": "the repeats of an image are averaged before it is scored",
}
NAMES = {"pixcorr": "PixCorr", "ssim": "SSIM"}  # of columns that a spec does not name
RETRIEVAL_NOTE = (
    "retrieval: share of items whose own partner is the most similar of the candidates; 95% intervals of the mean over "
    "draws of candidates, none where one draw is all images"
)


def follows_release(cfg: Config) -> bool:
    """Whether sampler or mappers of a row follow the arithmetic of released code."""
    return "released" in [getattr(cfg.method, "variant", "nd"), *(mapper.variant for mapper in cfg.mappers)]


@dataclass(frozen=True)
class Table:
    """All rows of a spec; they share protocol, test set and number of images."""

    spec: TableSpec
    rows: list[TableRow]
    differences: list[Difference]
    means: list[MeanRow] = field(default_factory=list)
    sanity: SanityChecks = field(default_factory=SanityChecks)

    @property
    def title(self) -> str:
        """The spec's title, whether the voxels were measured or simulated, and whether sizes are those of debugging."""
        kind = "simulated" if self.rows[0].run.simulated else "measured"
        return f"{self.spec.title} - {kind} fMRI{f'. {DEBUG_NOTE}' if self.debug else ''}"

    @property
    def debug(self) -> bool:
        """Whether any row was made in debug sizes."""
        return any(row.entry.cfg.debug.name != "off" for row in self.rows)

    @property
    def caption(self) -> str:
        """Who, which protocol, which images, what the intervals are, and what few images could show."""
        run = self.rows[0].run
        power = power_note(self.differences, self.columns, self.subjects)
        said = f"{self.of_repeats}.{' ' if power else ''}{power}"
        debug = f"{DEBUG_NOTE} " if self.debug else ""
        return (
            f"{debug}{', '.join(self.subjects)}; protocol {run.protocol}; {run.n_images} test images "
            f"(set {run.test_set}); 95% bootstrap intervals over images; {said}"
        )

    @property
    def of_repeats(self) -> str:
        """What was made of the repeats of an image; old runs, which do not say it, averaged their scores."""
        return REPEATS[self.rows[0].run.settings.get("aggregation", "each")]

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
        released = dict.fromkeys(
            (row.row.label, row.entry.cfg.method.name) for row in self.rows if follows_release(row.entry.cfg)
        )
        declared = dict.fromkeys((row.row.label, row.variant, row.note) for row in self.rows if row.note)
        return [
            *(ROLE_NOTES[role] for role in roles if role in ROLE_NOTES),
            *([RETRIEVAL_NOTE] if any(column.metric.startswith(RETRIEVAL) for column in self.columns) else []),
            *(f"{label}: {note}" for label, note in own),
            *(f"{label}: variant {variant}, {note}" for label, variant, note in declared),
            *(
                f"{label}: follows released code; conf/method/{name}.yaml says what is done instead of what that does"
                for label, name in released
            ),
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
        return row_of(self.rows, label, subject).run.scores.get(metric)


def collect(spec: TableSpec, entries: Sequence[Entry], command: str) -> Table:
    """Read every row's scores, compare, average and check them.

    Args:
        spec: of the table.
        entries: its rows for every subject (``nd.tables.specs.expand``).
        command: what runs all missing rows, for the message.

    Raises:
        UserError: rows that are missing or not comparable, by name.
    """
    folders = [RunFolder.open(entry.cfg, "evaluate") for entry in entries]
    missing = [entry for entry, folder in zip(entries, folders, strict=True) if not folder.is_done()]
    if missing:
        raise UserError(_missing_message(spec, missing, len(entries), command))
    rows = [
        TableRow(entry, folder, read_scores(folder.path), by_image_id(read_per_image(folder.path / "per_image.csv")))
        for entry, folder in zip(entries, folders, strict=True)
    ]
    spec = spec if spec.columns else replace(spec, columns=shared_columns(rows))
    refuse_incomparable(spec.columns, spec.name, rows)

    def per_image(label: str, subject: str) -> PerImage:
        return row_of(rows, label, subject).per_image

    subjects = list(dict.fromkeys(entry.subject for entry in entries))
    differences = differences_of(spec.paired, [column.metric for column in spec.columns], subjects, per_image)
    means = means_of(spec.averaged, entries, per_image)
    return Table(spec, rows, differences, means, sanity_checks(rows, spec.columns))


def shared_columns(rows: Sequence[TableRow]) -> list[Column]:
    """Return a column for every score that all rows have, in the order of ``nd.metrics.measures.columns``."""
    return [
        Column(metric=name, name=NAMES.get(name, ""), percent=measure.kind == "two_way")
        for name, measure in columns().items()
        if all(name in row.run.scores for row in rows)
    ]


def row_of(rows: Sequence[TableRow], label: str, subject: str) -> TableRow:
    """Return the row of a label and a subject."""
    return next(row for row in rows if row.row.label == label and row.subject == subject)


def by_image_id(scores: PerImage) -> PerImage:
    """Return per-image scores in the rising order of their ids."""
    order = np.argsort(scores["image_id"], kind="stable")
    return {name: values[order] for name, values in scores.items()}


def _missing_message(spec: TableSpec, missing: Sequence[Entry], total: int, command: str) -> str:
    rows = "".join(f"\n  - {entry.label}: {command_for(entry.cfg, 'run', 'table=')}" for entry in missing)
    return (
        f"{len(missing)} of {total} rows of table {spec.name} have not been run. To run all that is missing:\n"
        f"  {command}\nor one by one:{rows}"
    )


def unexpected(table: Table) -> list[str]:
    """Return a line for every score that differs from the spec's expected value by more than its tolerance.

    Raises:
        UserError: the spec expects nothing, or the table lacks the subject whose scores it expects.
    """
    spec = table.spec
    if not spec.expected:
        raise UserError(
            f"table {spec.name} has no expected values to compare with. Add them to its spec as `expected:`."
        )
    subject = (spec.subjects or table.subjects)[0]
    if subject not in table.subjects:
        raise UserError(
            f"table {spec.name}: its expected values are those of {subject}, but what was made is the table of "
            f"{', '.join(table.subjects)}. Leave check=true or subject={table.subjects[0]} out."
        )
    lines = []
    for label, scores in spec.expected.items():
        for metric, wanted in scores.items():
            score = table.score(label, subject, metric)
            got = float("nan") if score is None else score.mean
            if not abs(got - wanted) <= spec.tolerance:
                lines.append(f"{label}, {metric}: {got:.4f}, expected {wanted:.4f} within {spec.tolerance}")
    return lines
