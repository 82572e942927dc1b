"""The linear algebra of ridge regression: Gram matrix, SVD of the training voxels, hat matrix, and spread.

All are made in float64, from values that are widened piece by piece.

Shapes: N images fitted on, n held-out images, V voxels, R components (at most min(N, V)), P target columns, K columns
of a block, A penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from nd.mappers.arrays import Scratch

WIDENED_NUMBERS = 1 << 23  # numbers held in double precision at a time: 64 MiB
TILE = 256  # rows of the triangle that are multiplied at a time
# Squared singular values below this share of the largest are rounding noise of the float64 Gram matrix.
NEGLIGIBLE = 1e-12
ROWS_AT_ONCE = 1024  # rows that are widened to float64 at a time
LEAST_SHARE = 1e-6  # an image that alone decides its fitted value has no leave-one-out prediction


class Gram:
    """`total` (N, N) float64: the sum of `x x'` over the blocks of columns x (N, K) that were added.

    Only one triangle is multiplied out: half the work of a plain product. A tile works on all its columns at once,
    so that its numbers stay in the cache.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        self._lower = torch.zeros(n_rows, n_rows, dtype=torch.float64, device=device)

    def add(self, block_NK: Tensor) -> None:
        """Count columns (N, K) of any precision; each part of them is in float64 only while it is used."""
        for part_NK in map(Tensor.double, block_NK.split(_columns(len(block_NK)), dim=1)):
            for start in range(0, len(self._lower), TILE):
                stop = min(start + TILE, len(self._lower))
                self._lower[start:stop, :stop].addmm_(part_NK[start:stop], part_NK[:stop].T)

    def total(self) -> Tensor:
        """Return the sum; the triangle is mirrored in place, so nothing may be added afterwards."""
        for start in range(0, len(self._lower), TILE):
            stop = min(start + TILE, len(self._lower))
            self._lower[:start, start:stop] = self._lower[start:stop, :start].T
            corner = self._lower[start:stop, start:stop]
            corner.copy_(corner.tril() + corner.tril(-1).T)
        return self._lower


def gram(x_NK: Tensor) -> Tensor:
    """Return `x x'` (N, N) float64 of (N, K)."""
    made = Gram(len(x_NK), x_NK.device)
    made.add(x_NK)
    return made.total()


def products(x_NK: Tensor, y_MK: Tensor) -> Tensor:
    """Return `x y'` (N, M) float64 of (N, K) and (M, K)."""
    total_NM = torch.zeros(len(x_NK), len(y_MK), dtype=torch.float64, device=x_NK.device)
    step = _columns(x_NK.shape[0] + y_MK.shape[0])
    for x, y in zip(x_NK.split(step, dim=1), y_MK.split(step, dim=1), strict=True):
        total_NM.addmm_(x.double(), y.double().T)
    return total_NM


