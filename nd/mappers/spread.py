"""How much ridge regression shrinks its predictions, measured on training images alone.

Fitted values would look too spread out, and test predictions must not be looked at (re-standardising those, as
published codes do, needs the whole test set). Leave-one-out predictions of the training images serve instead; the hat
matrix gives them in closed form: y_i - (y_i - fit_i) / (1 - h_i).

Shapes: N training images, R components, K target columns, A penalties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nd.mappers.spectrum import Spectrum

LEAST_SHARE = 1e-6  # an image that alone decides its fitted value has no leave-one-out prediction


def left_out_share(spectrum: Spectrum, alphas_A1: Tensor, intercept: bool = True) -> Tensor:
    """1 - h, (A, N) float32: the share of an image's residual without it that is left with it."""
    return (1 - spectrum.leverage(alphas_A1, intercept)).clamp(min=LEAST_SHARE).float()


def spread_ratio(spectrum: Spectrum, left_out_NK: Tensor, targets_NK: Tensor, solved_RK: Tensor) -> Tensor:
    """What predictions must be multiplied by to vary as much as the training targets do, per column (K,).

    Args:
        left_out_NK: 1 - h of each image under the column's penalty; (N, 1) where all columns have the same.
        targets_NK: centred.
        solved_RK: unscaled coefficients of the components. Columns that do not vary keep ratio 1.
    """
    fitted_NK = spectrum.left @ (spectrum.values.float()[:, None] * solved_RK)
    held_out_NK = targets_NK - (targets_NK - fitted_NK) / left_out_NK
    wanted_K, found_K = targets_NK.std(0, correction=0), held_out_NK.std(0, correction=0)
    varying_K = (wanted_K > 1e-6 * targets_NK.abs().max()) & (found_K > 1e-6 * wanted_K)
    return torch.where(varying_K, wanted_K / found_K.clamp(min=1e-30), torch.ones_like(wanted_K))
