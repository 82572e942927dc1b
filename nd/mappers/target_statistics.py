"""Mean and spread of a target's columns over the images fitted on, and predictions that are given them.

Shapes: N images, P columns of the target, K columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nd.errors import UserError
from nd.files import atomic_path
from nd.mappers.base import Columns

BLOCK_NUMBERS = 1 << 22  # numbers of one block of columns: 32 MiB in float64


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
