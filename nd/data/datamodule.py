"""Voxels and targets as batches for mappers that are trained by Lightning.

Test images appear only in ``predict_dataloader``, and there without a target.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from nd.data.prepared import Subject, mean_betas
from nd.data.scaling import Scaler
from nd.data.splits import Fold


class TargetRows(Protocol):
    """Anything that gives target rows by image id."""

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """(n, *shape) float32, in the order of ``ids``."""


class VoxelDataModule(pl.LightningDataModule):
    """Batches of (voxels (B, V), target (B, *shape)) for one fold.

    Args: ``average`` trains on the mean over an image's repeats, otherwise on single trials; validation and prediction
    always use the mean. Voxels are scaled by statistics of the training rows.
    """

    def __init__(
        self,
        subject: Subject,
        fold: Fold,
        targets: TargetRows,
        *,
        average: bool = True,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.subject, self.fold, self.targets = subject, fold, targets
        self.average, self.batch_size, self.num_workers = average, batch_size, num_workers
        self.scaler: Scaler | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the training voxels and fit the scaler on them; called by Lightning before the loaders."""
        if self.scaler is not None:
            return
        self._train_ids = self._trials() if not self.average else self.fold.train
        rows = mean_betas(self.subject, self._train_ids) if self.average else self.subject.voxels(self._train_rows)
        self.scaler = Scaler.fit(rows)
        self._train_voxels = self.scaler.transform(rows)

    def _trials(self) -> NDArray[np.int32]:
        """Image id of every training trial, in the order of the file."""
        self._train_rows = np.flatnonzero(np.isin(self.subject.image_id, self.fold.train))
        return self.subject.image_id[self._train_rows]

    def _mean_voxels(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        self.setup()
        assert self.scaler is not None
        return self.scaler.transform(mean_betas(self.subject, ids))

    def _loader(self, *arrays: NDArray[np.float32], shuffle: bool = False) -> DataLoader:
        tensors = TensorDataset(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
        return DataLoader(tensors, self.batch_size, shuffle=shuffle, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader:
        """Shuffled training rows."""
        self.setup()
        # Targets are looked up once per image and repeated over its trials.
        ids, inverse = np.unique(self._train_ids, return_inverse=True)
        return self._loader(self._train_voxels, self.targets.rows(ids)[inverse], shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation images, in the order of ``fold.val``."""
        return self._loader(self._mean_voxels(self.fold.val), self.targets.rows(self.fold.val))

    def predict_dataloader(self) -> DataLoader:
        """Voxels of the test images, in the order of ``fold.test``; no target."""
        return self._loader(self._mean_voxels(self.fold.test))
