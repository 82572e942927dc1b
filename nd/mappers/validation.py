"""How well validation images are predicted under each penalty, accumulated over blocks of target columns.

Shapes: A penalties, N validation images, K columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TINY = 1e-30


@dataclass
class ValidationScores:
    """Running sums for A penalties: `add` blocks, then read. All values are relative to the training mean."""

    squared_error: Tensor | float = 0.0  # (A,)
    total_square: Tensor | float = 0.0  # ()
    correlations: Tensor | float = 0.0  # (A,), summed over columns
    n_columns: int = 0
    n_varying: int = 0
    row_sum: Tensor | float = 0.0  # (A, N), of predictions
    row_square: Tensor | float = 0.0  # (A, N)
    cross: Tensor | float = 0.0  # (A, N, N), predictions times truths
    true_sum: Tensor | float = 0.0  # (N,)
    true_square: Tensor | float = 0.0  # (N,)

    def add(self, predicted_ANK: Tensor, true_NK: Tensor) -> None:
        """Count one block of columns."""
        self.squared_error += (predicted_ANK - true_NK).square().sum((1, 2)).double()
        self.total_square += true_NK.square().sum().double()
        self._add_correlation(predicted_ANK, true_NK)
        self.n_columns += true_NK.shape[1]
        self.row_sum += predicted_ANK.sum(2).double()
        self.row_square += predicted_ANK.square().sum(2).double()
        self.cross += (predicted_ANK @ true_NK.T).double()
        self.true_sum += true_NK.sum(1).double()
        self.true_square += true_NK.square().sum(1).double()

    def _add_correlation(self, predicted_ANK: Tensor, true_NK: Tensor) -> None:
        predicted = predicted_ANK - predicted_ANK.mean(1, keepdim=True)
        true = true_NK - true_NK.mean(0)
        varying_K = true.square().sum(0) > 1e-12 * true_NK.shape[0] * true_NK.square().mean().clamp(min=TINY)
        norms_AK = (predicted.square().sum(1) * true.square().sum(0)).sqrt().clamp(min=TINY)
        r_AK = (predicted * true).sum(1) / norms_AK
        self.correlations += r_AK[:, varying_K].sum(1).double()
        self.n_varying += int(varying_K.sum())

    def unexplained(self) -> Tensor:
        """Squared error over the squared distance of the truths from the training mean, (A,); the mean itself has 1."""
        return torch.as_tensor(self.squared_error / torch.as_tensor(self.total_square).clamp(min=TINY))

    def correlation(self) -> Tensor:
        """Pearson correlation over images, averaged over the columns that vary, (A,)."""
        return torch.as_tensor(self.correlations) / max(1, self.n_varying)

    def identification(self) -> Tensor:
        """Two-way identification (A,): how often a prediction correlates better with its own truth than with another.

        Pearson correlation over columns; ties count as failures; chance is one half.
        """
        n = self.n_columns
        sums, trues = torch.as_tensor(self.row_sum), torch.as_tensor(self.true_sum)
        covariance_ANN = self.cross - sums[:, :, None] * trues / n
        spread_AN = (self.row_square - sums.square() / n).clamp(min=TINY).sqrt()
        true_spread_N = (self.true_square - trues.square() / n).clamp(min=TINY).sqrt()
        r_ANN = covariance_ANN / spread_AN[:, :, None] / true_spread_N
        own_AN = r_ANN.diagonal(dim1=1, dim2=2)
        wins = (r_ANN < own_AN[:, :, None]).sum((1, 2)).double()
        n_images = r_ANN.shape[1]
        return wins / max(1, n_images * (n_images - 1))

    def at(self, a: int) -> ValidationScores:
        """The sums of one penalty alone."""
        picked = {name: value[a : a + 1] for name, value in self._by_penalty().items()}
        return ValidationScores(**{**self.__dict__, **picked})

    def merge(self, other: ValidationScores) -> ValidationScores:
        """The sums over the columns of both, penalty by penalty."""
        return ValidationScores(**{name: value + other.__dict__[name] for name, value in self.__dict__.items()})

    def summary(self) -> dict[str, float]:
        """The scores of a single penalty as plain numbers."""
        return {
            "correlation": round(float(self.correlation()[0]), 6),
            "identification": round(float(self.identification()[0]), 6),
            "unexplained": round(float(self.unexplained()[0]), 6),
        }

    def _by_penalty(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("squared_error", "correlations", "row_sum", "row_square", "cross")
        }
