"""Voxels and targets as batches for mappers that are trained by Lightning, of one subject or several at once.

Nothing is held in memory but the batch: voxels and targets are read by rows, and voxel statistics are gathered over
blocks. Test images are never read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from nd.data.batch import StepLoader, Steps, TargetRows
from nd.data.epoch import DrawnPlan, OrderedPlan, Plan, PlanSampler, Pool, Samples, TrainPlan
from nd.data.scaling import BLOCK_NUMBERS, Scaler
from nd.data.splits import Fold
from nd.data.subject import Subject, mean_betas
from nd.errors import LeakError, UserError, unknown

log = logging.getLogger(__name__)

TRIALS = ("single", "mean", "random")
Trials = Literal["single", "mean", "random"]


class VoxelDataModule(pl.LightningDataModule):
    """Batches of voxels and targets of one or several subjects, each with its fold.

    Attributes: ``scalers`` z-score the voxels by name of the subject, once ``setup`` has run; a mapper stores them.
    """

    def __init__(
        self,
        subjects: Sequence[tuple[Subject, Fold]],
        targets: Mapping[str, TargetRows],
        *,
        trials: Trials = "single",
        batch_size: int = 42,
        epoch_steps: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Look at no voxel yet.

        Args:
            subjects: with the fold of each, whose test images are never read together with a target.
            targets: readers by name of the target; asked for training and validation images alone.
            trials: of training: ``single`` (every trial is a sample), ``mean`` (over an image's repeats) or ``random``
                (every image once in an epoch, by one repeat that (seed, epoch, image id) choose).
            batch_size: samples of a training step over all subjects and processes. Steps have near-equal numbers of
                each subject's samples. Validation has about as many.
            epoch_steps: steps of a training epoch, whose samples are then drawn with replacement; 0: all samples once.
            seed: of the order; an epoch is a function of it and the epoch's number.
            num_workers: processes that read ahead; handing a batch over takes longer than reading it from files that
                the system has in memory, so 0 is best there.

        Raises:
            UserError: unknown trials, a subject twice, or images that a subject was not shown.
            LeakError: a test image of one subject is seen by another one.
        """
        super().__init__()
        if trials not in TRIALS:
            raise unknown("trials", trials, TRIALS)
        self.trials, self.batch_size, self.epoch_steps = trials, batch_size, epoch_steps
        self.seed, self.num_workers = seed, num_workers
        self.targets = dict(targets)
        self.subjects = {subject.name: subject for subject, _ in subjects}
        self.folds = {subject.name: fold for subject, fold in subjects}
        self.scalers: dict[str, Scaler] = {}
        _check_subjects(subjects)
        _check_apart(self.folds)

    def setup(self, stage: str | None = None) -> None:
        """Fit the scalers on the training rows, block by block, unless that is done; called by Lightning."""
        for name, subject in self.subjects.items():
            if name not in self.scalers:
                self.scalers[name] = self._fitted(subject, self.folds[name])

    def _fitted(self, subject: Subject, fold: Fold) -> Scaler:
        """The scaler of one subject's training rows: trials, or means over an image's trials."""
        if self.trials == "mean":
            step = max(1, BLOCK_NUMBERS // subject.n_voxels)
            parts = [fold.train[start : start + step] for start in range(0, len(fold.train), step)]
            means = (mean_betas(subject, ids) for ids in parts)
            return Scaler.fit_blocks(means, image_ids=fold.train, allowed=fold.train)
        rows = subject.rows_of(fold.train)
        trials = (values for _, values in subject.blocks(rows))
        return Scaler.fit_blocks(trials, image_ids=subject.image_id[rows], allowed=fold.train)

    def train_dataloader(self) -> StepLoader:
        """Shuffled training samples; UserError where a process would get none in some step."""
        pools = {name: self._pool(subject, self.folds[name]) for name, subject in self.subjects.items()}
        if self.epoch_steps:
            plan: Plan = DrawnPlan(pools, self.batch_size, self.seed, self.epoch_steps)
        else:
            plan = TrainPlan(pools, self.batch_size, self.seed)
        return self._loader(plan, of_images=self.trials == "mean")

    def _pool(self, subject: Subject, fold: Fold) -> Pool:
        if self.trials == "mean":
            return Pool(fold.train.astype(np.int64), fold.train)
        rows = trials_of(subject, fold.train)
        return Pool(rows, subject.image_id[rows], one_per_image=self.trials == "random")

    def val_dataloader(self) -> StepLoader:
        """Validation images, the mean of each one's trials, in the order of ``fold.val``.

        Process r of several has the r-th contiguous part: put together in order, they are as of one process.
        """
        samples: Samples = {name: fold.val.astype(np.int64) for name, fold in self.folds.items()}
        return self._loader(OrderedPlan(samples, self.batch_size), of_images=True)

    def _loader(self, plan: Plan, *, of_images: bool) -> StepLoader:
        self.setup()
        return StepLoader(
            Steps(plan, self.subjects, self.scalers, self.targets, of_images=of_images),
            batch_size=None,
            sampler=PlanSampler(plan),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def trials_of(subject: Subject, image_ids: NDArray[Any]) -> NDArray[np.int64]:
    """Rows of all trials of some images, by image and then in file order."""
    rows = subject.rows_of(image_ids)
    return rows[np.argsort(subject.image_id[rows], kind="stable")].astype(np.int64)


def _check_subjects(subjects: Sequence[tuple[Subject, Fold]]) -> None:
    """Every subject once, and shown every image of its fold."""
    names = [subject.name for subject, _ in subjects]
    if not names or len(set(names)) < len(names):
        raise UserError(f"the data module was given the subjects {names}; wanted one or more, each once.")
    for subject, fold in subjects:
        missing = np.setdiff1d(np.concatenate([fold.seen, fold.test]), subject.image_id)
        if missing.size:
            raise UserError(
                f"{subject.path.name} has no trial of {missing.size} images of its fold (first: image {missing[0]}). "
                "Was it prepared with the same data settings as the split?"
            )


def _check_apart(folds: Mapping[str, Fold]) -> None:
    """No subject's test image may be seen by another one: the parts they share would learn it."""
    for name, fold in folds.items():
        for other, seen in folds.items():
            leaked = np.intersect1d(fold.test, seen.seen)
            if leaked.size:
                raise LeakError(
                    f"{leaked.size} test image(s) of {name} (first: image {leaked[0]}) are training or validation "
                    f"images of {other}. Train on them apart, or hold the same images out for all subjects."
                )
            if np.intersect1d(fold.val, seen.train).size:
                log.warning("validation images of %s are training images of %s; its scores will flatter", name, other)
