"""What happens beside the steps: scoring, the weights that are kept, the curve and the progress bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import TypedDict

from nd.data.epoch import processes
from nd.files import json_line, read_lines, write_text
from nd.mappers.base import Columns
from nd.mappers.statistics import TargetScale
from nd.mappers.training.module import MapperTraining
from nd.mappers.validation import target_scores
from nd.progress import ProgressBar

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Held = tuple[str, Tensor, dict[str, Tensor]]  # subject, image ids (N,), prediction (N, P) by target


class Kept(Callback):
    """Scores every validation and keeps the weights: those of the best one, or the last.

    The best has the smallest unexplained share of the variance, averaged over targets: what ridge regression chooses
    its penalty by. ``state_dict`` holds the weights, so a resumed training still has them. The last epoch is validated
    whatever its number is, so that something is always known of what is kept.

    Attributes:
        scores: of this epoch by target, empty where it is not validated.
        weights, epoch, kept_scores: what is kept, the epoch it is of (from 0), and the scores of that.
    """

    def __init__(
        self, keep: str, patience: int, truths: dict[str, Columns], scales: dict[str, TargetScale], every: int = 1
    ) -> None:
        """Keep nothing yet.

        Args:
            keep: "best" or "last".
            patience: validations without progress after which training stops; 0: never.
            truths: the targets of the validation images, by target.
            scales: of the training images' targets, by target.
            every: epochs between validations.
        """
        self.keep, self.patience, self.truths, self.scales, self.every = keep, patience, truths, scales, every
        self.scores: dict[str, dict[str, float]] = {}
        self.kept_scores: dict[str, dict[str, float]] = {}
        self.best, self.epoch, self.weights, self.without_progress = float("inf"), -1, Weights(), 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop at once where the training that is resumed had come to its end."""
        self._stop_without_progress(trainer)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget the scores of the last epoch, and see to it that the last one is validated."""
        self.scores = {}
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if is_last else self.every

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Score what was predicted; every process computes the same."""
        assert isinstance(module, MapperTraining)
        self.scores = score_held(from_all_processes(module.held), self.truths, self.scales)
        module.held.clear()
        unexplained = sum(scores["unexplained"] for scores in self.scores.values()) / len(self.scores)
        self.without_progress += 1
        if unexplained < self.best:
            self.best, self.without_progress = unexplained, 0
            if self.keep == "best":
                self._take(module, trainer.current_epoch)
        self._stop_without_progress(trainer)

    def _stop_without_progress(self, trainer: Trainer) -> None:
        if self.patience and self.without_progress >= self.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the last weights where those are wanted, or none were ever scored."""
        if not self.weights:
            assert isinstance(module, MapperTraining)
            self._take(module, trainer.current_epoch - 1)  # it counts the epochs that are done by now

    def _take(self, module: MapperTraining, epoch: int) -> None:
        self.weights = {name: value.detach().cpu().clone() for name, value in module.kept_network.state_dict().items()}
        self.epoch, self.kept_scores = epoch, self.scores

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        kept = {"best": self.best, "epoch": self.epoch, "weights": self.weights, "kept_scores": self.kept_scores}
        return {**kept, "scores": self.scores, "without_progress": self.without_progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.__dict__.update(state_dict)


def from_all_processes(held: Sequence[Held]) -> list[Held]:
    """Return the predictions of every process, in the order of processes: that of the images."""
    if processes()[1] == 1:
        return list(held)
    everyone: list[list[Held]] = [[] for _ in range(processes()[1])]
    dist.all_gather_object(everyone, list(held))
    return [part for one in everyone for part in one]


def score_held(
    held: Sequence[Held], truths: dict[str, Columns], scales: dict[str, TargetScale]
) -> dict[str, dict[str, float]]:
    """Return the scores by target, averaged over subjects; `truths` and `scales` as of `Kept`."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in truths}
    for subject in dict.fromkeys(name for name, _, _ in held):
        mine = [(ids, predicted) for name, ids, predicted in held if name == subject and len(ids)]
        ids = torch.cat([ids for ids, _ in mine])
        for target, truth in truths.items():
            predicted = torch.cat([values[target] for _, values in mine])
            found[target].append(target_scores(predicted, ids, truth, scales[target]))
    return {target: _mean(rows) for target, rows in found.items()}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0]}


