"""Penalised normal equations of linear regression, cut down for each target column to the voxels that follow it best.

With X the voxels and a column of ones appended, a column y of the targets has the coefficients w that solve

    (X'X + penalty I)[S, S] w[S] = (X'y)[S],   w = 0 elsewhere,

where S holds the `n_feat` voxels of largest absolute Pearson correlation with y, and the ones: the bias is penalised
like any other coefficient. As in KamitaniLab/PyFastL2LiR 0.11 (fastl2lir/fastl2lir.py), with the voxels and targets as
they are given. X'X is made once, in float64; the equations of many columns are cut from it and solved together. Where
a column has more voxels than there are images, the same coefficients come of as many equations as there are images:
w[S] = X_S' (X_S X_S' + penalty I)^-1 y.

Shapes: N images, V voxels, P target columns, K columns of a block, F chosen voxels of a column, M rows of X'X.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg.lapack import dposv
from threadpoolctl import ThreadpoolController
from torch import Tensor

from nd.errors import UserError
from nd.mappers.ridge_solver import gram

STILL = 1e-8  # variance below which a voxel correlates with nothing, as in fastl2lir.py
BLOCK_NUMBERS = 1 << 23  # numbers of one block of targets, or of its products with the voxels: 64 MiB in float64
TOGETHER = 1 << 27  # numbers of the systems of one batch: 1 GiB in float64
CACHED = 1 << 21  # numbers of the voxels of one batch: 16 MiB, which the system need not map anew for each


@dataclass(frozen=True)
class Solution:
    """Coefficients of K columns.

    Attributes:
        voxels: (K, F) int64, rising, the voxels that the weights belong to; None: all of them, in order.
        weights: (K, F), without `voxels` (K, V), float64.
        bias: (K,) float64.
    """

    voxels: Tensor | None
    weights: Tensor
    bias: Tensor


def select_and_solve(voxels_NV: Tensor, targets_NP: Tensor, n_feat: int, penalty: float) -> Solution:
    """Return coefficients of all columns from their `n_feat` best voxels each, or from all where there are no more.

    Nothing is scaled or centred. The device of the voxels does the work.

    Args:
        voxels_NV: (N, V) responses.
        targets_NP: (N, P).
        n_feat: voxels of a column.
        penalty: on the diagonal of X'X, above 0.

    Raises:
        UserError: as for `normal_equations`.
    """
    equations = normal_equations(voxels_NV, n_feat, penalty)
    step = columns_together(*voxels_NV.shape)
    blocks = [equations.solve(targets_NK) for targets_NK in targets_NP.split(step, dim=1)]
    chosen = [block.voxels for block in blocks if block.voxels is not None]
    weights, bias = torch.cat([block.weights for block in blocks]), torch.cat([block.bias for block in blocks])
    return Solution(torch.cat(chosen) if chosen else None, weights, bias)


def columns_together(n_images: int, n_voxels: int) -> int:
    """Return how many columns make a block that is small in memory, their products with the voxels included."""
    return max(1, BLOCK_NUMBERS // max(n_images, n_voxels + 1))


def equation_bytes(n_images: int, n_voxels: int, n_feat: int, device: str) -> float:
    """Return how many bytes `normal_equations` of z-scored voxels, and solving a block of columns, take on a device."""
    n_border, few = n_voxels + 1, n_feat < n_voxels
    products = n_border**2 if few else 2 * min(n_images, n_border) ** 2  # these with their factors
    voxels = 1.5 * n_images * n_border  # in double precision, and in single, as they were given
    return 8.0 * (voxels + products + 4 * BLOCK_NUMBERS) + (bytes_beside(n_feat + 1, device) if few else 0)


def normal_equations(voxels_NV: Tensor, n_feat: int, penalty: float) -> Selecting | Sharing:
    """Return the equations of voxels (N, V), prepared in float64; as of `select_and_solve`.

    Raises:
        UserError: the penalty is so small beside the voxels' squares that float64 cannot solve them.
    """
    x = bordered(voxels_NV)
    return Selecting(x, n_feat, penalty) if n_feat < voxels_NV.shape[1] else Sharing(x, penalty)


def bordered(voxels_NV: Tensor) -> Tensor:
    """Return voxels and a column of ones, (N, V + 1) float64."""
    ones_N1 = torch.ones(len(voxels_NV), 1, dtype=torch.float64, device=voxels_NV.device)
    return torch.cat([voxels_NV.double(), ones_N1], dim=1)


class Selecting:
    """Equations of which every column solves a part of its own."""

    def __init__(self, bordered: Tensor, n_feat: int, penalty: float) -> None:
        """bordered: (N, V + 1) float64, the voxels and a column of ones; n_feat: below V."""
        self.bordered, self.n_feat, self.penalty = bordered, n_feat, penalty
        voxels_NV = bordered[:, :-1]
        self.mean_V, variance_V = voxels_NV.mean(0), voxels_NV.var(0, correction=0)
        self.per_spread_V = torch.where(variance_V < STILL, 0, variance_V.rsqrt())

    @cached_property
    def gram(self) -> Tensor:
        """The products of all voxels, (V + 1, V + 1), the penalty on the diagonal."""
        products = gram(self.bordered.T)
        products.diagonal().add_(self.penalty)
        return products

    def use(self, n_feat: int, penalty: float) -> None:
        """Go on with another number of voxels, below V, and another penalty."""
        if "gram" in vars(self):
            self.gram.diagonal().add_(penalty - self.penalty)
        self.n_feat, self.penalty = n_feat, penalty

    def solve(self, targets_NK: Tensor) -> Solution:
        """Choose the voxels of every column and solve its equations."""
        targets_NK = targets_NK.double()
        products = targets_NK.T @ self.bordered  # (K, V + 1), right hand sides
        chosen_KF = self._choose(products[:, :-1], targets_NK.sum(0))
        bias_K1 = torch.full_like(chosen_KF[:, :1], products.shape[1] - 1)
        places = torch.cat([chosen_KF, bias_K1], dim=1)
        if len(self.bordered) <= self.n_feat:
            solved = solve_over_images(self.bordered, places, targets_NK, self.penalty)
        else:
            solved = solve_cuts(self.gram, places, products.gather(1, places))
        return Solution(chosen_KF, solved[:, :-1], solved[:, -1])

    def _choose(self, products_KV: Tensor, sums_K: Tensor) -> Tensor:
        """The voxels (K, F) of largest |r|, rising. A column's own spread does not change their order."""
        covariance_KV = torch.addr(products_KV, sums_K, self.mean_V, alpha=-1)
        strength_KV = covariance_KV.abs_().mul_(self.per_spread_V)
        return strength_KV.topk(self.n_feat, dim=1, sorted=False).indices.sort(dim=1).values


