"""Statistics of the images fitted on: mean and spread of target columns, and what targets explain of each voxel.

Shapes: N images, V voxels, P target columns, K columns of a block, or components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.files import atomic_path
from nd.mappers.base import Columns, FoldData, column_blocks

BLOCK_NUMBERS = 1 << 22  # numbers of one block of columns: 32 MiB in float64
# Columns that vary by less than this share of the target's mean spread are constants with rounding, such as the first
# token of c; predicted to the full they would be noise blown up.
NEARLY_CONSTANT = 1e-3
# Few enough that their share in a voxel of pure noise, N_COMPONENTS / N, stays small; enough for the target's gist.
N_COMPONENTS = 10
TINY = 1e-12
MIN_WEIGHT = 1e-6  # a voxel's scale is divided by it and must stay finite


@dataclass(frozen=True)
class TargetStatistics:
    """Mean and population standard deviation (P,) float32 of every column; the latter is 0 where a column is constant.

    They are compared and stored in single precision, in which predictions are, but found in double.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def fit(cls, targets: Columns, ids: NDArray[Any]) -> TargetStatistics:
        """Of the columns over some images, read in blocks."""
        mean, std = np.empty(targets.size, np.float32), np.empty(targets.size, np.float32)
        for columns in _blocks(len(ids), targets.size):
            found = column_statistics(targets.columns(ids, columns.start, columns.stop))
            mean[columns], std[columns] = found
        return cls(mean, std)

    @classmethod
    def load(cls, path: Path, train_command: str) -> TargetStatistics:
        """What `save` wrote. `UserError`: absent or damaged."""
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(
                f"{path}, which mapper.rescale=test needs, cannot be read ({error}). Remove its run folder and run:"
                f" {train_command}"
            ) from None

    def save(self, path: Path) -> None:
        """Write atomically. `UserError` where the disk is full."""
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would keep others from reading
            save_file({"mean": self.mean, "std": self.std}, temporary)
            temporary.chmod(mode)

    def given_to(self, predicted_NP: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predictions (N, P) standardised over their own images, then given these means and spreads.

        A prediction that is the same for all images becomes the mean. Regression shrinks, most where it knows least;
        this undoes it without asking how much. It is transductive: each prediction then depends on the other images.
        ozcelikfu/brain-diffuser@31d52c0:scripts/vdvae_regression.py (and of both CLIP targets);
        HaoyyLi/NeuralDiffuser@9286cad:src/score_z.py calls it momentum alignment.

        Raises:
            UserError: fewer than 2 images, which have no spread.
        """
        if len(predicted_NP) < 2:
            raise UserError(
                f"mapper.rescale=test standardises predictions by their own spread, which {len(predicted_NP)} image(s)"
                " do not have. Predict at least 2 images, or set mapper.rescale=none."
            )
        given = np.empty_like(predicted_NP)
        for columns in _blocks(*predicted_NP.shape):
            found_NK = predicted_NP[:, columns].astype(np.float64)
            # Predictions are single precision: what spread rounding alone makes is none.
            mean_K, std_K = column_statistics(found_NK, float(np.finfo(np.float32).eps))
            standard_NK = (found_NK - mean_K) * _inverse(std_K)
            given[:, columns] = standard_NK * self.std[columns] + self.mean[columns]
        return given


def statistics_path(checkpoint: Path) -> Path:
    """Where the statistics lie that belong to a checkpoint's file of arrays."""
    return checkpoint.with_name(f"{checkpoint.stem}-targets{checkpoint.suffix}")


def column_statistics(
    values_NK: NDArray[Any], rounding: float = float(np.finfo(np.float64).eps)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation (K,) float64; 0 for what `rounding` of equal values leaves."""
    mean_K, std_K = values_NK.mean(0, dtype=np.float64), values_NK.std(0, dtype=np.float64)
    return mean_K, np.where(std_K <= 10 * rounding * np.abs(mean_K), 0.0, std_K)


def standardised(
    values_NK: NDArray[np.float32], mean_K: NDArray[np.float64], std_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Columns less their mean, over their spread; 0 where they have none."""
    return np.asarray((values_NK - mean_K) * _inverse(std_K))


def _inverse(std_K: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1.0, std_K, out=np.zeros_like(std_K), where=std_K > 0)


def _blocks(n_images: int, n_columns: int) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // max(1, n_images))
    for start in range(0, n_columns, step):
        yield slice(start, min(start + step, n_columns))


@dataclass(frozen=True)
class TargetScale:
    """``(target - mean) / scale`` per column: mean (P,) and scale (P,) > 0, float32."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, targets: Columns, ids: NDArray[Any]) -> TargetScale:
        """Statistics of the training images ``ids`` alone, gathered block by block."""
        mean, spread = np.empty(targets.size, np.float32), np.empty(targets.size, np.float32)
        step = max(1, BLOCK_NUMBERS // len(ids))
        for start in range(0, targets.size, step):
            values_NK = targets.columns(ids, start, min(start + step, targets.size))
            mean[start : start + step] = values_NK.mean(0, dtype=np.float64)
            spread[start : start + step] = values_NK.std(0, dtype=np.float64)
        constant = spread <= NEARLY_CONSTANT * spread.mean(dtype=np.float64)
        return cls(mean, np.where(constant, 1.0, spread).astype(np.float32))

    @classmethod
    def plain(cls, size: int) -> TargetScale:
        """Leaves targets as they are: published code trains on raw features."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))


def voxel_scaler(data: FoldData, voxels_NV: NDArray[np.float32], ids: NDArray[np.int32], power: float) -> Scaler:
    """Z-scores voxels and, unless `power` is 0, multiplies them by their weights, all found on the given images.

    Args:
        voxels_NV: responses as measured, a row for each of `ids`, whose targets `data` gives.
    """
    scaler = Scaler.fit(voxels_NV)
    if power == 0:
        return scaler
    columns = column_blocks(0, data.targets.size, len(ids))
    components_NK = leading_components(data.targets.columns(ids, block.start, block.stop) for block in columns)
    weights_V = voxel_weights(scaler.transform(voxels_NV), components_NK, power)
    return Scaler(mean=scaler.mean, scale=scaler.scale / weights_V)


def leading_components(blocks_NP: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The target's leading principal components over the training images, orthonormal (N, K); blocks of columns."""
    gram_NN: NDArray[np.float64] | float = 0.0
    for block in blocks_NP:
        centred = block.astype(np.float64) - block.mean(0, dtype=np.float64)
        gram_NN = gram_NN + centred @ centred.T
    variances, vectors_NN = np.linalg.eigh(np.asarray(gram_NN))
    keep = variances > TINY * max(variances[-1], TINY)
    return vectors_NN[:, keep][:, ::-1][:, :N_COMPONENTS]


def voxel_weights(
    scaled_NV: NDArray[np.float32], components_NK: NDArray[np.float64], power: float
) -> NDArray[np.float32]:
    """Weights (V,) float32 of z-scored voxels, of mean square 1, so that penalties keep their meaning."""
    explained_V = np.square(components_NK.T @ scaled_NV).sum(0) / len(scaled_NV)
    weights_V = np.maximum(explained_V, TINY) ** power
    weights_V /= np.sqrt(np.square(weights_V).mean())
    return np.maximum(weights_V, MIN_WEIGHT).astype(np.float32)
