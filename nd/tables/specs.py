"""Table specs: one YAML file of ``experiments/`` per table, saying which runs are its rows and what it compares.

Rows are overrides on top of an experiment, so a row's run is found by identity and never by name. Fields::

    title, experiment, subjects, overrides, columns, rows, paired, images, curve, expected, tolerance, published,
    averaged, extends

``overrides`` hold for all rows unless the command line says otherwise. A row with a ``grid`` (``{key: [values]}``)
stands for a row at each of its points, which are named by ``{name}`` in its label, the last part of a key. Without
``experiment`` rows are on top of whatever is composed, with ``{method}``, ``{data}`` and ``{targets}`` for what that
is; without ``columns`` a table shows the scores that all of its rows have, and a pair without ``metrics`` compares all.
``expected`` holds the scores that ``nd table check=true`` compares with: ``{row label: {metric: mean}}``, for the first
subject. ``published`` names sets of ``nd.tables.published`` or rows of them, or holds rows written out; they are shown
apart, each under its own protocol. ``averaged`` names rows that differ in their seed alone; their mean is a row of the
block of means, where every row stands with its mean over subjects if there are several. ``extends`` names another
table, whose fields hold where this one has none; its rows, pairs and expected scores follow this one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from nd.config import Config
from nd.config.components import PACKAGE
from nd.config.overrides import quoted
from nd.errors import UserError, unknown
from nd.runs.identity import reads_predictions, reads_targets
from nd.tables.published import Published, find_published
from nd.tables.spec_rows import Averaged, Column, Pair, Point, Row, grid_problems
from nd.tables.yaml_files import build, build_all, read_yaml, refuse

MOST_DECIMALS = 17  # of a column: a float has no more digits
ROLES = ("method", "oracle", "control", "floor", "reference")
DEFAULT = "default"  # the table of whatever is composed
# In an installed wheel, in a checkout. Beside an installed wheel `experiments` would be some other package's.
FOLDER = next(folder for folder in (PACKAGE / "_experiments", PACKAGE.parent / "experiments") if folder.is_dir())


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A whole table."""

    name: str
    folder: Path
    title: str
    rows: list[Row]
    experiment: str = ""  # none: what is composed
    subjects: list[str] = field(default_factory=list)  # none: the one that is composed
    overrides: list[str] = field(default_factory=list)  # of all rows; what is given on the command line wins
    columns: list[Column] = field(default_factory=list)  # none: the scores that all rows have
    paired: list[Pair] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # rows the report shows beside the stimulus
    curve: str = ""  # tuning.json, relative to the folder of the spec that names it
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
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _spec_path(name: str) -> Path:
    if not name:
        raise UserError(f"no table was named. Give table=<name>, one of: {', '.join(available())}.")
    own = Path(name)
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise UserError(f"table={name}: there is no such file. Shipped tables: {', '.join(available())}.")
        return own
    if (FOLDER / f"{name}.yaml").is_file():
        return FOLDER / f"{name}.yaml"
    if (file := Path(f"{name}.yaml")).is_file():
        raise UserError(f"table={name}: no shipped table has that name. For the file that lies here give table={file}.")
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
        given |= {"published": _published(given.get("published") or [], problems)}
    spec = build(TableSpec, given, path.name, problems, name=path.stem, folder=path.parent)
    if spec is not None:
        problems += [problem for row in spec.rows for problem in grid_problems(row)]
        spec = replace(spec, rows=[point for row in spec.rows for point in row.points()])
    refuse(path, problems or (_inconsistencies(spec) if spec else []))
    assert spec is not None  # or there were problems
    return spec


def spec_of(cfg: Config) -> TableSpec:
    """Return the spec that a configuration names with ``table=``; without one the table of what is composed.

    Args:
        cfg: its ``debug.limit_grid`` leaves out further points of a grid, and what the spec says of them.

    Returns:
        The spec; one without an experiment is named after data and method, and has only rows that such a method can
        have.

    Raises:
        UserError: no such spec, or problems in it.
    """
    spec = load_spec(cfg.table or DEFAULT)
    if cfg.debug.limit_grid:
        spec = _only(spec, lambda row: not isinstance(row, Point) or row.place < cfg.debug.limit_grid)
    if spec.experiment:
        return spec
    words = {"method": cfg.method.name, "data": cfg.data.name, "targets": ",".join(cfg.method.targets)}
    possible = {"oracle": reads_targets(cfg), "control": reads_predictions(cfg)}
    spec = _only(spec, lambda row: possible.get(row.role, True))
    name = f"{cfg.data.name}-{cfg.method.name}" if spec.name == DEFAULT else spec.name
    return replace(cast(TableSpec, _filled(spec, words)), name=name)


