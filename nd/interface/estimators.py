"""The linear mappers as scikit-learn estimators: fitted by the same solvers, with the same numbers.

Parameters are named as the fields of the mapper group (``nd train --help``). scikit-learn need not be installed: where
it is, its base classes serve, and ``clone``, ``Pipeline`` and ``GridSearchCV`` take the estimators.

Shapes: N images, V voxels, P numbers of a flattened target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nd.config.check import build
from nd.errors import UserError, report
from nd.mappers.base import FoldData, Group
from nd.mappers.components import build_mapper

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import validate_data
except ImportError:  # absent, or older than 1.6
    from nd.interface.plain_estimator import (
        BaseEstimator,
        MultiOutputMixin,
        NotFittedError,
        RegressorMixin,
        validate_data,
    )

# A mapper scores held-out images as it is fitted. An estimator is fitted on all it is given, and its user holds images
# out; these few, which are also fitted on, stand in where the mapper must have some, and decide nothing.
STAND_IN = slice(0, 2)
FEWEST = 2  # images, of which a voxel has a spread


class _Table:
    """Targets (N, P) in memory, read by rows and columns."""

    def __init__(self, values_NP: NDArray[np.float32]) -> None:
        self.values, self.size = values_NP, values_NP.shape[1]

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """(n, stop - start) float32."""
        return self.values[ids, start:stop]


class _VoxelRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What both estimators share. ``mapper_`` is the fitted mapper, ``n_features_in_`` the number of voxels."""

    def _settings(self) -> dict[str, Any]:
        """Fields of the mapper group."""
        raise NotImplementedError

    def fit(self, X: ArrayLike, Y: ArrayLike) -> Self:
        """Fit on all rows; voxels are z-scored by their statistics.

        Args:
            X: (N, V) responses as measured, N at least 2; computed in float32.
            Y: (N, P) targets, or (N,) one of them.

        Returns:
            This estimator.

        Raises:
            ValueError: shapes that do not fit each other, values that are not finite or numbers.
            UserError: (a ValueError) parameters out of range, or more memory than there is.
        """
        voxels, Y = validate_data(
            self, X, Y, dtype=np.float32, multi_output=True, y_numeric=True, ensure_min_samples=FEWEST
        )
        targets = np.asarray(Y, np.float32)
        self._flat = targets.ndim == 1
        targets_NP, ids = targets.reshape(len(voxels), -1), np.arange(len(voxels), dtype=np.int32)
        groups = (Group("all", 0, targets_NP.shape[1]),)
        data = FoldData(voxels, voxels[STAND_IN], ids, ids[STAND_IN], _Table(targets_NP), groups)
        values = {name: _plain(value) for name, value in self._settings().items()}
        config, checked = build({"mapper": values | {"refit": False}})
        if checked.all:
            raise UserError(report(checked.all))
        self.mapper_ = build_mapper(config.mapper, torch.device(self.device))
        self.mapper_.fit(data)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return predicted targets.

        Args:
            X: (N, V) responses as measured, of the voxels that were fitted.

        Returns:
            (N, P) float32 in the units of the targets, or (N,) where one was fitted.

        Raises:
            NotFittedError: (a ValueError) before ``fit``.
            ValueError: another number of voxels, values that are not finite or numbers.
        """
        if not hasattr(self, "mapper_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet. Call fit(X, Y) first.")
        predicted_NP = self.mapper_.predict(validate_data(self, X, dtype=np.float32, reset=False))
        return predicted_NP[:, 0] if self._flat else predicted_NP


class Ridge(_VoxelRegressor):
    """Ridge regression whose penalty is chosen over folds of the rows it is fitted on (``mapper=ridge``).

    Penalties add to the un-normalised Gram matrix of z-scored voxels, as in scikit-learn.

    >>> import numpy as np, nd
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.normal(size=(80, 3))
    >>> voxels = targets @ rng.normal(size=(3, 40)) + 2 * rng.normal(size=(80, 40))
    >>> ridge = nd.Ridge(alphas=[1.0, 30.0, 1000.0]).fit(voxels[:60], targets[:60])
    >>> ridge.mapper_.details()["groups"][0]["alpha"], round(ridge.score(voxels[60:], targets[60:]), 2)
    (30.0, 0.87)
    """

    def __init__(
        self,
        alphas: Sequence[float] = (1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5),
        folds: int = 5,
        alpha_per: str = "group",
        intercept: bool = True,
        voxel_power: float = 0.0,
        rescale: str = "none",
        device: str = "cpu",
    ) -> None:
        """Store parameters; nothing is checked before ``fit``.

        Args:
            alphas: penalties tried, positive; a single one is taken as it is.
            folds: over which it is chosen, every ``folds``-th row held out together; at least 2.
            alpha_per: ``group``, one penalty for all columns of Y, or ``column``.
            intercept: centre the targets.
            voxel_power: weigh each voxel by the share of its variance that Y explains, to this power.
            rescale: ``none``, or ``train``: give predictions the spread of the targets.
            device: ``cpu`` or ``cuda``.
        """
        self.alphas, self.folds, self.alpha_per, self.intercept = alphas, folds, alpha_per, intercept
        self.voxel_power, self.rescale, self.device = voxel_power, rescale, device

    def _settings(self) -> dict[str, Any]:
        if self.rescale == "test" or (self.folds < 2 and len(self.alphas) > 1):
            raise UserError(f"rescale={self.rescale!r}, folds={self.folds}: 'none' or 'train', and 2 or more folds.")
        names = ("alphas", "alpha_per", "intercept", "voxel_power", "rescale")
        chosen = {"folds": self.folds if len(self.alphas) > 1 else 0}
        return {"name": "ridge", **chosen, **{name: getattr(self, name) for name in names}}


class FastL2LiR(_VoxelRegressor):
    """Linear regression of each column of Y on the voxels that correlate most with it (``mapper=fastl2lir``).

    >>> import numpy as np, nd
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.normal(size=(80, 3))
    >>> voxels = targets @ rng.normal(size=(3, 40)) + 0.1 * rng.normal(size=(80, 40))
    >>> nd.FastL2LiR(n_feat=20).fit(voxels[:60], targets[:60]).predict(voxels[60:]).shape
    (20, 3)
    """

    def __init__(self, n_feat: int = 500, penalty: float = 0.15, device: str = "cpu") -> None:
        """Store parameters; nothing is checked before ``fit``.

        Args:
            n_feat: voxels chosen for each column; all where there are fewer.
            penalty: of the coefficients of z-scored voxels and targets, the bias included; positive.
            device: ``cpu`` or ``cuda``.
        """
        self.n_feat, self.penalty, self.device = n_feat, penalty, device

    def _settings(self) -> dict[str, Any]:
        if self.n_feat == 0 or self.penalty == 0:  # the mapper would choose on validation images; a search does it here
            raise UserError(f"n_feat={self.n_feat}, penalty={self.penalty}: 1 or more voxels, and a positive penalty.")
        return {"name": "fastl2lir", "n_feat": self.n_feat, "penalty": self.penalty}


def _plain(value: Any) -> Any:
    """A number or list of NumPy, as a search over parameters gives them, as Python's own."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
