"""Ridge regression through one decomposition of the training voxels.

With X = U diag(s) V' (thin), the ridge solution of any target Y under any penalty is V diag(s / (s^2 + alpha)) U' Y:
after one eigendecomposition of the smaller Gram matrix, a further penalty or target costs matrix products only.
(Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd ed., equation 3.47.)

Shapes: N training images, V voxels, R components (at most min(N, V)), P target columns, A penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from nd.mappers.gram import gram

# Squared singular values below this share of the largest are rounding noise of the float64 Gram matrix.
NEGLIGIBLE = 1e-12
ROWS_AT_ONCE = 1024  # rows that are widened to float64 at a time


@dataclass(frozen=True)
class Spectrum:
    """Thin singular value decomposition of training voxels; factors float32, values float64.

    Predictions made in this basis keep single precision at any penalty, which plain dual coefficients do not: those
    grow like 1 / alpha and cancel when multiplied by the voxels.
    """

    left: Tensor  # U, (N, R)
    values: Tensor  # s, (R,)
    right: Tensor  # V, (V, R)

    def gain(self, alpha: float | Tensor) -> Tensor:
        """s / (s^2 + alpha): what turns components of the targets into components of the weights. (..., R) float64."""
        squared_R = self.values.square()
        return self.values / (squared_R + alpha)

    def components(self, targets_NP: Tensor) -> Tensor:
        """Centred targets in the basis of the training images, (R, P)."""
        return self.left.T @ targets_NP

    def leverage(self, alpha: float | Tensor, intercept: bool = True) -> Tensor:
        """Diagonal of the hat matrix, (N,) float64; (A, N) where alpha is (A, 1). An intercept is not penalised."""
        shrink = self.values * self.gain(alpha)
        rows = [shrink @ left_nR.double().square().T for left_nR in self.left.split(ROWS_AT_ONCE)]
        return torch.cat(rows, dim=-1) + (1 / len(self.left) if intercept else 0)


def decompose(voxels_NV: Tensor) -> Spectrum:
    """Decompose z-scored training voxels (N, V) through the smaller of the two Gram matrices, in float64.

    Beside the voxels and the factors it takes three times the smaller Gram matrix.
    """
    wide = voxels_NV.shape[0] <= voxels_NV.shape[1]
    squared, vectors = _eigen(gram(voxels_NV if wide else voxels_NV.T))
    first = int((squared <= NEGLIGIBLE * squared[-1].clamp(min=torch.finfo(torch.float64).tiny)).sum())
    values, vectors = squared[first:].sqrt(), vectors[:, first:]  # eigenvalues rise
    rows = (voxels_NV.T if wide else voxels_NV).split(ROWS_AT_ONCE)
    other = torch.cat([(some.double() @ vectors / values).float() for some in rows])
    own = vectors.float()
    return Spectrum(own, values, other) if wide else Spectrum(other, values, own)


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Rising eigenvalues and the eigenvectors as columns. On the CPU the vectors take the place of the matrix."""
    if symmetric.device.type != "cpu":
        return torch.linalg.eigh(symmetric)
    in_column_order = symmetric.numpy().T  # LAPACK's, so that nothing is copied
    values, vectors = scipy.linalg.eigh(in_column_order, overwrite_a=True, check_finite=False, driver="evd")
    return torch.from_numpy(values), torch.from_numpy(vectors)
