"""Pearson correlation of rows, and with it PixCorr and the feature distance.

A constant row has no correlation. It is given 0 ("explains nothing"), never NaN, which would count as a failure in one
metric and vanish from the mean of another; how many there were is reported beside the scores.

B batch (images), C H W image, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nd.errors import UserError


def same_shape(x: Tensor, y: Tensor, what: str) -> None:
    """Raise UserError unless both hold the same number of items of the same size."""
    if x.shape != y.shape:
        raise UserError(
            f"{what}: {tuple(x.shape)} against {tuple(y.shape)}. Both sides need the same images in the same order "
            "and one size; resize or select first."
        )


def all_finite(x: Tensor, what: str) -> None:
    """Raise UserError where a value is NaN or infinite."""
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{what}: {int((~torch.isfinite(x)).sum())} values are NaN or infinite; none can be scored.")


def constant_rows(rows_BD: Tensor) -> Tensor:
    """(B,) bool: rows whose every value is the same, for which no correlation is defined."""
    low, high = rows_BD.aminmax(dim=1)
    return low == high


def pearson(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """Return Pearson's correlation of matching rows.

    Args:
        x_BD, y_BD: numbers of any kind; computed in float64.

    Returns:
        (B,) float64 in [-1, 1]; 0 where a row is constant.

    Raises:
        UserError: other shapes, or values that are not finite.

    >>> found = pearson(torch.tensor([[1.0, 2, 3], [1, 1, 1]]), torch.tensor([[2.0, 4, 6], [1, 2, 3]]))
    >>> found.round(decimals=9).tolist()
    [1.0, 0.0]
    """
    same_shape(x_BD, y_BD, "correlation")
    all_finite(x_BD, "correlation")
    all_finite(y_BD, "correlation")
    x, y = x_BD.double(), y_BD.double()
    constant = constant_rows(x) | constant_rows(y)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    size = x.norm(dim=1) * y.norm(dim=1)
    r = (x * y).sum(1) / size.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(constant, 0.0, r).clamp(-1, 1)


def pixcorr(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return PixCorr: correlation over all pixels and channels of each pair of images; best 1.

    Args:
        x_BCHW, y_BCHW: images of one size, in any unit.

    Returns:
        (B,) float64 in [-1, 1].

    Raises:
        UserError: as ``pearson``.

    Source: Ozcelik & VanRullen 2023 (evaluate_reconstruction.py:78-83); the size is the protocol's (theirs: 425).
    """
    return pearson(x_BCHW.flatten(1), y_BCHW.flatten(1))


def feature_distance(pred_BD: Tensor, true_BD: Tensor) -> Tensor:
    """Return the correlation distance of matching rows, as ``scipy.spatial.distance.correlation``.

    Args:
        pred_BD, true_BD: features, further axes are flattened.

    Returns:
        (B,) float64 in [0, 2], best 0.

    Raises:
        UserError: as ``pearson``.

    Source: the EfficientNet-B1 and SwAV columns of Ozcelik & VanRullen 2023 and MindEye2 (final_evaluations.ipynb).
    """
    return 1 - pearson(pred_BD.flatten(1), true_BD.flatten(1))


def cosine(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """Return the cosine of matching rows, in float64.

    Args:
        x_BD, y_BD: features, further axes are flattened.

    Returns:
        (B,) in [-1, 1]; 0 where a row is all zeros.

    Raises:
        UserError: other shapes.
    """
    same_shape(x_BD, y_BD, "cosine")
    return torch.cosine_similarity(x_BD.double().flatten(1), y_BD.double().flatten(1), dim=1)
