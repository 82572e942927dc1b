"""How many directions outputs differ in: a decoder that picks one of a few stored images has few, true targets many.

The effective dimension of N rows is the participation ratio of the eigenvalues l of their covariance,
(sum l)^2 / sum l^2: k where k directions share the variance alike, 1 where one holds it all. It is at most N - 1 and
grows with N, so predictions are compared with the targets of the same images alone.

N rows, D numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

COLUMNS_AT_ONCE = 4096  # 1,000 rows of them in float64: 33 MB
ROUNDING = 1e-12  # variance below this share of the mean square is that of equal rows


@dataclass(frozen=True)
class Diversity:
    """Effective dimensions of predictions and of the targets of the same n images."""

    predicted: float
    true: float
    n: int

    @property
    def ratio(self) -> float:
        """Predicted over true; NaN where the targets do not vary."""
        return self.predicted / self.true if self.true else float("nan")


def diversity(predicted: NDArray[Any], true: NDArray[Any]) -> Diversity:
    """Compare the effective dimension of predictions with that of targets.

    Args:
        predicted, true: (N, ...) of the same shape, in the same order; rows are flattened.

    Raises:
        UserError: other shapes, or as ``effective_dimension``.
    """
    if predicted.shape != true.shape:
        raise UserError(f"diversity: predictions {predicted.shape} against targets {true.shape}; one shape is wanted.")
    return Diversity(effective_dimension(predicted), effective_dimension(true), len(true))


def effective_dimension(rows: NDArray[Any]) -> float:
    """Participation ratio of the covariance of rows (N, ...), which are flattened; 0 where all rows are equal.

    No eigenvalue is formed: their sum is the trace of the covariance, or of the smaller Gram matrix of the centred
    rows, and their sum of squares its squared Frobenius norm.

    Raises:
        UserError: fewer than two rows, no numbers, or numbers that are not finite.
    """
    if rows.ndim < 2 or len(rows) < 2 or rows[0].size == 0:
        raise UserError(f"effective dimension: rows {rows.shape} were found; at least 2 rows of numbers are wanted.")
    rows_ND = rows.reshape(len(rows), -1)
    if not np.isfinite(rows_ND).all():
        raise UserError("effective dimension: rows hold NaN or infinite numbers; finite ones are wanted.")
    products = _gram(rows_ND) if rows_ND.shape[1] > len(rows_ND) else _scatter(rows_ND)
    total, squares = float(np.trace(products)), float(np.square(rows_ND, dtype=np.float64).sum())
    return total**2 / float(np.square(products).sum()) if total > ROUNDING * squares else 0.0


def _gram(rows_ND: NDArray[Any]) -> NDArray[np.float64]:
    """(N, N) products of the centred rows, gathered over blocks of columns."""
    gram_NN = np.zeros((len(rows_ND), len(rows_ND)))
    for start in range(0, rows_ND.shape[1], COLUMNS_AT_ONCE):
        block = _centred(rows_ND[:, start : start + COLUMNS_AT_ONCE])
        gram_NN += block @ block.T
    return gram_NN


def _scatter(rows_ND: NDArray[Any]) -> NDArray[np.float64]:
    """(D, D) products of the centred columns: the covariance times N - 1."""
    block = _centred(rows_ND)
    return np.asarray(block.T @ block)


def _centred(block: NDArray[Any]) -> NDArray[np.float64]:
    block = block.astype(np.float64)
    return np.asarray(block - block.mean(axis=0))
