"""Whole numbers are taken for what they are, whatever type they were saved in, and fractions are never cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_files import edited

from nd.data.prepared import Stimuli, Subject, write_stimuli, write_subject
from nd.data.whole_numbers import RESAVED, read_numbers, whole_numbers
from nd.errors import UserError


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, ">i4", np.float16, np.float32, np.float64])
def test_every_type_of_number(dtype: Any) -> None:
    found = whole_numbers(np.array([[0, 1], [1, 0]], dtype), "mask")
    assert found.dtype == np.int64
    assert found.tolist() == [[0, 1], [1, 0]]


def test_labels_saved_again_with_a_scale() -> None:
    """As int16 with the slope that nibabel chooses for values from -1 to 7."""
    labels = np.arange(-1, 8)
    slope, inter = 8 / 65535, 3.0
    stored = np.rint((labels - inter) / slope) * slope + inter
    assert (stored != labels).any()
    np.testing.assert_array_equal(whole_numbers(stored, "labels", lowest=-1, within=RESAVED), labels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1.5], r"^x: entry 1 is 1.5; wanted a whole number from 0 to 9. Do so.$"),
        ([0, 1.0011], "entry 1 is 1.0011"),
        ([0, np.nan], "entry 1 is nan"),
        ([np.inf, 0], "entry 0 is inf"),
        ([[0, 1], [-1, 0]], r"entry \(1, 0\) is -1"),
        ([1, 10], "entry 1 is 10"),
        (["a"], r"x is <U1 \(1,\); wanted whole numbers"),
        ([1j], "x is complex128"),
    ],
)
def test_what_is_no_whole_number_is_named(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        whole_numbers(np.array(values), "x", highest=9, within=RESAVED, advice="Do so.")


def test_ids_must_be_exact() -> None:
    with pytest.raises(UserError, match=r"entry 0 is 1.0001"):
        whole_numbers(np.array([1.0001]), "ids")


def test_single_precision_that_has_merged_neighbours() -> None:
    whole_numbers(np.array([2**22], np.float32), "ids")
    with pytest.raises(UserError, match="entry 0 is 16777216"):
        whole_numbers(np.array([2**24 + 1], np.float32), "ids")


@pytest.mark.parametrize(
    "text", ["3\n1\n2\n", "# saved by hand\n3\n1\n2", "\ufeffid\n3.0\n1.\n2.00\n", "3.0e+00\n1.000e+00\n2e0\n"]
)
def test_lists_as_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.txt").write_text(text, encoding="utf-8")
    assert read_numbers(tmp_path / "ids.txt").tolist() == [3, 1, 2]


def test_lists_saved_by_savetxt_and_as_floats(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "ids.txt", [5, 70_000], header="image")
    np.save(tmp_path / "ids.npy", np.array([5.0, 70_000.0]))
    for name in ("ids.txt", "ids.npy"):
        assert read_numbers(tmp_path / name).tolist() == [5, 70_000]


@pytest.mark.parametrize("name", ["ids.npy", "ids.txt"])
def test_ids_whose_fraction_counts_are_not_merged(tmp_path: Path, name: str) -> None:
    """Category and image in one number: cutting the fraction off would make one image of a whole category."""
    ids = [1518878.000001, 1518878.000002, 1518880.005958]
    np.save(tmp_path / "ids.npy", np.array(ids))
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"1518878.000001.* would merge images: .*np.unique\(ids, return_inverse=True\)"
    ) as e:
        read_numbers(tmp_path / name)
    assert "astype" not in str(e.value)


def write(path: Path, **changes: Any) -> Path:
    zeros = np.zeros(4, int)
    table = {
        "image_id": np.arange(4), "session": zeros, "repeat": zeros, "trial": np.arange(4),
        "rois": {"V1": np.array([True, False])}, "ijk": np.zeros((2, 3), np.int16), "attributes": {},
    }  # fmt: skip
    write_subject(path, voxels=np.eye(4, 2, dtype=np.float32), **(table | changes))
    return path


@pytest.mark.parametrize("column", ["image_id", "session", "repeat", "trial"])
def test_columns_of_a_prepared_file(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "anna.h5", **{column: np.arange(4.0)})
    assert getattr(Subject(path), column).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=rf"anna: {column}: entry 1 is 0.9"):
        write(tmp_path / "anna.h5", **{column: np.array([0, 0.9, 1, 2])})
    with edited(path) as handle:
        del handle[column]
        handle[column] = np.array([0, 1.5, 2, 3])
    with pytest.raises(UserError, match=rf"anna.h5: {column}: entry 1 is 1.5"):
        Subject(path)


def test_masks_of_a_prepared_file(tmp_path: Path) -> None:
    path = write(tmp_path / "anna.h5", rois={"V1": np.array([1.00003, 1.5e-5])}, held_out=np.array([0, 1, 0, 1.0]))
    assert Subject(path).rois["V1"].tolist() == [True, False]
    assert Subject(path).held_out.tolist() == [False, True, False, True]
    with pytest.raises(UserError, match=r"ROI V1: entry 0 is 0.4"):
        write(tmp_path / "anna.h5", rois={"V1": np.array([0.4, 0])})


def test_ids_and_labels_of_stimuli(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    arguments: dict[str, Any] = {"images": images, "captions": [["a"], ["b"]]}
    with pytest.raises(UserError, match=r"image_id: entry 0 is 3.5"):
        write_stimuli(tmp_path / "s.h5", image_id=np.array([3.5, 4]), **arguments)
    write_stimuli(tmp_path / "s.h5", image_id=np.array([3.0, 4.0]), labels=np.array([6.0, 9.0]), **arguments)
    assert Stimuli(tmp_path / "s.h5").labels(np.array([4, 3])).tolist() == [9, 6]
