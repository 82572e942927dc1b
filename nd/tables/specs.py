"""Table specs: one YAML file of ``experiments/`` per table, saying which runs are its rows and what it compares.

Rows are overrides on top of an experiment, so a row's run is found by identity and never by name. Fields::

    title, experiment, subjects, columns, rows, paired, images, curve, expected, tolerance, published, averaged, extends

``expected`` holds the scores that ``nd table check=true`` compares with: ``{row label: {metric: mean}}``, for the first
subject. ``published`` names sets of ``nd.tables.published`` or rows of them, or holds rows written out; they are shown
apart, each under its own protocol. ``averaged`` names rows that differ in their seed alone; their mean is a row of the
block of means, where every row stands with its mean over subjects if there are several. ``extends`` names another
table, whose fields hold where this one has none; its rows, pairs and expected scores follow this one's. A row with a
``grid`` (``{key: [values]}``) is one row for every combination of values, called ``<label>, key=value``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from nd.config import Config
from nd.config.overrides import quoted
from nd.errors import UserError, unknown
from nd.tables.published import Published, find_published
from nd.tables.yaml_files import build, build_all, read_yaml, refuse

ROLES = ("method", "oracle", "control", "floor", "reference")
PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE.parent / "experiments", PACKAGE / "_experiments")  # a checkout; an installed wheel


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score: its key in ``scores.json`` and how it is shown."""

    metric: str
    name: str = ""
    percent: bool = False  # shown times 100
    decimals: int = 3

    def shown(self, value: float) -> str:
        """Return a value as the column shows it."""
        return f"{100 * value:.{max(0, self.decimals - 2)}f}%" if self.percent else f"{value:.{self.decimals}f}"

    @property
    def title(self) -> str:
        """The name shown."""
        return self.name or self.metric


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: overrides on top of the experiment, and what the row is for.

    Attributes:
        grid: values by key; the row stands for a row of each combination.
        values: of those keys, in such a row; ``of`` is the label that the combinations share.
    """

    label: str
    overrides: list[str] = field(default_factory=list)
    role: str = "method"
    note: str = ""
    grid: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    of: str = ""

    def points(self) -> list[Row]:
        """Return the rows of its grid, itself where it has none.

        >>> [row.label for row in Row(label="guided", grid={"guidance.kappa": ["1e3", "1e4"]}).points()]
        ['guided, kappa=1e3', 'guided, kappa=1e4']
        """
        if not self.grid:
            return [self]
        return [self._point(dict(zip(self.grid, values, strict=True))) for values in product(*self.grid.values())]

    def _point(self, values: dict[str, str]) -> Row:
        label = ", ".join([self.label, *(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())])
        overrides = [*self.overrides, *(f"{key}={value}" for key, value in values.items())]
        return replace(self, label=label, overrides=overrides, grid={}, values=values, of=self.label)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows compared image by image: the interval of the difference ``a - b``."""

    a: str
    b: str
    metrics: list[str]


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Rows that differ in their seed alone, whose scores are averaged within an image."""

    label: str
    rows: list[str]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A whole table."""

    name: str
    folder: Path
    title: str
    experiment: str
    subjects: list[str]
    columns: list[Column]
    rows: list[Row]
    paired: list[Pair] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # rows the report shows beside the stimulus
    curve: str = ""  # tuning.json, relative to the spec's folder
    expected: dict[str, dict[str, float]] = field(default_factory=dict)
    tolerance: float = 0.01
    published: list[Published] = field(default_factory=list)
    averaged: list[Averaged] = field(default_factory=list)

    def row(self, label: str) -> Row:
        """Return a row by label."""
        return next(row for row in self.rows if row.label == label)


@dataclass(frozen=True)
class Entry:
    """One row for one subject, with the configuration of its run."""

    row: Row
    subject: str
    cfg: Config

    @property
    def label(self) -> str:
        """The row's label and the subject, for messages."""
        return f"{self.row.label} ({self.subject})"


