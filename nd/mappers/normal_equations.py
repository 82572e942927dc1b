"""Penalised normal equations of linear regression, cut down for each target column to the voxels that follow it best.

With X the voxels and a column of ones appended, a column y of the targets has the coefficients w that solve

    (X'X + penalty I)[S, S] w[S] = (X'y)[S],   w = 0 elsewhere,

where S holds the `n_feat` voxels of largest absolute Pearson correlation with y, and the ones: the bias is penalised
like any other coefficient. As in KamitaniLab/PyFastL2LiR 0.11 (fastl2lir/fastl2lir.py), with the voxels and targets as
they are given. X'X is made once, in float64; the equations of many columns are cut from it and solved together.

Shapes: N images, V voxels, P target columns, K columns of a block, F chosen voxels of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nd.mappers.cut_equations import bytes_beside, factor, solve_cuts
from nd.mappers.gram import gram

STILL = 1e-8  # variance below which a voxel correlates with nothing, as in fastl2lir.py
BLOCK_NUMBERS = 1 << 23  # numbers of one block of targets, or of its products with the voxels: 64 MiB in float64


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


class Equations(Protocol):
    """What can be solved for block after block of targets."""

    def solve(self, targets_NK: Tensor) -> Solution:
        """Coefficients of some target columns."""


def select_and_solve(voxels_NV: Tensor, targets_NP: Tensor, n_feat: int, penalty: float) -> Solution:
    """Coefficients of all columns from their `n_feat` best voxels each, or from all where there are no more.

    Nothing is scaled or centred. The device of the voxels does the work. UserError: as for `normal_equations`.
    """
    equations = normal_equations(voxels_NV, n_feat, penalty)
    step = columns_together(*voxels_NV.shape)
    blocks = [equations.solve(targets_NK) for targets_NK in targets_NP.split(step, dim=1)]
    chosen = [block.voxels for block in blocks if block.voxels is not None]
    weights, bias = torch.cat([block.weights for block in blocks]), torch.cat([block.bias for block in blocks])
    return Solution(torch.cat(chosen) if chosen else None, weights, bias)


def columns_together(n_images: int, n_voxels: int) -> int:
    """How many columns make a block that is small in memory, their products with the voxels included."""
    return max(1, BLOCK_NUMBERS // max(n_images, n_voxels + 1))


def equation_bytes(n_images: int, n_voxels: int, n_feat: int, device: str) -> float:
    """What `normal_equations` of z-scored voxels, and solving a block of columns, take on a device."""
    n_border, few = n_voxels + 1, n_feat < n_voxels
    products = n_border**2 if few else 2 * min(n_images, n_border) ** 2  # these with their factors
    voxels = 1.5 * n_images * n_border  # in double precision, and in single, as they were given
    return 8.0 * (voxels + products + 4 * BLOCK_NUMBERS) + (bytes_beside(n_feat + 1, device) if few else 0)


def normal_equations(voxels_NV: Tensor, n_feat: int, penalty: float) -> Equations:
    """Prepare the equations of some voxels, float64.

    UserError: the penalty is so small beside the voxels' squares that float64 cannot solve them.
    """
    ones_N1 = torch.ones(len(voxels_NV), 1, dtype=torch.float64, device=voxels_NV.device)
    bordered = torch.cat([voxels_NV.double(), ones_N1], dim=1)
    return Selecting(bordered, n_feat, penalty) if n_feat < voxels_NV.shape[1] else Sharing(bordered, penalty)


class Selecting:
    """Equations of which every column solves a part of its own."""

    def __init__(self, bordered: Tensor, n_feat: int, penalty: float) -> None:
        """bordered: (N, V + 1) float64, the voxels and a column of ones; n_feat: below V."""
        self.bordered, self.n_feat = bordered, n_feat
        self.gram = gram(bordered.T)
        self.gram.diagonal().add_(penalty)
        voxels_NV = bordered[:, :-1]
        self.mean_V, variance_V = voxels_NV.mean(0), voxels_NV.var(0, correction=0)
        self.per_spread_V = torch.where(variance_V < STILL, 0, variance_V.rsqrt())

    def solve(self, targets_NK: Tensor) -> Solution:
        """Choose the voxels of every column and solve its equations."""
        targets_NK = targets_NK.double()
        products = targets_NK.T @ self.bordered  # (K, V + 1), right hand sides
        chosen_KF = self._choose(products[:, :-1], targets_NK.sum(0))
        bias_K1 = torch.full_like(chosen_KF[:, :1], products.shape[1] - 1)
        places = torch.cat([chosen_KF, bias_K1], dim=1)
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
