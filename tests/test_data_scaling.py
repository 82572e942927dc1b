"""Scaling: right numbers, whatever the blocks, and nothing of the test rows in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from test_data_prepared import subject_arrays

from nd.data import scaling
from nd.data.prepared import Subject, mean_betas, write_subject
from nd.data.scaling import Scaler
from nd.data.splits import Fold
from nd.errors import LeakError, UserError

FOLD = Fold(train=np.arange(0, 12), val=np.arange(12, 16), test=np.arange(16, 20))


@pytest.mark.parametrize("n_rows", [3, 50])
def test_scaler_equals_sklearn(n_rows: int) -> None:
    rng = np.random.default_rng(3)
    train, test = (rng.normal(5, 3, (n, 7)).astype(np.float32) for n in (n_rows, 4))
    scaler, oracle = Scaler.fit(train), StandardScaler().fit(train.astype(np.float64))
    np.testing.assert_allclose(scaler.transform(test), oracle.transform(test), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [[1], [1, 2, 3], [40], [7, 7, 90], list(range(1, 100))])
def test_blocks_equal_sklearn_on_all_rows(cuts: list[int]) -> None:
    rng = np.random.default_rng(4)
    spread = np.array([1e-4, 1, 30, 1000])
    rows = (rng.normal(0, 1, (100, 4)) * spread + [100, -3, 1e5, 0]).astype(np.float32)  # mean up to 1e6 spreads
    scaler = Scaler.fit_blocks(np.split(rows, cuts))
    oracle = StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(scaler.mean, oracle.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scaler.scale, oracle.scale_, rtol=1e-6)


def test_drifting_blocks_lose_no_digits() -> None:
    # Blocks whose means differ by far more than the spread within them: what a wrong merge gets wrong.
    rows = np.concatenate([np.random.default_rng(k).normal(10.0**k, 1e-2, (5 * k, 3)) for k in (1, 2, 4)])
    rows = rows.astype(np.float32)
    scaler = Scaler.fit_blocks([rows[:5], rows[5:15], rows[15:]])
    np.testing.assert_allclose(scaler.scale, rows.std(0, dtype=np.float64), rtol=1e-6)


def test_one_fit_in_small_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(6).normal(2, 3, (33, 5)).astype(np.float32)
    whole = Scaler.fit(rows)
    monkeypatch.setattr(scaling, "BLOCK_NUMBERS", 20)
    np.testing.assert_allclose(Scaler.fit(rows).scale, whole.scale, rtol=1e-6)
    # What is fitted in one block is what numpy says, to the last bit.
    np.testing.assert_array_equal(whole.scale, rows.std(0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1.7e-3])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_constant_voxel_becomes_zero(value: float, n_blocks: int) -> None:
    train = np.full((30_000, 2), value, np.float32)
    train[::2, 1] += 1
    scaler = Scaler.fit_blocks(np.array_split(train, n_blocks))
    np.testing.assert_array_equal(scaler.transform(train)[:, 0], 0)
    assert scaler.scale[0] == 1


def test_a_constant_voxel_becomes_zero_however_often_images_were_shown(tmp_path: Path) -> None:
    arrays = subject_arrays()
    image_id = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 3], np.int32)  # training images 0 to 2, test image 3
    arrays |= {name: np.arange(10, dtype=np.int32) for name in ("session", "repeat", "trial")} | {"image_id": image_id}
    arrays["voxels"] = np.random.default_rng(5).normal(size=(10, 5)).astype(np.float32)
    arrays["voxels"][:, 1] = 1000.1  # the float32 mean of three of them is another number
    write_subject(tmp_path / "subj01.h5", **arrays)
    train, test = (mean_betas(Subject(tmp_path / "subj01.h5"), np.array(ids)) for ids in ([0, 1, 2], [3]))
    assert len(np.unique(train[:, 1])) == 2, "else this tests nothing"
    scaler = Scaler.fit(train)
    assert scaler.scale[1] == 1
    np.testing.assert_allclose(scaler.transform(test)[:, 1], 0, atol=1e-3)


def test_voxels_that_are_all_constant_are_refused() -> None:
    with pytest.raises(UserError, match=r"none of the 3 voxels varies over the 5 rows given.*another subject.roi"):
        Scaler.fit(np.full((5, 3), 0.1, np.float32))


def test_transform_in_place_gives_the_same_and_only_then_changes_the_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    scaler, kept = Scaler.fit(rows), rows.copy()
    scaled = scaler.transform(rows)
    np.testing.assert_array_equal(rows, kept)
    assert scaler.transform(rows, out=rows) is rows
    np.testing.assert_array_equal(rows, scaled)
    np.testing.assert_array_equal(scaled, (kept - scaler.mean) / scaler.scale)


def test_other_voxel_count_and_too_few_rows() -> None:
    with pytest.raises(UserError, match="rows have 3 voxels but the scaler was fitted on 4"):
        Scaler.fit(np.eye(4, dtype=np.float32)).transform(np.zeros((2, 3), np.float32))
    for train in (np.ones((1, 4), np.float32), np.ones((0, 4), np.float32)):
        with pytest.raises(UserError, match=f"at least 2 training rows and got {len(train)}"):
            Scaler.fit(train)
    with pytest.raises(UserError, match="at least 2 training rows and got 0"):
        Scaler.fit_blocks([])
    with pytest.raises(UserError, match="have 4 and then 3 voxels"):
        Scaler.fit_blocks([np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)])


# ---- the guard -----------------------------------------------------------------------------------------------------


def test_fitting_on_images_that_are_not_for_training_is_refused_before_any_row_is_read() -> None:
    rows = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    fine = Scaler.fit_blocks([rows], image_ids=np.array([0, 0, 13, 5]), allowed=FOLD.seen)
    np.testing.assert_array_equal(fine.mean, Scaler.fit(rows).mean)
    with pytest.raises(LeakError, match=r"voxel scaler: 1 image.* must not see .first: image 17.* its 16 training"):
        Scaler.fit_blocks([rows], image_ids=np.array([0, 17, 13, 17]), allowed=FOLD.seen)

    def unread() -> None:
        raise AssertionError("a row was read")

    with pytest.raises(LeakError, match="image 17"):
        Scaler.fit_blocks((unread() for _ in range(1)), image_ids=np.array([17]), allowed=FOLD.seen)  # type: ignore[misc]


def test_the_guard_wants_one_image_id_per_row() -> None:
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(UserError, match="4 rows but 3 image ids"):
        Scaler.fit_blocks([rows], image_ids=np.array([0, 1, 2]), allowed=FOLD.seen)
    with pytest.raises(UserError, match="image_ids or allowed alone"):
        Scaler.fit_blocks([rows], image_ids=np.array([0, 1, 2, 3]))


# ---- by their own statistics ---------------------------------------------------------------------------------------


def test_restandardised_rows_have_their_own_statistics() -> None:
    rng = np.random.default_rng(2)
    train, test = rng.normal(3, 2, (60, 5)).astype(np.float32), rng.normal(-1, 5, (9, 5)).astype(np.float32)
    train[:, 3], test[:, 4] = 7.0, 0.1  # constant in training; constant in the test
    scaler = Scaler.fit(train)
    expected = StandardScaler().fit_transform(test.astype(np.float64))
    given = scaler.restandardised(test)
    assert given.dtype == np.float32
    np.testing.assert_allclose(scaler.transform(given), expected, atol=1e-5)
    np.testing.assert_array_equal(scaler.transform(given)[:, 4], 0)
    assert np.abs(scaler.transform(test) - expected).max() > 1  # or the rule would have changed nothing


def test_restandardising_wants_two_rows_of_the_same_voxels() -> None:
    scaler = Scaler.fit(np.eye(4, dtype=np.float32))
    with pytest.raises(UserError, match=r"test_scaling=own .* 1 image.s. do not have"):
        scaler.restandardised(np.ones((1, 4), np.float32))
    with pytest.raises(UserError, match="rows have 3 voxels but the scaler was fitted on 4"):
        scaler.restandardised(np.ones((2, 3), np.float32))
