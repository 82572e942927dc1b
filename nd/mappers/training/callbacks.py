"""What happens beside the steps: scoring, the weights that are kept, checkpoints, the curve and the progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from nd.files import write_text
from nd.mappers.base import Columns
from nd.mappers.training.module import MapperTraining
from nd.mappers.training.scale import TargetScale
from nd.mappers.training.scores import from_all_processes, score_held

Weights = dict[str, Tensor]


class Kept(Callback):
    """Scores every validation and keeps the weights: those of the best one, or the last.

    The best has the smallest unexplained share of the variance, averaged over targets: what ridge regression chooses
    its penalty by. ``state_dict`` holds the weights, so a resumed training still has them.
    """

    def __init__(self, keep: str, patience: int, truths: dict[str, Columns], scales: dict[str, TargetScale]) -> None:
        """keep: "best" or "last"; patience: validations without progress after which training stops, 0 for never."""
        self.keep, self.patience, self.truths, self.scales = keep, patience, truths, scales
        self.scores: dict[str, dict[str, float]] = {}  # of this epoch
        self.kept_scores: dict[str, dict[str, float]] = {}
        self.best, self.epoch, self.weights, self.without_progress = float("inf"), -1, Weights(), 0

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
                self._take(trainer, module)
        if self.patience and self.without_progress >= self.patience:
            trainer.should_stop = True
        shown = {f"val/{target}/{name}": value for target, row in self.scores.items() for name, value in row.items()}
        module.log_dict(shown, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the last weights where those are wanted, or none were ever validated."""
        if not self.weights:
            assert isinstance(module, MapperTraining)
            self._take(trainer, module)

    def _take(self, trainer: Trainer, module: MapperTraining) -> None:
        self.weights = {name: value.detach().cpu().clone() for name, value in module.kept_network.state_dict().items()}
        self.epoch, self.kept_scores = trainer.current_epoch, self.scores

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        kept = {"best": self.best, "epoch": self.epoch, "weights": self.weights, "kept_scores": self.kept_scores}
        return {**kept, "without_progress": self.without_progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.__dict__.update(state_dict)


class Checkpoints(Callback):
    """The state of training on disk, at ends of epochs that are at least some minutes apart, written atomically."""

    def __init__(self, path: Path, minutes: float) -> None:
        """path: the one file, replaced each time."""
        self.path, self.minutes, self.last = path, minutes, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write where it is time; the first process decides for all."""
        due = trainer.strategy.broadcast(time.monotonic() - self.last >= 60 * self.minutes)
        if due:
            temporary = self.path.with_suffix(".part")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.path)
            self.last = time.monotonic()


class Curve(Callback):
    """One line per epoch with its losses, learning rate, samples per second and validation scores, as JSON lines."""

    def __init__(self, path: Path, kept: Kept) -> None:
        """path: of the file; after a resumption it is cut to the epochs before."""
        self.path, self.kept, self.begun, self.n_samples = path, kept, 0.0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget epochs that are trained again."""
        if trainer.is_global_zero:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            valid = [line for line in lines if json.loads(line)["epoch"] < trainer.current_epoch]
            write_text(self.path, "".join(f"{line}\n" for line in valid))

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.begun, self.n_samples = time.monotonic(), 0
        self.kept.scores = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, _: int) -> None:
        """Count samples of all processes."""
        self.n_samples += batch.n_rows

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write and log the epoch's line."""
        assert isinstance(module, MapperTraining)
        losses = {name: torch.stack(values).mean() for name, values in module.losses.items()}
        module.losses = {}
        reduced = {name: float(trainer.strategy.reduce(value, reduce_op="mean")) for name, value in losses.items()}
        total, rate = sum(reduced.values()), self.n_samples / max(1e-9, time.monotonic() - self.begun)
        for name, value in {"loss": total, **reduced}.items():
            module.log(f"train/{name}", value, rank_zero_only=True)
        if trainer.is_global_zero:
            line = {"epoch": trainer.current_epoch, "step": trainer.global_step, "loss": total, "losses": reduced}
            line |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], "samples_per_s": round(rate, 1)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "val": self.kept.scores}) + "\n")


class TrainingProgress(Callback):
    """Steps done, steps per second and time left, with the last loss and validation, on the first process."""

    def __init__(self, what: str, kept: Kept) -> None:
        """what: is trained."""
        self.what, self.kept = what, kept
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the steps that are done."""
        if trainer.is_global_zero:
            assert trainer.max_epochs is not None
            per_epoch = int(trainer.num_training_batches)
            done = trainer.current_epoch * per_epoch
            self.bar = tqdm(
                total=trainer.max_epochs * per_epoch, initial=done, desc=self.what, unit="step", dynamic_ncols=True
            )

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
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message starts on its own line."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
