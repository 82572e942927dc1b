"""Sums of products of rows with rows in double precision, of values that are widened to it piece by piece.

Shapes: N rows, M other rows, K columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDENED_NUMBERS = 1 << 23  # numbers held in double precision at a time: 64 MiB
TILE = 256  # rows of the triangle that are multiplied at a time


class Gram:
    """`total` (N, N) float64: the sum of `x x'` over the blocks of columns x (N, K) that were added.

    Only one triangle is multiplied out: half the work of a plain product. A tile works on all its columns at once,
    so that its numbers stay in the cache.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        """Nothing added yet."""
        self._lower = torch.zeros(n_rows, n_rows, dtype=torch.float64, device=device)

    def add(self, block_NK: Tensor) -> None:
        """Count some columns; they may be of any precision."""
        for part_NK in in_parts(block_NK):
            for start in range(0, len(self._lower), TILE):
                stop = min(start + TILE, len(self._lower))
                self._lower[start:stop, :stop].addmm_(part_NK[start:stop], part_NK[:stop].T)

    def total(self) -> Tensor:
        """The sum; the triangle is mirrored in place, so nothing may be added afterwards."""
        for start in range(0, len(self._lower), TILE):
            stop = min(start + TILE, len(self._lower))
            self._lower[:start, start:stop] = self._lower[start:stop, :start].T
            corner = self._lower[start:stop, start:stop]
            corner.copy_(corner.tril() + corner.tril(-1).T)
        return self._lower


def gram(x_NK: Tensor) -> Tensor:
    """`x x'` (N, N) float64."""
    made = Gram(len(x_NK), x_NK.device)
    made.add(x_NK)
    return made.total()


def products(x_NK: Tensor, y_MK: Tensor) -> Tensor:
    """`x y'` (N, M) float64."""
    total_NM = torch.zeros(len(x_NK), len(y_MK), dtype=torch.float64, device=x_NK.device)
    step = _columns(x_NK.shape[0] + y_MK.shape[0])
    for x, y in zip(x_NK.split(step, dim=1), y_MK.split(step, dim=1), strict=True):
        total_NM.addmm_(x.double(), y.double().T)
    return total_NM


def in_parts(x_NK: Tensor) -> list[Tensor] | map[Tensor]:
    """Groups of columns, each in double precision only while it is used."""
    return map(Tensor.double, x_NK.split(_columns(len(x_NK)), dim=1))


def _columns(n_rows: int) -> int:
    return max(1, WIDENED_NUMBERS // max(1, n_rows))
