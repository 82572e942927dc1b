"""Squared errors of held-out images under every penalty, column by column, against double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from helpers_linear import noisy_brain, one_fold, z_scored
from numpy.typing import NDArray

from nd.mappers.alpha_selection import select_for_columns
from nd.mappers.arrays import Scratch
from nd.mappers.crossvalidation import CrossValidation, Held, Images, cross_validation

FOLDS = 4
# The squared singular values of the voxels lie between 1 and 1,100. Penalties close together among them, over many
# decades, below all of them and above all of them.
GRIDS = {
    "narrow": np.geomspace(3, 1e3, 10),
    "wide": np.logspace(-2, 7, 10),
    "below": np.logspace(-5, -3, 4),
    "above": np.logspace(8, 14, 4),
}


def loop(voxels: Any, targets: Any, alpha: float) -> NDArray[np.float64]:
    """Squared errors (columns,) of all images held out in turn, by the normal equations."""
    errors = np.zeros(targets.shape[1])
    for k in range(FOLDS):
        held = np.arange(len(voxels)) % FOLDS == k
        x, z = (z_scored(voxels[~held], voxels[part]) for part in (~held, held))
        mean = targets[~held].mean(0, dtype=float)
        solved = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (targets[~held] - mean))
        errors += ((z @ solved + mean - targets[held]) ** 2).sum(0)
    return errors


def made(voxels: Any, targets: Any, alphas: Any) -> CrossValidation:
    config = mapper_settings(alphas=[float(alpha) for alpha in alphas], folds=FOLDS)
    images = Images(np.arange(len(voxels), dtype=np.int32), voxels.copy())
    return cross_validation(config, one_fold(voxels, targets, len(voxels)), images, torch.device("cpu"), Scratch())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("n", "n_voxels"), [(120, 160), (120, 12), (120, 70)])
def test_errors_and_choices_of_columns_equal_a_loop(n: int, n_voxels: int, grid: str) -> None:
    voxels, targets = noisy_brain(n, n_voxels, 30)
    targets += np.random.default_rng(1).normal(size=targets.shape) * np.geomspace(0.01, 10, 30)
    data, held_out = one_fold(voxels, targets, n), made(voxels, targets, GRIDS[grid])
    expected = np.array([loop(voxels, targets, alpha) for alpha in GRIDS[grid]])
    (held,) = held_out.blocks(data.groups[0])
    np.testing.assert_allclose(held.squared_error().numpy(), expected, rtol=1e-5)
    chosen = select_for_columns(held_out, data.groups[0])
    np.testing.assert_allclose(chosen.errors.numpy(), expected.sum(1), rtol=1e-5)
    least = expected.min(0)  # far outside the svd penalties are alike to more digits than single precision has
    np.testing.assert_allclose(np.take_along_axis(expected, chosen.best.numpy()[None], 0)[0], least, rtol=2e-6)
    if grid in ("narrow", "wide"):
        np.testing.assert_array_equal(chosen.best.numpy(), expected.argmin(0))
        assert len(set(expected.argmin(0))) > 2


def test_errors_far_smaller_than_the_targets_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    true = [rng.normal(100, 10, size=(n, 7)).astype(np.float32) for n in (400, 300)]
    predicted = [(t + rng.normal(0, 1e-3, size=(3, *t.shape))).astype(np.float32) for t in true]
    held = Held([torch.from_numpy(p) for p in predicted], [torch.from_numpy(t) for t in true], [1.0, 1.0])
    expected = sum(((p.astype(float) - t) ** 2).sum(1) for p, t in zip(predicted, true, strict=True))
    np.testing.assert_allclose(held.squared_error().numpy(), expected, rtol=5e-7)
