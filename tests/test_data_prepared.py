"""The prepared files: round trip, lazy reading, the guard of the test images, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import data_settings
from helpers_files import edited

from nd.config import Config
from nd.data import rows as rows_module
from nd.data.prepared import Stimuli, Subject, mean_betas, subject_path, write_stimuli, write_subject
from nd.errors import LeakError, UserError

IMAGE_ID = np.array([4, 9, 4, 2, 9, 4], np.int32)


def subject_arrays(n_voxels: int = 5, seed: int = 0) -> dict[str, Any]:
    """Arguments of write_subject: 6 trials of the images 4 (three times), 9 (twice) and 2."""
    rng = np.random.default_rng(seed)
    return {
        "voxels": rng.normal(size=(6, n_voxels)).astype(np.float32),
        "image_id": IMAGE_ID,
        "session": np.array([0, 0, 0, 1, 1, 1]),
        "repeat": np.array([0, 0, 1, 0, 1, 2]),
        "trial": np.arange(6),
        "rois": {"V1": np.arange(n_voxels) % 2 == 0, "none": np.zeros(n_voxels, bool)},
        "ijk": rng.integers(0, 50, (n_voxels, 3)).astype(np.int16),
        "ncsnr": rng.random(n_voxels).astype(np.float32),
        "attributes": {"source": "test", "simulated": True},
    }


@pytest.fixture
def subject_file(tmp_path: Path) -> Path:
    path = tmp_path / "subj09.h5"
    write_subject(path, **subject_arrays())
    return path


def write_small_stimuli(path: Path, n: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    content = {
        "images": rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "captions": [[f"image {i} told {k}" for k in range(1 + i % 3)] for i in range(n)],
        "image_id": np.arange(n) * 10,
        "labels": np.arange(n).astype(np.int16),
    }
    write_stimuli(path, **content)
    return content


def test_subject_round_trip(subject_file: Path) -> None:
    arrays, read = subject_arrays(), Subject(subject_file)
    assert (read.name, read.n_voxels) == ("subj09", 5)
    for column in ("image_id", "session", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(read, column), arrays[column])
    np.testing.assert_array_equal(read.voxels(np.arange(6)), arrays["voxels"])
    np.testing.assert_array_equal(read.ijk, arrays["ijk"])
    np.testing.assert_array_equal(read.ncsnr, arrays["ncsnr"])
    assert read.attributes["simulated"] is True or read.attributes["simulated"] == 1
    assert read.voxels(np.arange(6)).dtype == np.float32


def test_rows_come_in_the_order_asked_for(subject_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 2 * 4 * 5)  # two rows a block, so several blocks are met
    rows = np.array([5, 0, 3, 3, 1])
    np.testing.assert_array_equal(Subject(subject_file).voxels(rows), subject_arrays()["voxels"][rows])


def test_roi_selects_its_voxels(subject_file: Path) -> None:
    read = Subject(subject_file, roi="V1")
    assert read.n_voxels == 3
    np.testing.assert_array_equal(read.voxels(np.array([2])), subject_arrays()["voxels"][[2]][:, [0, 2, 4]])
    np.testing.assert_array_equal(read.ncsnr, subject_arrays()["ncsnr"][[0, 2, 4]])


def test_mask_hash_tells_masks_and_subjects_apart(subject_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "subj08.h5"
    write_subject(other, **subject_arrays())
    hashes = {Subject(subject_file).mask_hash, Subject(subject_file, "V1").mask_hash, Subject(other).mask_hash}
    assert len(hashes) == 3
    assert Subject(subject_file, "V1").mask_hash == Subject(subject_file, "V1").mask_hash


def test_unknown_roi_offers_the_nearest(subject_file: Path) -> None:
    with pytest.raises(UserError, match=r"unknown ROI of subj09.h5 'v1'.*Did you mean 'V1'\?.*Allowed: V1, all, none"):
        Subject(subject_file, roi="v1")
    with pytest.raises(UserError, match=r"ROI .none. of subj09.h5 holds no voxel"):
        Subject(subject_file, roi="none")


def test_mean_betas_equals_a_plain_loop(subject_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 2 * 4 * 5)
    voxels, ids = subject_arrays()["voxels"], [9, 4, 9]
    wanted = np.array([np.mean([v for v, i in zip(voxels, IMAGE_ID, strict=True) if i == one], axis=0) for one in ids])
    np.testing.assert_allclose(mean_betas(Subject(subject_file), np.array(ids)), wanted, rtol=1e-6)


def test_mean_betas_of_an_image_never_shown(subject_file: Path) -> None:
    with pytest.raises(UserError, match=r"no trial of 1 of the 2 images asked for .first: image 7"):
        mean_betas(Subject(subject_file), np.array([4, 7]))


def test_reading_never_holds_all_betas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, n = tmp_path / "subj.h5", 4000
    zeros = np.zeros(n, np.int32)
    write_subject(
        path, voxels=np.ones((n, 500), np.float32), image_id=np.arange(n), session=zeros, repeat=zeros, trial=zeros,
        rois={}, ijk=np.zeros((500, 3), np.int16), attributes={},
    )  # fmt: skip
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 1 << 20)
    sizes = [values.nbytes for _, values in Subject(path).blocks(np.arange(n))]
    assert len(sizes) > 1
    assert max(sizes) <= rows_module.BLOCK_BYTES  # the whole file is 8 MB


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_not_finite_is_named(subject_file: Path, value: float) -> None:
    with edited(subject_file) as handle:
        handle["voxels"][3, 2] = value
    with pytest.raises(UserError, match=rf"subj09.h5: voxel 2 of trial 3 is {value}; every beta must be finite"):
        Subject(subject_file).voxels(np.arange(6))
    Subject(subject_file).voxels(np.array([0, 1, 2, 4, 5]))  # opening and other trials are not concerned


def test_writing_a_nan_leaves_no_file(tmp_path: Path) -> None:
    arrays = subject_arrays()
    arrays["voxels"][1, 4] = np.nan
    with pytest.raises(UserError, match="voxel 4 of trial 1 is nan"):
        write_subject(tmp_path / "x.h5", **arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_id", np.arange(5), r"image_id has shape \(5,\), but voxels \(6, 5\) asks for \(6,\)"),
        ("ijk", np.zeros((4, 3), np.int16), r"ijk has shape \(4, 3\)"),
        ("rois", {"V1": np.ones(4, bool)}, r"rois/V1 has shape \(4,\)"),
        ("rois", {"all": np.ones(5, bool)}, "cannot be named 'all'"),
        ("voxels", np.zeros((0, 5), np.float32), r"voxels has shape \(0, 5\)"),
    ],
)
def test_arrays_that_disagree_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_subject(tmp_path / "x.h5", **(subject_arrays() | {name: value}))


@pytest.mark.parametrize("opener", [Subject, Stimuli])
def test_truncated_missing_and_foreign_files(tmp_path: Path, opener: Any) -> None:
    path = tmp_path / "file.h5"
    with pytest.raises(UserError, match=r"file.h5 does not exist"):
        opener(path)
    with h5py.File(path, "w") as handle:
        handle["betas"] = np.zeros(100_000)
    with pytest.raises(UserError, match=r"file.h5 is not a prepared \w+ file: it lacks (voxels|images)"):
        opener(path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"file.h5 is not a whole HDF5 file .*truncated"):
        opener(path)


def test_columns_of_other_length(subject_file: Path) -> None:
    with edited(subject_file) as handle:
        del handle["session"]
        handle["session"] = np.zeros(4, np.int32)
    with pytest.raises(UserError, match=r"do not have one row per trial .*session \(4,\)"):
        Subject(subject_file)


def test_stimuli_round_trip(tmp_path: Path) -> None:
    content = write_small_stimuli(tmp_path / "stimuli.h5")
    read = Stimuli(tmp_path / "stimuli.h5")
    ids, rows = np.array([50, 0, 20]), [5, 0, 2]
    np.testing.assert_array_equal(read.images(ids), content["images"][rows])
    np.testing.assert_array_equal(read.labels(ids), rows)
    assert read.captions(ids) == [content["captions"][r] for r in rows]
    np.testing.assert_array_equal(read.image_id, content["image_id"])


def test_stimuli_hash_follows_the_content(tmp_path: Path) -> None:
    content = write_small_stimuli(tmp_path / "a.h5")
    write_stimuli(tmp_path / "b.h5", **content)
    changed = content["images"].copy()
    changed[3, 2, 1, 0] ^= 1
    write_stimuli(tmp_path / "c.h5", **(content | {"images": changed}))
    a, b, c = (Stimuli(tmp_path / f"{name}.h5").hash for name in "abc")
    assert a == b != c


def test_images_outside_the_allowed_ids_are_out_of_reach(tmp_path: Path) -> None:
    write_small_stimuli(tmp_path / "stimuli.h5")
    read = Stimuli(tmp_path / "stimuli.h5", allowed_ids=np.array([0, 10, 20]))
    assert len(read.images(np.array([20, 0]))) == 2
    for method in (read.images, read.captions, read.labels):
        with pytest.raises(LeakError, match=r"1 image.* must not see .first: image 30.* its 3 training and validation"):
            method(np.array([0, 30]))


def test_absent_image_and_absent_labels(tmp_path: Path) -> None:
    content = write_small_stimuli(tmp_path / "a.h5")
    write_stimuli(tmp_path / "b.h5", **(content | {"labels": None}))
    with pytest.raises(UserError, match="holds no image 7"):
        Stimuli(tmp_path / "a.h5").images(np.array([7]))
    with pytest.raises(UserError, match=r"holds no labels.*protocol.label_identification=false"):
        Stimuli(tmp_path / "b.h5").labels(np.array([0]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((6, 8, 8, 3)), "images are float64"),
        ("captions", [["one"]] * 5, "6 images but 5 captions"),
        ("captions", [["one"]] * 5 + [[]], "image 50 has no caption"),
        ("image_id", np.zeros(6, int), "the same image twice"),
    ],
)
def test_stimuli_that_make_no_sense_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    content = write_small_stimuli(tmp_path / "a.h5")
    with pytest.raises(UserError, match=message):
        write_stimuli(tmp_path / "b.h5", **(content | {name: value}))
    assert not (tmp_path / "b.h5").exists()


def test_a_subject_of_another_data_set_is_refused() -> None:
    cfg = Config(data=data_settings())
    cfg.subject.name = "subj09"
    with pytest.raises(UserError, match=r"unknown subject of data=scenes 'subj09'.*Did you mean 'subj0"):
        subject_path(cfg)
