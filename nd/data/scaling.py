"""Per-voxel z-scoring whose statistics come from training rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError


@dataclass(frozen=True)
class Scaler:
    """``(x - mean) / scale`` per voxel: mean (V,) float32, scale (V,) float32 > 0 (population standard deviation)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, train_rows: NDArray[np.float32]) -> Scaler:
        """Fit on (n, V) training rows. A voxel that never varies gets scale 1, so it becomes 0 and not NaN."""
        if len(train_rows) < 2:
            raise UserError(
                f"scaling needs at least 2 training rows and got {len(train_rows)}. Enlarge the training part."
            )
        mean = train_rows.mean(0, dtype=np.float64)
        scale = train_rows.std(0, dtype=np.float64)
        # A constant column leaves rounding of the size of its mean in the standard deviation.
        constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        return cls(mean.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32))

    def transform(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale (n, V) rows of the same voxels."""
        if rows.shape[-1] != len(self.mean):
            raise UserError(
                f"rows have {rows.shape[-1]} voxels but the scaler was fitted on {len(self.mean)}. "
                "Use the same subject.roi."
            )
        return ((rows - self.mean) / self.scale).astype(np.float32)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Arrays to store; ``Scaler(**state)`` restores it."""
        return {"mean": self.mean, "scale": self.scale}
