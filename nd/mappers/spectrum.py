"""Ridge regression through one decomposition of the training voxels.

With X = U diag(s) V' (thin), the ridge solution of any target Y under any penalty is V diag(s / (s^2 + alpha)) U' Y:
after one eigendecomposition of the smaller Gram matrix, a further penalty or target costs matrix products only.
(Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd ed., equation 3.47.)

Shapes: N training images, V voxels, R components (at most min(N, V)), P target columns, A penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Squared singular values below this share of the largest are rounding noise of the float64 Gram matrix.
NEGLIGIBLE = 1e-12


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

    def leverage(self, alpha: float) -> Tensor:
        """Diagonal of the hat matrix with an unpenalised intercept, (N,) float64."""
        shrink_R = self.values * self.gain(alpha)
        return self.left.double().square() @ shrink_R + 1 / len(self.left)


def decompose(voxels_NV: Tensor) -> Spectrum:
    """Decompose z-scored training voxels (N, V) through the smaller of the two Gram matrices, in float64."""
    x = voxels_NV.double()
    wide = x.shape[0] <= x.shape[1]
    squared, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = squared > NEGLIGIBLE * squared[-1].clamp(min=torch.finfo(torch.float64).tiny)
    values, vectors = squared[keep].sqrt(), vectors[:, keep]
    other = (x.T if wide else x) @ vectors / values
    left, right = (vectors, other) if wide else (other, vectors)
    return Spectrum(left.float(), values, right.float())
