"""What turns the targets of the images fitted on into predictions of others, under every penalty.

Ridge predictions are linear in the targets: with X the voxels fitted on and Z those of held-out images, both scaled by
the statistics of X, they are H Y with H = Z X' (X X' + alpha I)^-1 = Z (X' X + alpha I)^-1 X'. H depends on no target.
It is made once, in float64, and then multiplied with however many target columns there are, in float32: no column
costs more than the held-out images' share of it.

Shapes: N images fitted on, n held-out images, V voxels, R what `left` and `right` share, K target columns, A penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nd.mappers.arrays import Scratch
from nd.mappers.gram import gram, products
from nd.mappers.spectrum import NEGLIGIBLE


@dataclass(frozen=True)
class Smoother:
    """H, whole or, where that takes less arithmetic, as two factors."""

    left: Tensor  # (A, n, R) float32; H itself where `right` is None (R = N)
    right: Tensor | None = None  # (R, N) float32

    def predict(self, centred_NK: Tensor) -> Tensor:
        """Predictions (A, n, K) from targets without their mean."""
        inner_RK = centred_NK if self.right is None else self.right @ centred_NK
        return (self.left.flatten(0, 1) @ inner_RK).unflatten(0, self.left.shape[:2])

    def at(self, a: int) -> Smoother:
        """Under one penalty alone."""
        return Smoother(self.left[a : a + 1], self.right)

    def squared_error(self, fitted_NN: Tensor, cross_nN: Tensor, held: Tensor) -> Tensor:
        """Squared errors (A,) float64, summed over images and columns, from inner products of targets alone.

        |H Y - T|^2 = tr(H YY' H') - 2 tr(H YT') + tr(TT'): with YY' at hand, columns cost nothing any more.

        fitted_NN: YY', of centred targets Y; cross_nN: TY', T the truths; held: tr(TT'); float64.
        """
        if self.right is not None:
            right = self.right.double()
            fitted_NN, cross_nN = right @ fitted_NN @ right.T, cross_nN @ right.T
        errors = []
        for left in self.left:
            left = left.double()
            errors.append((left * (left @ fitted_NN - 2 * cross_nN)).sum() + held)
        return torch.stack(errors)

    def work_per_column(self) -> int:
        """Multiplications of one column's predictions."""
        n_penalties, n_held, n_shared = self.left.shape
        return n_shared * (n_penalties * n_held + (0 if self.right is None else self.right.shape[1]))

    def work_by_products(self) -> int:
        """Multiplications of `squared_error`, whatever the number of columns."""
        n_penalties, n_held, n_shared = self.left.shape
        n_fitted = n_shared if self.right is None else self.right.shape[1]
        shared = 0 if self.right is None else n_shared * n_fitted * (n_shared + n_fitted)
        return n_penalties * n_held * n_shared**2 + shared


def smoother(voxels_NV: Tensor, held_nV: Tensor, alphas: Sequence[float], room: Scratch) -> Smoother:
    """H of some scaled voxels, through whichever Gram matrix is smaller.

    A penalty that float64 cannot tell from 0 beside the voxels' squares counts as the smallest that it can tell.
    """
    (n_fitted, n_voxels), n_held = voxels_NV.shape, len(held_nV)
    dual = n_fitted <= n_voxels
    split = not dual and n_voxels * (len(alphas) * n_held + n_fitted) < len(alphas) * n_held * n_fitted
    squares = gram(voxels_NV if dual else voxels_NV.T)
    # Under the dual form H is these products times the inverse; under the primal one they are the voxels themselves.
    held = products(held_nV, voxels_NV) if dual else held_nV.double()
    left_AnR = room.tensor((len(alphas), n_held, n_voxels if split else n_fitted), voxels_NV.device)
    smallest, diagonal = NEGLIGIBLE * float(squares.norm()), squares.diagonal().clone()
    for a, alpha in enumerate(alphas):
        squares.diagonal().copy_(diagonal + max(alpha, smallest))
        solved = torch.cholesky_solve(held.T, torch.linalg.cholesky(squares)).T
        left_AnR[a] = solved if dual or split else solved @ voxels_NV.T.double()
    return Smoother(left_AnR, voxels_NV.T.contiguous() if split else None)
