"""Running one stage of training under Lightning: devices, checkpoints, resumption, errors."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from typing_extensions import TypedDict

from nd.config import TrainerConfig
from nd.data.datamodule import VoxelDataModule
from nd.digests import digest_file, is_content
from nd.errors import UserError
from nd.files import atomic_path, partial_path, read_json, write_json
from nd.launch import process_settings
from nd.lightning import lightning
from nd.mappers.training.callbacks import Curve, Kept, TrainingProgress, Weights
from nd.mappers.training.module import MapperTraining


class KeptFile(TypedDict):
    """What is known of the weights that a training kept."""

    arrays: str
    epoch: int
    epochs: int
    steps: int
    scores: dict[str, dict[str, float]]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Where a stage keeps what it needs to go on, below a run folder: one set of files for each fold."""

    folder: Path
    fold: int

    @property
    def checkpoint(self) -> Path:
        """State of an unfinished training."""
        return self.folder / "training" / f"fold-{self.fold:02d}-last.ckpt"

    @property
    def curve(self) -> Path:
        """Losses and validation scores by epoch."""
        return self.folder / "training" / f"fold-{self.fold:02d}-curve.jsonl"

    @property
    def result(self) -> Path:
        """Weights that a finished training kept."""
        return self.folder / "training" / f"fold-{self.fold:02d}-kept.safetensors"

    @property
    def has_result(self) -> bool:
        """Whether the training has come to its end."""
        return self.result.with_suffix(".json").exists()

    def drop_damaged(self) -> None:
        """Remove a result that is not what was written, so that the training goes on from what is whole."""
        if not self.has_result:
            return
        record = self.result.with_suffix(".json")
        with suppress(UserError):
            if self.result.is_file() and is_content(self.result, read_json(record, KeptFile)["arrays"]):
                return
        log.warning("%s is damaged; the training goes on from its last state", self.result)
        record.unlink()

    def clear(self) -> None:
        """Remove what a finished stage needs no more; the curve stays."""
        for path in (self.checkpoint, self.result):
            for one in (path, partial_path(path), path.with_suffix(".json")):
                one.unlink(missing_ok=True)

    @property
    def where(self) -> str:
        """For messages: the last good checkpoint."""
        return f"The last good checkpoint is kept at {self.checkpoint} (none yet where that is missing)."


class States(TypedDict):
    """Digests of the state on disk: of the newest, and of the one before, which it may still be."""

    digests: list[str]


def record_state(path: Path, temporary: Path) -> None:
    """Record the digest of a state that is about to get its name."""
    record, known = path.with_suffix(".json"), []
    with suppress(UserError):
        known = read_json(record, States)["digests"]
    write_json(record, {"digests": [digest_file(temporary), *known[:1]]})


def whole_state(path: Path) -> Path | None:
    """Return the state that a training goes on from; None where there is none that is whole, with a warning."""
    if not path.is_file():
        return None
    record = path.with_suffix(".json")
    with suppress(UserError):
        if not record.exists() or digest_file(path) in read_json(record, States)["digests"]:
            return path
    log.warning("%s is damaged; the training begins anew", path)
    return None


class Checkpoints(Callback):
    """The state of training on disk, at ends of epochs that are at least some minutes apart, written atomically."""

    def __init__(self, path: Path, minutes: float) -> None:
        """Write to `path`, the one file, replaced each time, `minutes` or more after the last time."""
        self.path, self.minutes, self.last = path, minutes, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write where it is time, the first process deciding for all.

        Raises:
            UserError: weights are not finite; the last good ones stay.
        """
        assert isinstance(module, MapperTraining)
        due = trainer.strategy.broadcast(time.monotonic() - self.last >= 60 * self.minutes)
        if due or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            module.check_weights()
        if due:
            first = trainer.is_global_zero  # all collect the state, one writes it
            with atomic_path(self.path, alone=True) if first else nullcontext(self.path) as temporary:
                trainer.save_checkpoint(temporary)
                if first:
                    record_state(self.path, temporary)
            self.last = time.monotonic()


class Result(Callback):
    """Writes the kept weights when training ends, in whichever process that is, and lets the others wait for it."""

    def __init__(self, path: Path, kept: Kept) -> None:
        """Write the weights of `kept` to `path`; what else is known lies beside them as JSON, written last."""
        self.path, self.kept = path, kept

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write on the first process."""
        if trainer.is_global_zero:
            with atomic_path(self.path) as temporary:
                save_file({name: value.contiguous() for name, value in self.kept.weights.items()}, temporary)
            digest = {"arrays": digest_file(self.path)}
            known = {"epoch": self.kept.epoch, "epochs": trainer.current_epoch, "steps": trainer.global_step}
            write_json(self.path.with_suffix(".json"), {**known, **digest, "scores": self.kept.kept_scores})
        trainer.strategy.barrier("result")


def run_training(
    module: MapperTraining,
    data: VoxelDataModule,
    kept: Kept,
    files: Files,
    cfg: TrainerConfig,
    what: str,
    logger: Any = False,
) -> None:
    """Train to the end, from the last checkpoint where there is one, and leave ``files.result``.

    Args:
        module: what is trained.
        data: its batches.
        kept: which weights the result holds.
        files: of this stage and fold.
        cfg: devices and progress.
        what: is trained, for the progress bar.
        logger: Lightning logger, or False.

    Raises:
        UserError: a loss that is not finite, or what the data module refuses.
    """
    files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    resumed = whole_state(files.checkpoint)
    with lightning(cfg):
        trainer = build_trainer(module, kept, files, cfg, what, logger)
        # Checkpoints hold tensors and plain values; whatever else lies there must not be run.
        trainer.fit(module, data, ckpt_path=resumed, weights_only=True)


def read_result(files: Files) -> tuple[Weights, dict[str, Any]]:
    """Return the weights that a finished training kept, and what is known of it."""
    return load_file(files.result), dict(read_json(files.result.with_suffix(".json"), KeptFile))


def build_trainer(
    module: MapperTraining, kept: Kept, files: Files, cfg: TrainerConfig, what: str, logger: Any
) -> Trainer:
    """Return a Trainer for one stage, as `run_training` is told; all it leaves behind is written by callbacks."""
    training = module.config
    callbacks: list[Callback] = [kept, Curve(files.curve, kept), Checkpoints(files.checkpoint, cfg.checkpoint_minutes)]
    callbacks += [TrainingProgress(what, kept)] if cfg.progress else []
    return Trainer(
        **process_settings(cfg),
        precision=training.precision,  # type: ignore[arg-type]
        max_epochs=module.recipe.n_epochs,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.clip_norm or None,
        check_val_every_n_epoch=training.validate_every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, Result(files.result, kept)],
        logger=logger,
        log_every_n_steps=1_000_000,  # the curve does, once an epoch
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module deals samples out itself
        default_root_dir=files.folder,
    )
