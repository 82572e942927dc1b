"""Scores of validation images, under each of several penalties, accumulated over blocks of target columns.

Shapes: A penalties, N validation images, M of them held out together, K columns of a block, P columns counted so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nd.mappers.base import Columns, blocks
from nd.mappers.statistics import TargetScale

TINY = 1e-30
NUMBERS_AT_ONCE = 1 << 22  # of a block of columns
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
    cross: tuple[Tensor, ...] = ()  # (A, M, M) of images held out together, predictions times truths
    true_sum: Tensor | float = 0.0  # (N,)
    true_square: Tensor | float = 0.0  # (N,)
    by_column: list[Tensor] = field(default_factory=list)  # (A, K) of each block: correlation, 0 where a column is flat

    def add(self, predicted_ANK: Tensor, true_NK: Tensor, together: Sequence[int] | None = None) -> None:
        """Count one block of columns.

        Args:
            predicted_ANK: (A, N, K) predictions under each penalty.
            true_NK: (N, K) truths, relative to the same as the predictions.
            together: how many of the images, in their order, were held out of the same fit; by default all. Images are
                identified and retrieved among those alone: predictions resemble the truths of the images fitted on.
        """
        self.squared_error += (predicted_ANK - true_NK).square().sum((1, 2)).double()
        self.total_square += true_NK.square().sum().double()
        self._add_correlation(predicted_ANK, true_NK)
        self.n_columns += true_NK.shape[1]
        self.row_sum += predicted_ANK.sum(2).double()
        self.row_square += predicted_ANK.square().sum(2).double()
        self._add_products(predicted_ANK, true_NK, together or [len(true_NK)])
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

    def _add_products(self, predicted_ANK: Tensor, true_NK: Tensor, together: Sequence[int]) -> None:
        if not self.cross:
            sizes = [(len(predicted_ANK), n, n) for n in together]
            self.cross = tuple(torch.zeros(size, dtype=torch.float64, device=true_NK.device) for size in sizes)
        parts = zip(self.cross, predicted_ANK.split(list(together), 1), true_NK.split(list(together)), strict=True)
        for cross_AMM, predicted_AMK, true_MK in parts:
            for rows in blocks(0, len(true_MK), ROWS_AT_ONCE):
                cross_AMM[:, rows] += predicted_AMK[:, rows] @ true_MK.T

    def unexplained(self) -> Tensor:
        """Return squared error over the squared size of the truths, (A,); what is predicted without voxels has 1."""
        return torch.as_tensor(self.squared_error / torch.as_tensor(self.total_square).clamp(min=TINY))

    def correlation(self) -> Tensor:
        """Return the Pearson correlation over images, averaged over the columns that vary, (A,)."""
        return torch.as_tensor(self.correlations) / max(1, self.n_varying)

    def column_correlation(self) -> Tensor:
        """Return every column's Pearson correlation over images, (A, P) float32 in the order added; 0 if it is flat."""
        return torch.cat(self.by_column, dim=1)

    def ranked(self) -> Tensor:
        """Return two-way identification and both retrievals (3, A), from one pass over correlations between images.

        Identification: how often a prediction correlates better with its own truth than another truth does; chance is
        one half. Retrieval: the share of images whose own truth correlates best with the prediction; and whose own
        prediction correlates best with the truth; chance is one over the number of images held out together.

        Among images held out together; Pearson correlation over columns; ties count as failures.
        """
        sums, trues = torch.as_tensor(self.row_sum), torch.as_tensor(self.true_sum)
        scale_AN = (self.row_square - sums.square() / self.n_columns).clamp(min=TINY).rsqrt()
        true_scale_N = (self.true_square - trues.square() / self.n_columns).clamp(min=TINY).rsqrt()
        wins, pairs, start = torch.zeros(3, len(sums), dtype=torch.float64, device=sums.device), 0, 0
        for cross_AMM in self.cross:
            some = slice(start, start + cross_AMM.shape[1])
            product_of_sums = sums[:, some, None] * (trues[some] / self.n_columns)
            wins += _wins((cross_AMM - product_of_sums) * scale_AN[:, some, None] * true_scale_N[some])
            start, pairs = some.stop, pairs + cross_AMM.shape[1] * (cross_AMM.shape[1] - 1)
        return wins / torch.tensor([[max(1, pairs)], [max(1, start)], [max(1, start)]], device=sums.device)

    def merge(self, other: ValidationScores) -> ValidationScores:
        """Return the sums over the columns of both, penalty by penalty."""
        sums = {name: value + other.__dict__[name] for name, value in self.__dict__.items()}
        if self.cross and other.cross:
            sums["cross"] = tuple(one + another for one, another in zip(self.cross, other.cross, strict=True))
        return ValidationScores(**sums)

    def summary(self) -> dict[str, float]:
        """Return the scores of a single penalty as plain numbers."""
        identification, retrieval, brain_retrieval = self.ranked()
        scores = {
            "correlation": self.correlation(),
            "identification": identification,
            "retrieval": retrieval,
            "brain_retrieval": brain_retrieval,
            "unexplained": self.unexplained(),
        }
        return {name: round(float(values[0]), 6) for name, values in scores.items()}


def target_scores(predicted_NP: Tensor, ids: Tensor, truth: Columns, scale: TargetScale) -> dict[str, float]:
    """Return the scores of one subject's predictions of one target, relative to the training mean.

    Args:
        predicted_NP: (N, P) float32, in the target's units.
        ids: (N,) the images' ids.
        truth: where their targets are read.
        scale: its mean is that of the training images.
    """
    scores, order = ValidationScores(), ids.numpy()
    for columns in blocks(0, truth.size, max(1, NUMBERS_AT_ONCE // max(1, len(order)))):
        mean_K = torch.from_numpy(scale.mean[columns])
        true_NK = torch.from_numpy(truth.columns(order, columns.start, columns.stop)) - mean_K
        scores.add((predicted_NP[:, columns] - mean_K)[None], true_NK)
    return scores.summary()


def _wins(r_AMM: Tensor) -> Tensor:
    """From correlations of predictions with truths: how often one is beaten by the own, and how many win all (3, A)."""
    own_AM = r_AMM.diagonal(dim1=1, dim2=2)
    truths_beaten_AM, predictions_beaten_AM = (r_AMM < own_AM[:, :, None]).sum(2), (r_AMM < own_AM[:, None]).sum(1)
    others = r_AMM.shape[1] - 1
    best = [(beaten == others).sum(1) for beaten in (truths_beaten_AM, predictions_beaten_AM)]
    return torch.stack([truths_beaten_AM.sum(1), *best])
