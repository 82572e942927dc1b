"""Noise ceilings against closed forms on simulated numbers, and against what a perfect model reaches on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.noise_ceiling import noise_ceiling, pattern_ceiling, repeat_ceiling

RNG = np.random.default_rng(5)
TRUE = np.array([0.0, 0.2, 0.5, 1.0, 2.0])  # ncsnr of the simulated voxels, whose noise has variance 4


def simulated(n: int, repeats: int, ratios: NDArray[Any] = TRUE) -> tuple[NDArray[Any], NDArray[Any]]:
    """Signal (N, V) and trials (N, R, V) of simulated voxels."""
    signal = 2 * ratios * RNG.normal(size=(n, len(ratios))) + 7
    return signal, signal[:, None] + 2 * RNG.normal(size=(n, repeats, len(ratios)))


def test_closed_form() -> None:
    np.testing.assert_allclose(noise_ceiling(TRUE, 3), TRUE**2 / (TRUE**2 + 1 / 3))
    assert noise_ceiling(np.array([np.inf]), 1)[0] == 1
    # NSD: (A/3 + B/2 + C/1) / (A + B + C) for A, B, C images with 3, 2 and 1 trials.
    trials = np.repeat([3, 2, 1], [5, 2, 1])
    share = (5 / 3 + 2 / 2 + 1) / 8
    np.testing.assert_allclose(noise_ceiling(TRUE, trials), TRUE**2 / (TRUE**2 + share))


def test_a_perfect_model_explains_just_that_much() -> None:
    signal, trials = simulated(20_000, 3)
    r = [np.corrcoef(signal[:, v], trials.mean(1)[:, v])[0, 1] for v in range(1, len(TRUE))]
    np.testing.assert_allclose(np.square(r), noise_ceiling(TRUE, 3)[1:], atol=0.02)


def test_patterns_reach_what_a_noise_free_prediction_reaches() -> None:
    ratios = np.exp(RNG.normal(-0.8, 0.5, size=400))
    signal, trials = simulated(300, 3, ratios)
    scale = 2 * np.sqrt(1 + ratios**2)
    signal, trials = (signal - 7) / scale, (trials - 7) / scale  # z-scored voxels
    reached = np.mean([np.corrcoef(s, m)[0, 1] for s, m in zip(signal, trials.mean(1), strict=True)])
    assert pattern_ceiling(ratios, 3) == pytest.approx(reached, abs=0.01)
    assert repeat_ceiling(trials) == pytest.approx(reached, abs=0.01)
    assert pattern_ceiling(ratios, np.full(300, 3)) == pytest.approx(pattern_ceiling(ratios, 3))


def test_patterns_of_noise_alone_and_without_noise() -> None:
    noise = RNG.normal(size=(200, 3, 50))
    assert repeat_ceiling(noise) < 0.15
    assert repeat_ceiling(np.repeat(noise[:, :1], 2, 1)) == pytest.approx(1)
    assert pattern_ceiling(np.zeros(4), 3) == 0
    assert repeat_ceiling(np.zeros((4, 2, 5))) == 0


def test_noise_that_voxels_share_lowers_one_ceiling_alone() -> None:
    _, trials = simulated(200, 3, np.full(100, 0.5))
    shared = trials + 3 * RNG.normal(size=(200, 3, 1)) * np.sign(np.arange(100) - 50)
    assert repeat_ceiling(shared) < repeat_ceiling(trials) - 0.1


def test_refusals() -> None:
    for bad in (-1.0, np.nan):
        with pytest.raises(UserError, match="ncsnr must be 0 or more"):
            noise_ceiling(np.array([0.5, bad]), 3)
    with pytest.raises(UserError, match="0 trials were given"):
        noise_ceiling(TRUE, 0)
    with pytest.raises(UserError, match="0 trials were given"):
        pattern_ceiling(TRUE, 0)
    with pytest.raises(UserError, match=r"repeats \(6, 1, 5\) were given"):
        repeat_ceiling(np.zeros((6, 1, 5)))
    with pytest.raises(UserError, match="1 betas are NaN"):
        repeat_ceiling(np.array([[[0, 1], [0, np.inf]]]))
