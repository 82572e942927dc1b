"""The little of scikit-learn's base classes that the estimators use, for where scikit-learn is not installed."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


class NotFittedError(ValueError, AttributeError):
    """Predictions were asked of an estimator before it was fitted."""


class BaseEstimator:
    """Parameters are the arguments of ``__init__``, kept under their names."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep`` makes no difference."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set some parameters; an unknown one is a ValueError."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"Invalid parameter {name!r}. Valid parameters are: {list(self.get_params())}.")
            setattr(self, name, value)
        return self


class MultiOutputMixin:
    """Marks estimators of several targets."""


class RegressorMixin:
    """Adds ``score``."""

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the coefficient of determination of ``predict(X)``, averaged over the columns of y."""
        true = np.asarray(y, np.float64)
        left = np.square(true - self.predict(X)).sum(0)  # type: ignore[attr-defined]
        total = np.square(true - true.mean(0)).sum(0)
        flat = np.where(left == 0, 1.0, 0.0)  # the score of a column that does not vary
        return float(np.mean(np.where(total == 0, flat, 1 - left / np.where(total == 0, 1, total))))


def validate_data(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    dtype: Any,
    reset: bool = True,
    ensure_min_samples: int = 1,
    **_: Any,
) -> Any:
    """Return X (N, V), and y (N,) or (N, P) where given, as finite arrays; what they are not is a ValueError."""
    rows = _finite("X", np.asarray(X, dtype))
    if rows.ndim != 2 or len(rows) < ensure_min_samples:
        raise ValueError(f"X has shape {rows.shape}; (N, V) with at least {ensure_min_samples} rows was wanted.")
    if reset:
        estimator.n_features_in_ = rows.shape[1]
    if rows.shape[1] != estimator.n_features_in_:
        raise ValueError(f"X has {rows.shape[1]} columns, but it was fitted on {estimator.n_features_in_}.")
    if y is None:
        return rows
    targets = _finite("Y", np.asarray(y, dtype))
    if targets.ndim not in (1, 2) or len(targets) != len(rows):
        raise ValueError(f"Y has shape {targets.shape}; (N,) or (N, P) was wanted, with the {len(rows)} rows of X.")
    return rows, targets


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinite values.")
    return values
