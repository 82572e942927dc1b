"""Losses and validation scores of a training shown while it runs, and those of a finished one afterwards.

A training is one W&B run, each of its two stages another; where the split has several folds, theirs begin with
``fold-<k>/``. TensorBoard has a folder for each fold.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from nd.config import Config
from nd.files import read_json
from nd.launch import is_rank_zero
from nd.mappers.training.callbacks import values_of
from nd.mappers.training.fit import Files
from nd.runs.folder import RunFolder
from nd.tables import wandb_runs
from nd.tables.loggers import is_on

log = logging.getLogger(__name__)

MakeLogger = Callable[[int], Any]  # number of a fold -> Lightning logger, or False
SHOWN = ("train/*", "val/*", "epoch", "lr", "samples_per_s")


class History(WandbLogger):
    """The curve of one fold in a W&B run that is open: what it holds already is not shown twice."""

    def __init__(self, run: Any, prefix: str = "") -> None:
        """Take the run and the prefix of all names."""
        super().__init__(experiment=run)
        self.prefix = prefix
        self.last = run.summary.get(f"{prefix}epoch", -1) if run.resumed else -1
        run.define_metric("step", hidden=True)
        for name in SHOWN:
            run.define_metric(f"{prefix}{name}", step_metric="step")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Show the values of one epoch."""
        if metrics["epoch"] > self.last:
            self.experiment.log({f"{self.prefix}{name}": value for name, value in metrics.items()} | {"step": step})
            self.last = metrics["epoch"]


def tensorboard(cfg: Config, folder: RunFolder, part: str = "") -> TensorBoardLogger:
    """Return a TensorBoard logger of a run, or a part of it, that begins anew below ``<paths.runs>/tensorboard``."""
    place = Path(cfg.paths.runs) / "tensorboard" / folder.verb / folder.path.name / part
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    return TensorBoardLogger(place.parent, name="", version=place.name)


@contextmanager
def training_loggers(cfg: Config, folder: RunFolder, n_folds: int) -> Iterator[MakeLogger]:
    """Yield what makes a Lightning logger, or False, for each fold of a training; the W&B run is finished in any case.

    Args:
        cfg: of the training.
        folder: of the training.
        n_folds: of its split.
    """
    prefixes = [f"fold-{fold:02d}/" for fold in range(n_folds)] if n_folds > 1 else [""]
    if not is_on(cfg):
        yield lambda fold: False
    elif cfg.logger.name == "csv":
        yield lambda fold: CSVLogger(folder.path / "training", name="", version=f"fold-{fold:02d}-log")
    elif not is_rank_zero(cfg.trainer):
        yield lambda fold: False
    elif cfg.logger.name == "tensorboard":
        yield lambda fold: tensorboard(cfg, folder, prefixes[fold].rstrip("/"))
    else:
        with _wandb_run(cfg, folder) as run:
            yield lambda fold: History(run, prefixes[fold]) if run is not None else False


@contextmanager
def _wandb_run(cfg: Config, folder: RunFolder) -> Iterator[Any]:
    """Yield the W&B run of a training, or None where it cannot be opened; when the training is done, its scores go in.

    A view that fails takes no training down.
    """
    stack, run = ExitStack(), None
    with _warned(folder):
        run = stack.enter_context(wandb_runs.opened(cfg, wandb_runs.of_folder(cfg, folder)))
    try:
        yield run
    except BaseException:
        with _warned(folder):
            stack.__exit__(*sys.exc_info())
        raise
    if run is not None:
        with _warned(folder):
            with stack:
                run.summary.update(kept_scores(cfg, folder))
            wandb_runs.mark(cfg, folder)
            print(wandb_runs.where(cfg, run))


@contextmanager
def _warned(folder: RunFolder) -> Iterator[None]:
    """Make a warning of what goes wrong inside."""
    try:
        yield
    except Exception as error:  # wandb raises its own, and those of its network libraries
        log.warning("logger=wandb could not show %s (%s: %s)", folder.path, type(error).__name__, error)


def kept_scores(cfg: Config, folder: RunFolder) -> dict[str, float]:
    """Return the validation scores of what a finished training kept, as ``kept/<target>/<score>``."""
    mean = read_json(folder.path / "scores.json")["mean"]
    by_target = mean if all(isinstance(value, dict) for value in mean.values()) else {cfg.target.name: mean}
    return {f"kept/{target}/{name}": value for target, row in by_target.items() for name, value in row.items()}


def replay(cfg: Config, folder: RunFolder) -> None:
    """Show a finished training: its curves, where it has any, and the scores it kept."""
    n_folds = len(read_json(folder.path / "scores.json")["folds"])
    with training_loggers(cfg, folder, n_folds) as make:
        for fold in range(n_folds):
            curve = Files(folder.path, fold).curve
            lines = curve.read_text(encoding="utf-8").splitlines() if curve.is_file() else []
            if lines and (logger := make(fold)):
                for line in map(json.loads, lines):
                    logger.log_metrics(values_of(line), step=line["step"])
                logger.finalize("success")
