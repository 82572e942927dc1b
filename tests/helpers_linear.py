"""Data for linear mappers, and other people's solvers to compare them with."""

from __future__ import annotations

import warnings
from typing import Any
from unittest.mock import patch

import fastl2lir
import numpy as np
from numpy.typing import NDArray

from nd.mappers.base import FoldData, Group

SOLVE = np.linalg.solve


class Table:
    """Targets in memory."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.size = values, values.shape[1]

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        return self.values[ids, start:stop].copy()


def noisy_brain(n: int, n_voxels: int, n_columns: int, noise: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Voxels (n, n_voxels) that each follow a few of the targets (n, n_columns), with offsets and scales of their own.

    A sixth of the voxels are noise; single precision.
    """
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(n, n_columns)) * rng.uniform(0.5, 2, n_columns) + rng.normal(size=n_columns)
    mixing = rng.normal(size=(n_columns, n_voxels)) * (rng.random((n_columns, n_voxels)) < 3 / n_columns)
    mixing[:, ::6] = 0
    voxels = targets @ mixing + noise * rng.normal(size=(n, n_voxels))
    voxels = voxels * rng.uniform(0.1, 5, n_voxels) + 10 * rng.normal(size=n_voxels)
    return voxels.astype(np.float32), targets.astype(np.float32)


def one_fold(voxels: Any, targets: Any, n_train: int, groups: tuple[Group, ...] = ()) -> FoldData:
    """The first images train, the others validate."""
    ids = np.arange(len(voxels), dtype=np.int32)
    groups = groups or (Group("all", 0, targets.shape[1]),)
    return FoldData(voxels[:n_train], voxels[n_train:], ids[:n_train], ids[n_train:], Table(targets), groups)


def z_scored(train: Any, rows: Any) -> Any:
    return (rows.astype(float) - train.mean(0, dtype=float)) / train.std(0, dtype=float)


def one_column_as_vector(matrix: Any, right: Any) -> Any:
    """A solution of one column as a vector, its entries being what fastl2lir 0.11 assigns; NumPy 2.4 refuses rows."""
    solved = SOLVE(matrix, right)
    return solved[:, 0] if right.shape[1] == 1 else solved


def package_fit(voxels: Any, targets: Any, n_feat: int, penalty: float) -> tuple[Any, Any]:
    """Coefficients (voxels, columns) and bias (columns,) of the fastl2lir package."""
    model = fastl2lir.FastL2LiR()
    with patch.object(np.linalg, "solve", one_column_as_vector), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses np.matrix
        model.fit(voxels, targets, alpha=penalty, n_feat=n_feat)
    return model.W, model.b[0]


def package_predict(voxels: Any, targets: Any, new: Any, n_feat: int, penalty: float) -> Any:
    """Predictions for new voxels by the package, voxels and targets z-scored before and targets restored after."""
    mean, spread = targets.mean(0, dtype=float), targets.std(0, dtype=float)
    weights, bias = package_fit(z_scored(voxels, voxels), (targets - mean) / spread, n_feat, penalty)
    return (z_scored(voxels, new) @ weights + bias) * spread + mean