class Sharing:
    """Equations of all voxels, factorised once: over images where these are fewer, as X'(XX' + penalty I)^-1 y."""

    def __init__(self, bordered: Tensor, penalty: float) -> None:
        """bordered: (N, V + 1) float64, the voxels and a column of ones."""
        self.bordered, self.over_images = bordered, bordered.shape[0] <= bordered.shape[1]
        equations = gram(bordered if self.over_images else bordered.T)
        equations.diagonal().add_(penalty)
        self.factor = factor(equations)

    def solve(self, targets_NK: Tensor) -> Solution:
        """Coefficients of all voxels."""
        targets_NK = targets_NK.double()
        if self.over_images:
            solved = self.bordered.T @ torch.cholesky_solve(targets_NK, self.factor)
        else:
            solved = torch.cholesky_solve(self.bordered.T @ targets_NK, self.factor)
        return Solution(None, solved[:-1].T, solved[-1])


def solve_cuts(matrix_MM: Tensor, places_KF: Tensor, right_KF: Tensor) -> Tensor:
    """Return the solutions (K, F) of ``matrix[places][:, places] x = right`` for every row of places, float64.

    On the CPU each core takes system after system: for a few hundred unknowns that is several times as fast as having
    all cores work on one, or as solving a batch. A GPU solves a batch.

    Args:
        matrix_MM: (M, M) float64, symmetric.
        places_KF: (K, F) int64 rows of it that make up each of the K systems.
        right_KF: (K, F) float64 right-hand sides.

    Raises:
        UserError: a system is not positive definite in double precision, so its penalty was lost to rounding.
    """
    if matrix_MM.device.type != "cpu":
        return solve_batches(matrix_MM, places_KF, right_KF)
    return solve_each(matrix_MM, places_KF, right_KF)