class CurveLine(TypedDict):
    """One epoch of a learning curve: losses by slice and term, validation scores by target and metric."""

    epoch: int
    step: int
    loss: float
    losses: dict[str, float]
    lr: float
    samples_per_s: float
    val: dict[str, dict[str, float]]


class Curve(Callback):
    """One line per epoch with its losses, learning rate, samples per second and validation scores, as JSON lines.

    The first process writes it, and shows the same to the loggers.
    """

    def __init__(self, path: Path, kept: Kept) -> None:
        """Write to `path`, which after a resumption is cut to the epochs before, the scores of `kept`."""
        self.path, self.kept = path, kept
        self.lines: list[dict[str, Any]] = []
        self.begun, self.ended, self.n_samples, self.lr = 0.0, 0.0, 0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget epochs that are trained again."""
        if trainer.is_global_zero:
            lines = read_lines(self.path, CurveLine) if self.path.exists() and trainer.current_epoch else []
            self.lines = [line for line in lines if line["epoch"] < trainer.current_epoch]
            self._write()
            for line in self.lines:
                show(trainer, line)  # loggers begin anew

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.begun = self.ended = time.monotonic()
        self.n_samples = 0

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rate of the step; by the end of the epoch it is that of the next."""
        self.lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, _: int) -> None:
        """Count samples of all processes, and the time without validation."""
        self.n_samples += batch.n_rows
        self.ended = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write and show the epoch's line; losses are means over its steps, the same in every process."""
        assert isinstance(module, MapperTraining)
        losses = {name: float(torch.stack(values).mean()) for name, values in module.losses.items()}
        module.losses = {}
        total, rate = sum(losses.values()), self.n_samples / max(1e-9, self.ended - self.begun)
        if trainer.is_global_zero:
            line: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            line |= {"loss": total, "losses": losses}
            line |= {"lr": self.lr, "samples_per_s": round(rate, 1), "val": self.kept.scores}
            self.lines.append(line)
            self._write()
            show(trainer, line)

    def _write(self) -> None:
        """The whole file, which is small: a killed process leaves no line half written."""
        write_text(self.path, "".join(json_line(line) for line in self.lines))


def values_of(line: dict[str, Any]) -> dict[str, float]:
    """Return what a line of the curve says, by name: ``train/<loss>``, ``val/<target>/<score>``, and the rest."""
    values = {f"train/{name}": value for name, value in {"loss": line["loss"], **line["losses"]}.items()}
    values |= {f"val/{target}/{name}": value for target, row in line["val"].items() for name, value in row.items()}
    return values | {name: line[name] for name in ("epoch", "lr", "samples_per_s")}


def show(trainer: Trainer, line: dict[str, Any]) -> None:
    """Give a line of the curve to the trainer's loggers; one that fails is left out from then on, with a warning."""
    for logger in trainer.loggers:
        try:
            logger.log_metrics(values_of(line), step=line["step"])
            logger.save()
        except Exception as error:  # wandb raises its own, and those of its network libraries
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            log.warning("%s fails (%s); the curve is kept in the run folder", type(logger).__name__, error)


class TrainingProgress(ProgressBar):
    """Steps done, steps per second and time left, with the last loss and validation, on the first process."""

    def __init__(self, what: str, kept: Kept) -> None:
        """Show `what` is trained, and the scores of `kept`."""
        self.what, self.kept = what, kept

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the steps that are done."""
        assert trainer.max_epochs is not None
        per_epoch = int(trainer.num_training_batches)
        done = trainer.current_epoch * per_epoch
        self.open(trainer, trainer.max_epochs * per_epoch, done, self.what, "step")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, _: int) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the last validation."""
        if self.bar is not None and self.kept.scores:
            shown = {f"{t} r": scores["correlation"] for t, scores in self.kept.scores.items()}
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self.close()
