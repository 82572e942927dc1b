"""Per-voxel z-scoring whose statistics come from training rows alone.

Statistics are gathered block by block in float64, so that rows never need to be in memory together.
Shapes: N rows, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.stimuli import check_allowed
from nd.errors import UserError

BLOCK_NUMBERS = 1 << 22  # numbers of one block of rows while fitting: 32 MiB in float64


@dataclass
class _Moments:
    """Mean and sum of squared deviations per voxel of the rows met so far, float64."""

    n: int = 0
    mean: NDArray[np.float64] | None = None
    squares: NDArray[np.float64] | None = None

    def add(self, rows_NV: NDArray[Any]) -> None:
        """Merge one block: Chan, Golub & LeVeque 1983, pairwise update of mean and sum of squares.

        Deviations are from the block's own mean, so a mean far larger than the spread costs no digits.
        """
        n, mean = len(rows_NV), rows_NV.mean(0, dtype=np.float64)
        deviations = rows_NV - mean
        squares = np.square(deviations, out=deviations).sum(0)
        if self.mean is None or self.squares is None:
            self.n, self.mean, self.squares = n, mean, squares
            return
        if len(mean) != len(self.mean):
            raise UserError(f"blocks of rows have {len(self.mean)} and then {len(mean)} voxels. Use one subject.roi.")
        total, shift = self.n + n, mean - self.mean
        self.mean += shift * (n / total)
        self.squares += squares + shift**2 * (self.n * n / total)
        self.n = total


@dataclass(frozen=True)
class Scaler:
    """``(x - mean) / scale`` per voxel: mean (V,) float32, scale (V,) float32 > 0 (population standard deviation)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, train_rows: NDArray[np.float32]) -> Scaler:
        """Fit on (n, V) training rows; errors as for ``fit_blocks``."""
        step = max(1, BLOCK_NUMBERS // max(1, train_rows.shape[1]))
        return cls.fit_blocks(train_rows[start : start + step] for start in range(0, len(train_rows), step))

    @classmethod
    def fit_blocks(
        cls,
        blocks: Iterable[NDArray[np.float32]],
        *,
        image_ids: NDArray[Any] | None = None,
        allowed: NDArray[Any] | None = None,
    ) -> Scaler:
        """Fit on training rows that arrive in blocks (n_k, V), each looked at once.

        A voxel that never varies gets scale 1, so it becomes 0 and not NaN.

        Args:
            image_ids: (n,) image of every row, in the order of the rows, with ``allowed``.
            allowed: ids of the images that may be fitted on, e.g. ``fold.seen``.

        Raises:
            LeakError: a row's image is not allowed; raised before any block is read.
            UserError: fewer than 2 rows, voxel counts that differ, or not one image id per row.
        """
        if (image_ids is None) != (allowed is None):
            raise UserError("scaling was given image_ids or allowed alone; give both, or neither.")
        if image_ids is not None and allowed is not None:
            check_allowed("the voxel scaler", np.asarray(image_ids), allowed)
        moments = _Moments()
        for block in blocks:
            if len(block):
                moments.add(block)
        if image_ids is not None and len(image_ids) != moments.n:
            raise UserError(f"scaling was given {moments.n} rows but {len(image_ids)} image ids; wanted one per row.")
        return cls._of(moments)

    @classmethod
    def _of(cls, moments: _Moments) -> Scaler:
        if moments.mean is None or moments.squares is None or moments.n < 2:
            raise UserError(f"scaling needs at least 2 training rows and got {moments.n}. Enlarge the training part.")
        scale = np.sqrt(moments.squares / moments.n)
        # Rows are float32: means over three and over two trials of a voxel that never varies may differ in their last
        # digit, which would be scaled up to the size of a signal that tells how often an image was shown.
        constant = scale <= 2 * np.finfo(np.float32).eps * np.abs(moments.mean)
        if constant.all():
            raise UserError(
                f"none of the {len(constant)} voxels varies over the {moments.n} rows given, so nothing can be "
                "decoded from them. Choose another subject.roi, or look at what was measured."
            )
        return cls(moments.mean.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32))

    def transform(self, rows: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return rows z-scored by the statistics of this scaler.

        Args:
            rows: (n, V) float32 of the same voxels.
            out: where to write them, which may be ``rows`` itself.

        Returns:
            (n, V) float32 without unit.

        Raises:
            UserError: another number of voxels.
        """
        self._check(rows)
        scaled = np.subtract(rows, self.mean, out=out)
        return np.divide(scaled, self.scale, out=scaled).astype(np.float32, copy=False)

    def restandardised(self, rows_NV: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows (N, V) float32 z-scored by their own statistics, in measured units: ``transform`` gives the z-scores.

        ``transform(restandardised(x)) == (x - x.mean(0)) / x.std(0)``, and 0 for a voxel that does not vary in ``x``.
        MindDiffuser and NeuralDiffuser v1 standardise the test voxels so (``StandardScaler().fit_transform`` on them).
        That is transductive: each prediction depends on the other test images. Only ``data.variant=released`` may
        use it (``data.test_scaling=own``). Raises UserError for fewer than 2 rows, which have no spread.
        """
        self._check(rows_NV)
        if len(rows_NV) < 2:
            raise UserError(
                f"data.test_scaling=own standardises test voxels by their own spread, which {len(rows_NV)} image(s) do "
                "not have. Predict at least 2 images, or set data.test_scaling=train."
            )
        own = Scaler.fit(rows_NV)
        return np.asarray(own.transform(rows_NV) * self.scale + self.mean, np.float32)

    def _check(self, rows: NDArray[Any]) -> None:
        if rows.shape[-1] != len(self.mean):
            raise UserError(
                f"rows have {rows.shape[-1]} voxels but the scaler was fitted on {len(self.mean)}. "
                "Use the same subject.roi."
            )
