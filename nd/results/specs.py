"""Table specs: one YAML file of ``experiments/`` per table, saying which runs are its rows and what it compares.

Rows are overrides on top of an experiment, so a row's run is found by identity and never by name. Fields::

    title, experiment, subjects, columns, rows, paired, pictures, curve, expected, tolerance, published

``expected`` holds the scores that ``nd table check=true`` compares with: ``{row label: {metric: mean}}``, for the first
subject. Published rows are shown apart with their own protocol: they are never in one column with computed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nd.errors import UserError, did_you_mean, unknown
from nd.schema import Config

ROLES = ("method", "oracle", "control", "floor", "reference")
PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE.parent / "experiments", PACKAGE / "_experiments")  # a checkout; an installed wheel
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score: its key in ``scores.json`` and how it is shown."""

    metric: str
    name: str = ""
    percent: bool = False  # shown times 100
    decimals: int = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: overrides on top of the experiment, and what the row is for."""

    label: str
    overrides: list[str] = field(default_factory=list)
    role: str = "method"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows compared image by image: the interval of the difference ``a - b``."""

    a: str
    b: str
    metrics: list[str]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Printed scores, with the protocol and the place they come from."""

    label: str
    protocol: str
    source: str
    scores: dict[str, float]


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
    pictures: list[str] = field(default_factory=list)  # rows the report shows beside the stimulus
    curve: str = ""  # tuning.json, relative to the spec's folder
    expected: dict[str, dict[str, float]] = field(default_factory=dict)
    tolerance: float = 0.01
    published: list[Published] = field(default_factory=list)

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


def _build(kind: type[T], given: Any, where: str, problems: list[str], **extra: Any) -> T | None:
    """Build a dataclass from a mapping; what does not fit is added to ``problems``."""
    if not isinstance(given, dict):
        problems.append(f"{where} is {type(given).__name__}, wanted a mapping")
        return None
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    wrong = [f"{where} has no field {key!r}.{did_you_mean(key, known)}" for key in given if key not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    wrong += [f"{where} lacks {name!r}" for name in needed if name not in given and name not in extra]
    problems += wrong
    return None if wrong else kind(**given, **extra)


def _build_all(kind: type[T], given: dict[str, Any], key: str, problems: list[str]) -> list[T]:
    built = [_build(kind, item, f"{key}[{i}]", problems) for i, item in enumerate(given.get(key) or [])]
    return [item for item in built if item is not None]


def load_spec(name: str) -> TableSpec:
    """Read ``experiments/<name>.yaml``, or a spec of your own given by its path; all problems in one ``UserError``."""
    path = _spec_path(name)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    problems: list[str] = []
    parts: dict[str, Any] = {}
    if isinstance(given, dict):
        kinds = {"columns": Column, "rows": Row, "paired": Pair, "published": Published}
        parts = {key: _build_all(kind, given, key, problems) for key, kind in kinds.items()}
        given = given | parts
    spec = _build(TableSpec, given, path.name, problems, name=path.stem, folder=path.parent)
    if spec is not None and not problems:
        problems = _inconsistencies(spec)
    if problems or spec is None:
        raise UserError(f"{path} cannot be used:\n  - " + "\n  - ".join(problems))
    return spec


def _inconsistencies(spec: TableSpec) -> list[str]:
    labels = [row.label for row in spec.rows]
    metrics = [column.metric for column in spec.columns]
    problems = [f"two rows are called {label!r}" for label in sorted(set(labels)) if labels.count(label) > 1]
    for row in spec.rows:
        if row.role not in ROLES:
            problems.append(str(unknown(f"role of row {row.label!r}:", row.role, ROLES)))
    used_labels = [("paired", x) for pair in spec.paired for x in (pair.a, pair.b)]
    used_labels += [("pictures", x) for x in spec.pictures] + [("expected", x) for x in spec.expected]
    problems += _missing("row", used_labels, labels)
    used_metrics = [("paired", x) for pair in spec.paired for x in pair.metrics]
    used_metrics += [("expected", x) for scores in spec.expected.values() for x in scores]
    problems += _missing("column", used_metrics, metrics)
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
    """Return every row for every subject; ``derive`` composes the user's configuration with further overrides."""
    return [
        Entry(row, subject, derive(cfg, f"experiment={spec.experiment}", f"subject={subject}", *row.overrides))
        for subject in subjects_of(spec, cfg)
        for row in spec.rows
    ]
