"""Mean and spread of a target over training images, which the network's outputs are relative to.

Shapes: N training images, P numbers of a flattened target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.mappers.base import Columns

BLOCK_NUMBERS = 1 << 22
# Columns that vary by less than this share of the target's mean spread are constants with rounding, such as the first
# token of c; predicted to the full they would be noise blown up.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class TargetScale:
    """``(target - mean) / scale`` per column: mean (P,) and scale (P,) > 0, float32."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, targets: Columns, ids: NDArray[Any]) -> TargetScale:
        """Statistics of the training images ``ids`` alone, gathered block by block."""
        mean, spread = np.empty(targets.size, np.float32), np.empty(targets.size, np.float32)
        step = max(1, BLOCK_NUMBERS // len(ids))
        for start in range(0, targets.size, step):
            values_NK = targets.columns(ids, start, min(start + step, targets.size))
            mean[start : start + step] = values_NK.mean(0, dtype=np.float64)
            spread[start : start + step] = values_NK.std(0, dtype=np.float64)
        constant = spread <= NEGLIGIBLE * spread.mean(dtype=np.float64)
        return cls(mean, np.where(constant, 1.0, spread).astype(np.float32))

    @classmethod
    def plain(cls, size: int) -> TargetScale:
        """Leaves targets as they are: published code trains on raw features."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))