def solve_each(matrix_MM: Tensor, places_KF: Tensor, right_KF: Tensor) -> Tensor:
    """Do as `solve_cuts` on the CPU, as many systems at a time as Torch has threads."""
    flat, size = matrix_MM.numpy().reshape(-1), len(matrix_MM)
    places, right = places_KF.numpy(), right_KF.numpy()
    solved = np.empty_like(right)

    def solve(k: int) -> int:
        cut_FF = np.take(flat, places[k, :, None] * size + places[k], mode="clip")  # "raise" would make a copy
        _, solved[k], failed = dposv(cut_FF.T, right[k], lower=1, overwrite_a=1)  # its transpose is itself
        return int(failed)

    n_threads = min(torch.get_num_threads(), len(places))
    with ThreadpoolController().limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        _check(any(pool.map(solve, range(len(places)))))
    return torch.from_numpy(solved)


def solve_batches(matrix_MM: Tensor, places_KF: Tensor, right_KF: Tensor) -> Tensor:
    """Do as `solve_cuts` on any device, in batches."""
    step = max(1, TOGETHER // places_KF.shape[1] ** 2)
    solved = []
    for places, right in zip(places_KF.split(step), right_KF.split(step), strict=True):
        chosen = (places[:, :, None] * len(matrix_MM) + places[:, None, :]).flatten()
        cuts_kFF = matrix_MM.flatten().index_select(0, chosen).view(*places.shape, -1)
        factors, failed = torch.linalg.cholesky_ex(cuts_kFF)
        _check(bool(failed.any()))
        half = torch.linalg.solve_triangular(factors, right[:, :, None], upper=False)
        solved.append(torch.linalg.solve_triangular(factors.mT, half, upper=True)[:, :, 0])
    return torch.cat(solved)


def solve_over_images(bordered_NM: Tensor, places_KF: Tensor, targets_NK: Tensor, penalty: float) -> Tensor:
    """Return the coefficients (K, F) of columns that use at least as many voxels as there are images, on any device.

    Args:
        bordered_NM: (N, M) float64, the voxels and a column of ones.
        places_KF: (K, F) int64 of these that each of the K columns uses, N at most F.
        targets_NK: (N, K) float64.
        penalty: on the diagonal.

    Raises:
        UserError: as for `solve_cuts`.
    """
    n_images, n_columns = bordered_NM.shape
    most = 2 * places_KF.shape[1] > n_columns  # then the products of the few others are taken from those of all
    few_Kf = left_out(places_KF, n_columns) if most else places_KF
    all_NN = bordered_NM @ bordered_NM.T
    step, solved = max(1, CACHED // (n_images * max(few_Kf.shape[1], n_images))), []
    for few, targets_Nk in zip(few_Kf.split(step), targets_NK.split(step, dim=1), strict=True):
        voxels_kNf = bordered_NM.T[few].mT
        products_kNN = voxels_kNf @ voxels_kNf.mT
        products_kNN = all_NN - products_kNN if most else products_kNN
        products_kNN.diagonal(dim1=1, dim2=2).add_(penalty)
        factors, failed = torch.linalg.cholesky_ex(products_kNN)
        _check(bool(failed.any()))
        solved.append(torch.cholesky_solve(targets_Nk.T[:, :, None], factors)[:, :, 0])
    return (torch.cat(solved) @ bordered_NM).gather(1, places_KF)


def left_out(places_KF: Tensor, n: int) -> Tensor:
    """Return the places (K, n - F) below n that are not among some, rising.

    >>> left_out(torch.tensor([[0, 2], [1, 2]]), 4).tolist()
    [[1, 3], [0, 3]]
    """
    others = torch.ones(len(places_KF), n, dtype=torch.bool, device=places_KF.device).scatter_(1, places_KF, False)
    return others.nonzero()[:, 1].view(len(places_KF), -1)


def factor(matrix_MM: Tensor) -> Tensor:
    """Return the lower Cholesky factor (M, M). `UserError`: as for `solve_cuts`."""
    lower_MM, failed = torch.linalg.cholesky_ex(matrix_MM)
    _check(bool(failed))
    return lower_MM


def bytes_beside(n_unknowns: int, device: str) -> int:
    """Return how many bytes `solve_cuts` takes beside the matrix, the places and the solutions."""
    numbers = n_unknowns**2
    # The cut and where its numbers lie, of each thread; or of a batch, with its factors.
    return 8 * (2 * numbers * torch.get_num_threads() if device == "cpu" else 3 * max(TOGETHER, numbers))


def _check(failed: bool) -> None:
    if failed:
        raise UserError(
            "mapper.penalty is too small beside the squares of the voxels: the equations cannot be solved in double"
            " precision. Give a larger one."
        )
