"""How well validation images are predicted under each penalty, accumulated over blocks of target columns.

Shapes: A penalties, N validation images, K columns of a block, P columns counted so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nd.mappers.gram import product

TINY = 1e-30
ROWS_AT_ONCE = 1024  # rows of a matrix between images that are worked on at a time


@dataclass
class ValidationScores:
    """Running sums for A penalties: `add` blocks, then read.

    All values are relative to what is predicted without voxels: the training mean, or 0 for a mapper without intercept.
    """

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
    by_column: list[Tensor] = field(default_factory=list)  # (A, K) of each block: correlation, 0 where a column is flat

    def add(self, predicted_ANK: Tensor, true_NK: Tensor) -> None:
        """Count one block of columns."""
        self.squared_error += (predicted_ANK - true_NK).square().sum((1, 2)).double()
        self.total_square += true_NK.square().sum().double()
        self._add_correlation(predicted_ANK, true_NK)
        self.n_columns += true_NK.shape[1]
        self.row_sum += predicted_ANK.sum(2).double()
        self.row_square += predicted_ANK.square().sum(2).double()
        self._add_products(predicted_ANK, true_NK)
        self.true_sum += true_NK.sum(1).double()
        self.true_square += true_NK.square().sum(1).double()

    def _add_correlation(self, predicted_ANK: Tensor, true_NK: Tensor) -> None:
        predicted = predicted_ANK - predicted_ANK.mean(1, keepdim=True)
        true = true_NK - true_NK.mean(0)
        varying_K = true.square().sum(0) > 1e-12 * true_NK.shape[0] * true_NK.square().mean().clamp(min=TINY)
        norms_AK = (predicted.square().sum(1) * true.square().sum(0)).sqrt().clamp(min=TINY)
        r_AK = torch.where(varying_K, (predicted * true).sum(1) / norms_AK, 0)
        self.correlations += r_AK.sum(1).double()
        self.n_varying += int(varying_K.sum())
        self.by_column.append(r_AK.cpu())

    def _add_products(self, predicted_ANK: Tensor, true_NK: Tensor) -> None:
        if not isinstance(self.cross, Tensor):
            (n_penalties, n_images), device = predicted_ANK.shape[:2], true_NK.device
            self.cross = torch.zeros(n_penalties, n_images, n_images, dtype=torch.float64, device=device)
        for rows in _some_rows(len(true_NK)):
            self.cross[:, rows] += product(predicted_ANK[:, rows], true_NK.T)

    def unexplained(self) -> Tensor:
        """Squared error over the squared size of the truths, (A,); what is predicted without voxels has 1."""
        return torch.as_tensor(self.squared_error / torch.as_tensor(self.total_square).clamp(min=TINY))

    def correlation(self) -> Tensor:
        """Pearson correlation over images, averaged over the columns that vary, (A,)."""
        return torch.as_tensor(self.correlations) / max(1, self.n_varying)

    def column_correlation(self) -> Tensor:
        """Pearson correlation over images of every column, (A, P) float32 in the order added; 0 if it is flat."""
        return torch.cat(self.by_column, dim=1)

    def identification(self) -> Tensor:
        """Two-way identification (A,): how often a prediction correlates better with its own truth than with another.

        Pearson correlation over columns; ties count as failures; chance is one half.
        """
        return self._ranked()[0]

    def retrieval(self) -> Tensor:
        """Share of images (A,) whose own truth, of all, correlates best with the prediction.

        Ties count as failures; chance is one over the number of images.
        """
        return self._ranked()[1]

    def brain_retrieval(self) -> Tensor:
        """Share of images (A,) whose own prediction, of all, correlates best with the truth; as `retrieval`."""
        return self._ranked()[2]

    def _ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Identification and both retrievals, which come from one pass over the correlations between images."""
        cross, sums, trues = (torch.as_tensor(sums) for sums in (self.cross, self.row_sum, self.true_sum))
        scale_AN = (self.row_square - sums.square() / self.n_columns).clamp(min=TINY).rsqrt()
        true_scale_N = (self.true_square - trues.square() / self.n_columns).clamp(min=TINY).rsqrt()
        own_AN = (cross.diagonal(dim1=1, dim2=2) - sums * trues / self.n_columns) * scale_AN * true_scale_N
        n_images = len(trues)
        beaten_by_own, beaten_by_truth = torch.zeros_like(own_AN), torch.zeros_like(own_AN)
        for rows in _some_rows(n_images):
            r_AnN = cross[:, rows] - sums[:, rows, None] * trues / self.n_columns
            r_AnN = r_AnN * scale_AN[:, rows, None] * true_scale_N
            beaten_by_own[:, rows] += (r_AnN < own_AN[:, rows, None]).sum(2)
            beaten_by_truth += (r_AnN < own_AN[:, None]).sum(1)
        best, others = n_images - 1, max(1, n_images - 1)
        shares = [(beaten == best).double().mean(1) for beaten in (beaten_by_own, beaten_by_truth)]
        return (beaten_by_own / others).mean(1), shares[0], shares[1]

    def at(self, a: int) -> ValidationScores:
        """The sums of one penalty alone."""
        picked = {name: value[a : a + 1] for name, value in self._by_penalty().items()}
        by_column = [r_AK[a : a + 1] for r_AK in self.by_column]
        return ValidationScores(**{**self.__dict__, **picked, "by_column": by_column})

    def merge(self, other: ValidationScores) -> ValidationScores:
        """The sums over the columns of both, penalty by penalty."""
        return ValidationScores(**{name: value + other.__dict__[name] for name, value in self.__dict__.items()})

    def summary(self) -> dict[str, float]:
        """The scores of a single penalty as plain numbers."""
        identification, retrieval, brain_retrieval = self._ranked()
        scores = {
            "correlation": self.correlation(),
            "identification": identification,
            "retrieval": retrieval,
            "brain_retrieval": brain_retrieval,
            "unexplained": self.unexplained(),
        }
        return {name: round(float(values[0]), 6) for name, values in scores.items()}

    def _by_penalty(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("squared_error", "correlations", "row_sum", "row_square", "cross")
        }


def _some_rows(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, n_rows))