def _columns(n_rows: int) -> int:
    return max(1, WIDENED_NUMBERS // max(1, n_rows))


@dataclass(frozen=True)
class SVD:
    """Thin singular value decomposition X = U diag(s) V' of training voxels, through which ridge regression is cheap.

    The ridge solution of any target Y under any penalty is V diag(s / (s^2 + alpha)) U' Y: a further penalty or target
    costs matrix products only (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd ed., equation
    3.47). Predictions made in this basis keep single precision at any penalty, which plain dual coefficients do not:
    those grow like 1 / alpha and cancel when multiplied by the voxels.

    Attributes:
        left: (N, R) float32, U.
        values: (R,) float64, s.
        right: (V, R) float32, V.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def gain(self, alpha: float | Tensor) -> Tensor:
        """Return s / (s^2 + alpha), which turns components of targets into those of weights; (..., R) float64."""
        squared_R = self.values.square()
        return self.values / (squared_R + alpha)

    def components(self, targets_NP: Tensor) -> Tensor:
        """Return centred targets (N, P) in the basis of the training images, (R, P)."""
        return self.left.T @ targets_NP

    def leverage(self, alpha: float | Tensor, intercept: bool = True) -> Tensor:
        """Return the diagonal of the training images' hat matrix, (N,) float64; (A, N) where alpha is (A, 1).

        intercept: whether the model has one; it is not penalised.
        """
        shrink = self.values * self.gain(alpha)
        rows = [shrink @ left_nR.double().square().T for left_nR in self.left.split(ROWS_AT_ONCE)]
        return torch.cat(rows, dim=-1) + (1 / len(self.left) if intercept else 0)


def decompose(voxels_NV: Tensor) -> SVD:
    """Return the SVD of z-scored training voxels (N, V), through the smaller of the two Gram matrices, in float64.

    Beside the voxels and the factors it takes three times the memory of that Gram matrix.
    """
    wide = voxels_NV.shape[0] <= voxels_NV.shape[1]
    squared, vectors = _eigen(gram(voxels_NV if wide else voxels_NV.T))
    first = int((squared <= NEGLIGIBLE * squared[-1].clamp(min=torch.finfo(torch.float64).tiny)).sum())
    values, vectors = squared[first:].sqrt(), vectors[:, first:]  # eigenvalues rise
    rows = (voxels_NV.T if wide else voxels_NV).split(ROWS_AT_ONCE)
    other = torch.cat([(some.double() @ vectors / values).float() for some in rows])
    own = vectors.float()
    return SVD(own, values, other) if wide else SVD(other, values, own)


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Rising eigenvalues and the eigenvectors as columns. On the CPU the vectors take the place of the matrix."""
    if symmetric.device.type != "cpu":
        return torch.linalg.eigh(symmetric)
    in_column_order = symmetric.numpy().T  # LAPACK's, so that nothing is copied
    values, vectors = scipy.linalg.eigh(in_column_order, overwrite_a=True, check_finite=False, driver="evd")
    return torch.from_numpy(values), torch.from_numpy(vectors)


@dataclass(frozen=True)
class HatMatrix:
    """What turns targets of the images fitted on into predictions of others, under every penalty.

    Ridge predictions are linear in the targets: with X the voxels fitted on and Z those of held-out images, both scaled
    by the statistics of X, they are H Y with H = Z X' (X X' + alpha I)^-1 = Z (X' X + alpha I)^-1 X'. H depends on no
    target. It is made once, in float64, and then multiplied with however many target columns there are, in float32: no
    column costs more than the held-out images' share of it.

    Attributes:
        left: (A, n, R) float32; H itself (R = N) or, where that takes less arithmetic, the first of two factors.
        right: (R, N) float32, the second factor; None where `left` is H.
    """

    left: Tensor
    right: Tensor | None = None

    def predict(self, centred_NK: Tensor) -> Tensor:
        """Return predictions (A, n, K) from targets (N, K) without their mean."""
        inner_RK = centred_NK if self.right is None else self.right @ centred_NK
        return (self.left.flatten(0, 1) @ inner_RK).unflatten(0, self.left.shape[:2])

    def at(self, a: int) -> HatMatrix:
        """Return H under the penalty at place `a` alone."""
        return HatMatrix(self.left[a : a + 1], self.right)

    def squared_error(self, fitted_NN: Tensor, cross_nN: Tensor, held: Tensor) -> Tensor:
        """Return squared errors (A,) float64, summed over images and columns, from inner products of targets alone.

        |H Y - T|^2 = tr(H YY' H') - 2 tr(H YT') + tr(TT'): with YY' at hand, columns cost nothing any more.

        Args:
            fitted_NN: YY' of centred targets Y, float64.
            cross_nN: TY', T the truths, float64.
            held: () tr(TT'), float64.
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
        """Return how many multiplications one column's predictions take."""
        n_penalties, n_held, n_shared = self.left.shape
        return n_shared * (n_penalties * n_held + (0 if self.right is None else self.right.shape[1]))

    def work_by_products(self) -> int:
        """Return how many multiplications `squared_error` takes, whatever the number of columns."""
        n_penalties, n_held, n_shared = self.left.shape
        n_fitted = n_shared if self.right is None else self.right.shape[1]
        shared = 0 if self.right is None else n_shared * n_fitted * (n_shared + n_fitted)
        return n_penalties * n_held * n_shared**2 + shared


def hat_matrix(voxels_NV: Tensor, held_nV: Tensor, alphas: Sequence[float], room: Scratch) -> HatMatrix:
    """Return H of scaled voxels, through whichever Gram matrix is smaller.

    Args:
        voxels_NV: (N, V) float32, of the images fitted on.
        held_nV: (n, V) float32, scaled alike.
        alphas: penalties; one that float64 cannot tell from 0 beside the voxels' squares counts as the smallest that it
            can tell.
        room: for `HatMatrix.left`.
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
    return HatMatrix(left_AnR, voxels_NV.T.contiguous() if split else None)


def left_out_share(svd: SVD, alphas_A1: Tensor, intercept: bool = True) -> Tensor:
    """Return 1 - h, (A, N) float32: the share of an image's residual without it that is left with it.

    Args:
        alphas_A1: (A, 1) float64 penalties.
        intercept: as for `SVD.leverage`.
    """
    return (1 - svd.leverage(alphas_A1, intercept)).clamp(min=LEAST_SHARE).float()


def spread_ratio(svd: SVD, left_out_NK: Tensor, targets_NK: Tensor, solved_RK: Tensor) -> Tensor:
    """Return what predictions must be multiplied by to vary as much as the training targets do, (K,) per column.

    Fitted values would look too spread out, and test predictions must not be looked at (re-standardising those, as
    published codes do, needs the whole test set). Leave-one-out predictions of the training images serve instead; the
    hat matrix gives them in closed form: y_i - (y_i - fit_i) / (1 - h_i).

    Args:
        left_out_NK: 1 - h of each image under the column's penalty; (N, 1) where all columns have the same.
        targets_NK: (N, K), centred.
        solved_RK: (R, K) coefficients of the components, unscaled. Columns that do not vary keep ratio 1.
    """
    fitted_NK = svd.left @ (svd.values.float()[:, None] * solved_RK)
    held_out_NK = targets_NK - (targets_NK - fitted_NK) / left_out_NK
    wanted_K, found_K = targets_NK.std(0, correction=0), held_out_NK.std(0, correction=0)
    varying_K = (wanted_K > 1e-6 * targets_NK.abs().max()) & (found_K > 1e-6 * wanted_K)
    return torch.where(varying_K, wanted_K / found_K.clamp(min=1e-30), torch.ones_like(wanted_K))
