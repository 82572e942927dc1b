"""Effective dimension: against eigenvalues of numpy, closed forms, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest

from nd.errors import UserError
from nd.metrics import diversity as module
from nd.metrics.diversity import diversity, effective_dimension

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (12, 12), (9, 4, 5, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_the_participation_ratio_of_the_eigenvalues(shape: tuple[int, ...], dtype: type) -> None:
    rows = (RNG.normal(size=shape) * np.geomspace(1, 30, shape[-1]) + 5).astype(dtype)
    values = np.linalg.eigvalsh(np.cov(rows.reshape(shape[0], -1).astype(np.float64), rowvar=False))
    assert effective_dimension(rows) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)


def test_closed_forms() -> None:
    axes = np.concatenate([np.eye(5), -np.eye(5)])  # five directions alike
    assert effective_dimension(axes) == pytest.approx(5)
    assert effective_dimension(axes * [1, 1, 1, 1, 0]) == pytest.approx(4)
    # Variances 4 and 1: (4 + 1)^2 / (16 + 1).
    assert effective_dimension(np.array([[2, 0], [-2, 0], [0, 1], [0, -1.0]])) == pytest.approx(25 / 17)
    assert effective_dimension(np.outer(np.arange(6.0), np.ones(50))) == pytest.approx(1)
    # A simplex fills the most that N rows can: N - 1.
    assert effective_dimension(np.eye(8)) == pytest.approx(7)


def test_scale_shift_order_and_rotation_do_not_matter() -> None:
    rows = RNG.normal(size=(20, 6)) * [1, 2, 3, 4, 5, 6]
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    wanted = effective_dimension(rows)
    for other in (rows * -3, rows + 100, RNG.permutation(rows), rows @ rotation):
        assert effective_dimension(other) == pytest.approx(wanted)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RNG.normal(size=(8, 50)).astype(np.float32)
    whole = effective_dimension(rows)
    monkeypatch.setattr(module, "COLUMNS_AT_ONCE", 7)
    assert effective_dimension(rows) == pytest.approx(whole, rel=1e-12)


def test_equal_rows_have_no_dimension() -> None:
    assert effective_dimension(np.full((5, 3), 0.1, np.float32)) == 0
    assert effective_dimension(np.full((5, 300), 1e6 + 0.1)) == 0


def test_a_decoder_that_picks_among_few_is_narrower_than_its_targets() -> None:
    true = RNG.normal(size=(60, 40))
    picked = diversity(true[RNG.integers(3, size=60)], true)
    assert picked.predicted <= 2.01  # three points lie in a plane
    assert picked.true > 15
    assert picked.ratio == picked.predicted / picked.true
    assert picked.n == 60
    assert diversity(true, true).ratio == 1
    assert np.isnan(diversity(np.zeros((3, 2)), np.zeros((3, 2))).ratio)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"predictions \(3, 2\) against targets \(4, 2\); one shape is wanted"):
        diversity(np.ones((3, 2)), np.ones((4, 2)))
    for shape in [(1, 5), (4,), (4, 0), (0, 3)]:
        with pytest.raises(UserError, match=r"at least 2 rows of numbers are wanted"):
            effective_dimension(np.ones(shape))
    with pytest.raises(UserError, match="rows hold NaN or infinite numbers"):
        effective_dimension(np.array([[1.0, np.nan], [0, 1]]))