def available() -> list[str]:
    """Return the names of the shipped specs."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.yaml")})


def _spec_path(name: str) -> Path:
    if not name:
        raise UserError(f"no table was named. Give table=<name>, one of: {', '.join(available())}.")
    own = Path(name)
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise UserError(f"table={name}: there is no such file. Shipped tables: {', '.join(available())}.")
        return own
    for folder in FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise unknown("table", name, available())


def _published(given: Any, problems: list[str]) -> list[Published]:
    """Rows of ``published:``, which holds names of shipped rows or sets, and rows written out."""
    rows: list[Published] = []
    if not isinstance(given, list):
        problems.append(f"published is {type(given).__name__}, wanted a list")
        return rows
    for i, item in enumerate(given):
        if isinstance(item, str):
            try:
                rows += find_published(item)
            except UserError as error:
                problems.append(f"published[{i}]: {error}")
        elif (row := build(Published, item, f"published[{i}]", problems)) is not None:
            problems += [f"published[{i}] {problem}" for problem in row.problems()]
            rows.append(row)
    return rows


def load_spec(name: str) -> TableSpec:
    """Read ``experiments/<name>.yaml``, or a spec of your own given by its path; all problems in one ``UserError``."""
    path = _spec_path(name)
    given = _extended(read_yaml(path, "a table spec", TableSpec), (path.resolve(),))
    problems: list[str] = []
    if isinstance(given, dict):
        kinds = {"columns": Column, "rows": Row, "paired": Pair, "averaged": Averaged}
        given |= {key: build_all(kind, given, key, problems) for key, kind in kinds.items()}
        problems += [
            f"row {row.label!r}: grid of {key} is empty"
            for row in given["rows"] for key, values in row.grid.items() if not values
        ]  # fmt: skip
        given["rows"] = [point for row in given["rows"] for point in row.points()]
        given |= {"published": _published(given.get("published") or [], problems)}
    spec = build(TableSpec, given, path.name, problems, name=path.stem, folder=path.parent)
    refuse(path, problems or (_inconsistencies(spec) if spec else []))
    assert spec is not None  # or there were problems
    return spec


def _extended(given: Any, seen: tuple[Path, ...]) -> Any:
    """The fields of a spec together with those of the table that it extends."""
    if not isinstance(given, dict) or not isinstance(name := given.pop("extends", ""), str) or not name:
        return given
    path = _spec_path(name)
    if path.resolve() in seen:
        raise UserError(f"{seen[0]}: extends leads back to {path.name}. A table can extend others that are complete.")
    base = _extended(read_yaml(path, "a table spec", TableSpec), (*seen, path.resolve()))
    if not isinstance(base, dict):
        raise UserError(f"{path} is {type(base).__name__}, wanted a mapping")
    both = base | given
    for key in ("rows", "paired"):
        own, more = given.get(key) or [], base.get(key) or []
        both[key] = own + more if isinstance(own, list) and isinstance(more, list) else own
    expected = [spec.get("expected") or {} for spec in (base, given)]
    if all(isinstance(scores, dict) for scores in expected):
        both["expected"] = expected[0] | expected[1]
    return both


def _inconsistencies(spec: TableSpec) -> list[str]:
    labels = [row.label for row in spec.rows]
    metrics = [column.metric for column in spec.columns]
    problems = [f"two rows are called {label!r}" for label in sorted(set(labels)) if labels.count(label) > 1]
    for row in spec.rows:
        if row.role not in ROLES:
            problems.append(str(unknown(f"role of row {row.label!r}:", row.role, ROLES)))
    used_labels = [("paired", x) for pair in spec.paired for x in (pair.a, pair.b)]
    used_labels += [("averaged", x) for mean in spec.averaged for x in mean.rows]
    used_labels += [("images", x) for x in spec.images] + [("expected", x) for x in spec.expected]
    problems += _missing("row", used_labels, labels)
    used_metrics = [("paired", x) for pair in spec.paired for x in pair.metrics]
    used_metrics += [("expected", x) for scores in spec.expected.values() for x in scores]
    problems += _missing("column", used_metrics, metrics)
    for mean in spec.averaged:
        if len(set(mean.rows)) < 2 or mean.label in labels:
            problems.append(f"averaged {mean.label!r}: at least two rows and a label of its own are wanted")
    if not (spec.rows and spec.columns and spec.subjects):
        problems.append("rows, columns and subjects must each list at least one")
    return problems


def _missing(what: str, used: Iterable[tuple[str, str]], allowed: list[str]) -> list[str]:
    return [f"{where} names no {what}: {unknown(what, x, allowed)}" for where, x in used if x not in allowed]


def subjects_of(spec: TableSpec, cfg: Config) -> list[str]:
    """Return the subjects of the table: those of the spec, or the one that was given with ``subject=``."""
    given = any(item.lstrip("+").split("=")[0] in ("subject", "subject.name") for item in cfg.overrides)
    return [cfg.subject.name] if given else list(spec.subjects)


def expand(spec: TableSpec, cfg: Config, derive: Callable[..., Config]) -> list[Entry]:
    """Return every row for every subject.

    Args:
        spec: of the table.
        cfg: as the user composed it.
        derive: composes it with further overrides.
    """
    return [
        Entry(
            row,
            subject,
            derive(cfg, f"experiment={spec.experiment}", f"subject.name={quoted(subject)}", *row.overrides),
        )
        for subject in subjects_of(spec, cfg)
        for row in spec.rows
    ]


def rows_of(cfg: Config, compose: Callable[..., Config]) -> list[Config]:
    """Return the configurations of a table's rows, as ``compose`` makes them; none where no table is named."""
    return [entry.cfg for entry in expand(load_spec(cfg.table), cfg, compose)] if cfg.table else []