def _only(spec: TableSpec, wanted: Callable[[Row], bool]) -> TableSpec:
    """The spec with some of its rows, and what it says of them alone."""
    rows = [row for row in spec.rows if wanted(row)]
    labels = {row.label for row in rows}
    return replace(
        spec,
        rows=rows,
        paired=[pair for pair in spec.paired if {pair.a, pair.b} <= labels],
        averaged=[mean for mean in spec.averaged if set(mean.rows) <= labels],
        images=[label for label in spec.images if label in labels],
        expected={label: scores for label, scores in spec.expected.items() if label in labels},
    )


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """A value with ``{word}`` replaced in every text in it."""
    if isinstance(value, str):
        for word, text in words.items():
            value = value.replace(f"{{{word}}}", text)
    elif isinstance(value, list):
        return [_filled(one, words) for one in value]
    elif isinstance(value, Row | Pair | TableSpec):
        return replace(value, **{name: _filled(one, words) for name, one in vars(value).items()})
    return value


def _extended(given: Any, seen: tuple[Path, ...]) -> Any:
    """The fields of a spec together with those of the table that it extends."""
    if not isinstance(given, dict) or not (name := given.pop("extends", "")):
        return given
    if not isinstance(name, str):
        raise UserError(f"{seen[-1]}: extends is {name!r}, wanted the name of one table, or its file.")
    path = _spec_path(name)
    if path.resolve() in seen:
        raise UserError(f"{seen[0]}: extends leads back to {path.name}. A table can extend others that are complete.")
    base = _extended(read_yaml(path, "a table spec", TableSpec), (*seen, path.resolve()))
    if not isinstance(base, dict):
        raise UserError(f"{path} is {type(base).__name__}, wanted a mapping")
    if isinstance(curve := base.get("curve"), str) and curve:
        base["curve"] = str(path.resolve().parent / curve)
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
    problems += [f"subjects lists {who!r} twice" for who in sorted(set(spec.subjects)) if spec.subjects.count(who) > 1]
    problems += [
        f"column {column.metric!r}: decimals is {column.decimals}, wanted 0 to {MOST_DECIMALS}"
        for column in spec.columns
        if not 0 <= column.decimals <= MOST_DECIMALS
    ]
    if spec.tolerance < 0:
        problems.append(f"tolerance is {spec.tolerance}, wanted 0 or more")
    for row in spec.rows:
        if row.role not in ROLES:
            problems.append(str(unknown(f"role of row {row.label!r}:", row.role, ROLES)))
    used_labels = [("paired", x) for pair in spec.paired for x in (pair.a, pair.b)]
    used_labels += [("averaged", x) for mean in spec.averaged for x in mean.rows]
    used_labels += [("images", x) for x in spec.images] + [("expected", x) for x in spec.expected]
    problems += _missing("row", used_labels, labels)
    used_metrics = [("paired", x) for pair in spec.paired for x in pair.metrics]
    used_metrics += [("expected", x) for scores in spec.expected.values() for x in scores]
    problems += _missing("column", used_metrics, metrics) if metrics else []
    for mean in spec.averaged:
        if len(set(mean.rows)) < 2 or mean.label in labels:
            problems.append(f"averaged {mean.label!r}: at least two rows and a label of its own are wanted")
    if not spec.rows:
        problems.append("rows must list at least one")
    if spec.experiment and not spec.subjects:
        problems.append("subjects must list at least one where an experiment is named")
    return problems


def _missing(what: str, used: Iterable[tuple[str, str]], allowed: list[str]) -> list[str]:
    return [f"{where} names no {what}: {unknown(what, x, allowed)}" for where, x in used if x not in allowed]


def subjects_of(spec: TableSpec, cfg: Config) -> list[str]:
    """Return the subjects of the table: those of the spec, or the one that was given with ``subject=``."""
    given = any(item.lstrip("+").split("=")[0] in ("subject", "subject.name") for item in cfg.overrides)
    return [cfg.subject.name] if given or not spec.subjects else list(spec.subjects)


def expand(spec: TableSpec, cfg: Config, derive: Callable[..., Config]) -> list[Entry]:
    """Return every row for every subject; ``derive`` composes the configuration with further overrides."""
    base = replace(cfg, overrides=[*spec.overrides, *cfg.overrides])  # the later of a key wins
    experiment = [f"experiment={spec.experiment}"] if spec.experiment else []
    return [
        Entry(row, subject, derive(base, *experiment, f"subject.name={quoted(subject)}", *row.overrides))
        for subject in subjects_of(spec, cfg)
        for row in spec.rows
    ]


def rows_of(cfg: Config, compose: Callable[..., Config]) -> list[Config]:
    """Return the configurations of a table's rows, as ``compose`` makes them; none where no table is named."""
    return shown_rows(cfg, compose) if cfg.table else []


def shown_rows(cfg: Config, compose: Callable[..., Config]) -> list[Config]:
    """Return the same for verbs that show a table: of what is composed where none is named."""
    return [entry.cfg for entry in expand(spec_of(cfg), cfg, compose)]
