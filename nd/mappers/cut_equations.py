"""Many small systems of equations cut from one large symmetric matrix, each solved by its Cholesky factors.

On the CPU each core takes system after system: for a few hundred unknowns that is several times as fast as having all
cores work on one, or as solving a batch. A GPU solves a batch.

Shapes: M rows of the large matrix, K systems, F unknowns of each.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.linalg.lapack import dposv
from threadpoolctl import ThreadpoolController
from torch import Tensor

from nd.errors import UserError

TOGETHER = 1 << 27  # numbers of the systems of one batch: 1 GiB in float64


def solve_cuts(matrix_MM: Tensor, places_KF: Tensor, right_KF: Tensor) -> Tensor:
    """Solutions (K, F) of ``matrix[places][:, places] x = right`` for every row of places, float64.

    Raises:
        UserError: a system is not positive definite in double precision, so its penalty was lost to rounding.
    """
    if matrix_MM.device.type != "cpu":
        return solve_batches(matrix_MM, places_KF, right_KF)
    return solve_each(matrix_MM, places_KF, right_KF)


def solve_each(matrix_MM: Tensor, places_KF: Tensor, right_KF: Tensor) -> Tensor:
    """`solve_cuts` on the CPU, as many systems at a time as Torch has threads."""
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
    """`solve_cuts` on any device, in batches."""
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


def factor(matrix_MM: Tensor) -> Tensor:
    """Lower Cholesky factor. UserError: as for `solve_cuts`."""
    lower_MM, failed = torch.linalg.cholesky_ex(matrix_MM)
    _check(bool(failed))
    return lower_MM


def bytes_beside(n_unknowns: int, device: str) -> int:
    """What `solve_cuts` takes beside the matrix, the places and the solutions."""
    numbers = n_unknowns**2
    # The cut and where its numbers lie, of each thread; or of a batch, with its factors.
    return 8 * (2 * numbers * torch.get_num_threads() if device == "cpu" else 3 * max(TOGETHER, numbers))


def _check(failed: bool) -> None:
    if failed:
        raise UserError(
            "mapper.penalty is too small beside the squares of the voxels: the equations cannot be solved in double"
            " precision. Give a larger one."
        )
