"""Learning curves that trained networks left behind, read for the rows of a table.

Both stages of a training write one line of JSON per epoch and fold (`nd.mappers.training.callbacks.Curve`). Rows that
read the same networks share their curves; rows whose mappers are fitted in closed form have none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nd.config import Config
from nd.files import located, read_json, read_lines
from nd.runs.chain import pretrain_of, steps_of
from nd.runs.folder import RunFolder
from nd.runs.identity import mapper_of
from nd.tables.rows import TableRow
from nd.tables.table import Table

log = logging.getLogger(__name__)

Series = list[tuple[int, float]]  # number of epochs trained, value
TOTAL = "total"


class Epoch(TypedDict):
    """What is read of one line of a curve."""

    epoch: int
    losses: dict[str, float]
    val: dict[str, dict[str, float]]


class Details(TypedDict, total=False):
    """What is read of how a network was trained."""

    epoch: int | None


class WithEpoch(TypedDict, total=False):
    """What is read of a checkpoint."""

    details: Details


@dataclass(frozen=True)
class Curve:
    """What one fold of a stage says of one target.

    Attributes:
        losses: in training, weighted as they were summed: the ``total`` first, then by term where there are several (of
            a target with several slices, the sum over them).
        scores: on validation images, by metric.
        kept: the epochs after which the weights that were kept were taken, None where that is not known.
    """

    losses: dict[str, Series]
    scores: dict[str, Series]
    kept: int | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a training, for people ("1. pretraining"), with a curve for each fold of the split."""

    title: str
    curves: list[Curve]


@dataclass(frozen=True)
class Learning:
    """How the network for one target was trained, and which rows read it."""

    rows: tuple[str, ...]
    target: str
    stages: list[Stage]


def learning_of(table: Table) -> list[Learning]:
    """Return what is known of every trained network of a table; one whose curves are gone is left out, with a warning.

    Raises:
        UserError: a file that is no curve.
    """
    found: dict[tuple[Path, str], tuple[list[str], list[Stage]]] = {}
    for row in table.rows:
        for cfg in trained_configs(row.entry.cfg):
            key = RunFolder.open(cfg, "train").path, cfg.target.name
            if key not in found:
                found[key] = [], stages_of(cfg)
            found[key][0].append(row_name(table, row))
    return [Learning(tuple(rows), target, stages) for (_, target), (rows, stages) in found.items() if stages]


def trained_configs(cfg: Config) -> list[Config]:
    """Return the configurations of a row's train steps, none where its mappers are not trained."""
    return [step.cfg for step in steps_of(cfg) if step.verb == "train" and mapper_of(step.cfg).trained]


def row_name(table: Table, row: TableRow) -> str:
    """Return the row's label, with the subject where the table has several."""
    return row.entry.label if len(table.subjects) > 1 else row.row.label


def stages_of(cfg: Config) -> list[Stage]:
    """Return the stages of one training that left curves, in order."""
    own, subject = RunFolder.open(cfg, "train").path, cfg.subject.name
    places = {f"training on {subject}": own}
    if cfg.training.pretrain:
        given = located(cfg.training.pretrained) if cfg.training.pretrained else None
        places = {"1. pretraining on others": given or RunFolder.open(pretrain_of(cfg), "train").path}
        places |= {f"2. fine-tuning on {subject}": own}
    stages = [Stage(title, curves_in(folder, cfg.target.name)) for title, folder in places.items()]
    return [stage for stage in stages if stage.curves]


def curves_in(folder: Path, target: str) -> list[Curve]:
    """Return the curves of all folds of a train run folder."""
    paths = sorted((folder / "training").glob("fold-*-curve.jsonl"))
    if not paths:
        log.warning("%s holds no learning curve; the report is without it", folder)
    return [curve_of(path, target) for path in paths]


def curve_of(path: Path, target: str) -> Curve:
    """Return what one file says of a target. UserError: it is no learning curve."""
    losses: dict[str, Series] = {}
    scores: dict[str, Series] = {}
    for line in read_lines(path, Epoch, "Train again: remove the run folder that holds this learning curve."):
        n_epochs = line["epoch"] + 1
        add(losses, n_epochs, terms(line["losses"], target))
        add(scores, n_epochs, line["val"].get(target, {}))
    return Curve(losses, scores, kept_epochs(path, target))


def add(series: dict[str, Series], n_epochs: int, values: dict[str, Any]) -> None:
    """Append the values of one epoch by name."""
    for name, value in values.items():
        series.setdefault(name, []).append((n_epochs, float(value)))


def terms(losses: dict[str, Any], target: str) -> dict[str, float]:
    """Return a target's loss and, where there are several, its terms, from losses named "slice/term".

    The slices of target g are called g_0, g_1, ...; every other target is one slice of its own name.
    """
    by_term: dict[str, float] = {}
    for name, value in losses.items():
        piece, _, term = name.partition("/")
        if piece == target or piece.removeprefix(f"{target}_").isdecimal():
            by_term[term] = by_term.get(term, 0.0) + float(value)
    total = {TOTAL: sum(by_term.values())} if by_term else {}
    return total | (by_term if len(by_term) > 1 else {})


def kept_epochs(path: Path, target: str) -> int | None:
    """Return after how many epochs the weights were taken that the checkpoint beside a curve holds."""
    fold, folder = path.name.removesuffix("-curve.jsonl"), path.parent.parent / "checkpoint"
    saved = [folder / name for name in (f"{fold}-{target}.json", f"{fold}.json") if (folder / name).is_file()]
    epoch = read_json(saved[0], WithEpoch).get("details", {}).get("epoch") if saved else None
    return None if epoch is None else int(epoch) + 1
