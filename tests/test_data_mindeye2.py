"""The reader of the MindEye2 release, on trees written by hand: every trial, linked and copied, and every mistake."""

from __future__ import annotations

import io
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import data_settings
from numpy.typing import NDArray

from nd import prepare as verb
from nd.config import Config
from nd.data.mindeye2 import trials as trials_module
from nd.data.mindeye2.prepare import pieces_of
from nd.data.mindeye2.trials import read_trials
from nd.data.nsd import facts
from nd.data.nsd.tree import SIMULATED_MARK
from nd.data.pieces import make_pieces
from nd.data.prepared import Stimuli, Subject, data_folder, split_of, stimuli_path, subject_path
from nd.data.subject_file import SubjectTable, write_table
from nd.errors import UserError
from nd.files import sha256_file
from nd.hdf5 import allocate
from nd.scenes.as_mindeye2 import write_mindeye2

# Two sessions of six trials. Images 5 and 7 are the shared ones; by hand: session, presentation, shared or not.
IMAGE = np.array([10, 5, 20, 10, 7, 30, 5, 20, 7, 40, 10, 5])
SESSION = np.array([0] * 6 + [1] * 6)
REPEAT = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 2, 2])
SHARED = np.array([0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1], bool)
N_TRIALS, N_VOXELS, SIDE = 12, 5, 8
BETAS = np.random.default_rng(3).normal(size=(N_TRIALS, N_VOXELS)).astype(np.float32)
IMAGES = np.random.default_rng(4).integers(0, 256, (50, SIDE, SIDE, 3), dtype=np.uint8)
BETAS_FILE = "betas_all_subj01_fp32_renorm.hdf5"

Rows = NDArray[np.float64]


@pytest.fixture
def small_nsd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every subject of NSD had 2 sessions of 6 trials and 5 voxels: measured data of that size are whole."""
    for name in facts.PEOPLE:
        monkeypatch.setitem(facts.PEOPLE, name, facts.Person(2, N_VOXELS, (9, 9, 9), 6, 2))
    monkeypatch.setattr(trials_module, "TRIALS_PER_SESSION", 6)


def behaviour(image: Any = IMAGE, session: Any = SESSION, shared: Any = SHARED) -> Rows:
    """(T, 17) as the release has it: images from 0, sessions from 1."""
    rows = np.full((len(image), 17), -1.0)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 5], rows[:, 16] = image, 1, session + 1, np.arange(len(image)), shared
    return rows


def member(archive: tarfile.TarFile, name: str, values: Any, pickled: bool = False) -> None:
    data = io.BytesIO()
    np.save(data, values, allow_pickle=pickled)
    info = tarfile.TarInfo(name)
    info.size = data.tell()
    data.seek(0)
    archive.addfile(info, data)


def write_tar(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for n, row in enumerate(rows):
            for part, length in (("behav", 1), ("future_behav", 15), ("olds_behav", 3), ("past_behav", 15)):
                values = row[None] if part == "behav" else np.full((length, 17), 99.0)
                member(archive, f"sample{n:09d}.{part}.npy", values)


def write_tars(root: Path, rows: Rows, subject: str = "subj01", in_test: Any = None) -> None:
    in_test = rows[:, 16] == 1 if in_test is None else in_test
    write_tar(root / f"wds/{subject}/new_test/0.tar", rows[in_test][::-1])  # the order in a tar tells nothing
    for session in (0, 1):
        write_tar(root / f"wds/{subject}/train/{session}.tar", rows[~in_test & (rows[:, 2] == session + 1)])


def write_betas(root: Path, values: Any = BETAS, chunks: Any = None, key: str = "betas") -> None:
    with h5py.File(root / BETAS_FILE, "w") as handle:
        handle.create_dataset(key, data=values, chunks=chunks)


def write_masks(root: Path, length: int = N_VOXELS, subject: str = "subj01") -> None:
    with h5py.File(root / "brain_region_masks.hdf5", "w") as handle:
        handle[f"{subject}/nsd_general"] = np.ones(length, bool)
        handle[f"{subject}/V1"] = np.arange(length) < 2
        handle[f"{subject}/V4"] = np.arange(length) == 3


@pytest.fixture
def root(tmp_path: Path, small_nsd: None) -> Path:
    """A whole release of one subject."""
    root = tmp_path / "release"
    write_tars(root, behaviour())
    write_betas(root)
    write_masks(root)
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as handle:
        handle["images"] = (IMAGES / 255).astype(np.float16).transpose(0, 3, 1, 2)
    captions = np.array([[f"image {i}", f"{i}, again" if i % 2 else ""] for i in range(50)])
    np.save(root / "COCO_73k_annots_curated.npy", captions)
    return root


@pytest.fixture
def cfg(root: Path) -> Config:
    cfg = Config(
        data=data_settings(
            name="mindeye2", source="mindeye2", subjects=["subj01"], split="nsd1000", n_val=2, simulated=False,
            image_size=SIDE, root=str(root),
        )
    )  # fmt: skip
    cfg.paths.data = str(root.parent / "data")
    cfg.trainer.progress = False
    return cfg


def prepare(cfg: Config) -> list[str]:
    return make_pieces(data_folder(cfg), pieces_of(cfg), {})


def refused(cfg: Config, message: str) -> None:
    """Preparing fails with this message and leaves nothing of the subject behind."""
    with pytest.raises(UserError, match=message):
        prepare(cfg)
    assert not subject_path(cfg).exists()
    assert not list(data_folder(cfg).glob(".*.partial*"))


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunks", [None, (5, 2), (1, 5), (12, 1)])
def test_every_trial_comes_back(cfg: Config, root: Path, chunks: Any, in_place: bool) -> None:
    write_betas(root, chunks=chunks)
    cfg.data.in_place = in_place
    assert prepare(cfg) == ["stimuli.h5", "subj01.h5"]
    read = Subject(subject_path(cfg))
    for trial in range(N_TRIALS):  # one by one
        np.testing.assert_array_equal(read.voxels(np.array([trial]))[0], BETAS[trial])
    np.testing.assert_array_equal(read.voxels(np.array([7, 0, 7])), BETAS[[7, 0, 7]])
    np.testing.assert_array_equal(read.image_id, IMAGE)
    np.testing.assert_array_equal(read.session, SESSION)
    np.testing.assert_array_equal(read.repeat, REPEAT)
    np.testing.assert_array_equal(read.held_out, SHARED)
    np.testing.assert_array_equal(read.trial, np.arange(N_TRIALS))
    assert read.ncsnr is None
    assert (read.ijk == -1).all()
    with h5py.File(subject_path(cfg)) as handle:
        assert isinstance(handle.get("voxels", getlink=True), h5py.ExternalLink) == in_place
        assert ("linked_bytes" in handle.attrs) == in_place


def test_regions_have_the_names_of_nsd(cfg: Config) -> None:
    prepare(cfg)
    rois = Subject(subject_path(cfg)).rois
    assert {name: mask.tolist() for name, mask in rois.items()} == {
        "nsdgeneral": [True] * 5,
        "V1": [True, True, False, False, False],
        "hV4": [False, False, False, True, False],
    }
    assert Subject(subject_path(cfg), "hV4").n_voxels == 1


def test_the_file_says_where_it_is_from(cfg: Config, root: Path) -> None:
    prepare(cfg)
    attributes = Subject(subject_path(cfg)).attributes
    assert attributes["name"] == "subj01"
    assert attributes["source"] == "mindeye2"
    assert not attributes["simulated"]
    assert attributes["mask"] == "nsdgeneral"
    assert attributes["betas"] == "betas_fithrf, z-scored per session (release)"
    assert attributes["sessions_scanned"] == 2
    assert attributes["linked_bytes"] == (root / BETAS_FILE).stat().st_size
    assert attributes["linked_sha256"] == sha256_file(root / BETAS_FILE)
    assert attributes["n_constant_voxels"] == 0


@pytest.mark.parametrize("in_place", [True, False])
def test_the_images_are_those_that_were_seen(cfg: Config, in_place: bool) -> None:
    cfg.data.in_place = in_place
    prepare(cfg)
    stimuli = Stimuli(stimuli_path(cfg))
    assert stimuli.image_id.tolist() == [5, 7, 10, 20, 30, 40]
    assert stimuli.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(stimuli.images(np.array([40, 7])), IMAGES[[40, 7]])
    assert stimuli.captions(np.array([40, 7])) == [["image 40"], ["image 7", "7, again"]]


def test_the_split_follows_the_shared_images(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(cfg)
    fold = split_of(cfg).folds[0]
    assert fold.test.tolist() == [5, 7]
    assert fold.seen.tolist() == [10, 20, 30, 40]


def test_images_of_all_subjects(cfg: Config, root: Path) -> None:
    write_tars(root, behaviour(image=IMAGE + np.where(SHARED, 0, 1)), "subj02")
    cfg.data.subjects = ["subj01", "subj02"]
    prepare(cfg)
    assert Stimuli(stimuli_path(cfg)).image_id.tolist() == [5, 7, 10, 11, 20, 21, 30, 31, 40, 41]


def test_captions_of_ones_own(cfg: Config, tmp_path: Path) -> None:
    own = tmp_path / "own.npy"
    np.save(own, np.array([[f"mine {i}"] for i in range(50)]))
    cfg.data.captions = str(own)
    prepare(cfg)
    assert Stimuli(stimuli_path(cfg)).captions(np.array([30])) == [["mine 30"]]


# ---- doing it again --------------------------------------------------------------------------------------------------


def test_what_is_prepared_is_recognised(cfg: Config, root: Path) -> None:
    prepare(cfg)
    assert prepare(cfg) == []
    cfg.data.root = ""
    assert prepare(cfg) == []
    cfg.data.root, cfg.data.in_place = str(root / "no such folder"), False
    assert prepare(cfg) == []


def test_copies_asked_for_too_late_are_told_how(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(cfg)
    verb.prepare(cfg)
    assert "still read" not in capsys.readouterr().out
    cfg.data.in_place = False
    verb.prepare(cfg)
    assert "nothing to do. stimuli.h5, subj01.h5 still read the release where it lies" in capsys.readouterr().out


def test_other_files_are_another_preparation(cfg: Config, root: Path) -> None:
    prepare(cfg)
    cfg.data.simulated = True
    with pytest.raises(UserError, match="simulated: made with False, asked for True"):
        prepare(cfg)
    cfg.data.simulated = False
    write_betas(root, chunks=(1, 1))
    with pytest.raises(UserError, match=r"subj01.h5 was prepared with other settings \(betas_bytes: made with"):
        prepare(cfg)


def test_a_second_subject_joins(cfg: Config, root: Path) -> None:
    write_tars(root, behaviour(), "subj02")
    cfg.data.subjects = ["subj01", "subj02"]
    assert prepare(cfg) == ["stimuli.h5", "subj01.h5"]
    (root / BETAS_FILE).rename(root / BETAS_FILE.replace("subj01", "subj02"))
    cfg.subject.name = "subj02"
    assert prepare(cfg) == ["subj02.h5"]
    assert Subject(subject_path(cfg)).rois == {}  # the masks are subj01's alone


def test_betas_that_went_astray(cfg: Config, root: Path) -> None:
    prepare(cfg)
    content = (root / BETAS_FILE).read_bytes()
    (root / BETAS_FILE).write_bytes(content + b"more")
    with pytest.raises(UserError, match=rf"{BETAS_FILE} has {len(content) + 4} bytes, but had {len(content)} when"):
        Subject(subject_path(cfg))
    (root / BETAS_FILE).unlink()
    with pytest.raises(UserError, match=rf"reads voxels from .*{BETAS_FILE}, which is not there or cannot be read"):
        Subject(subject_path(cfg))


def test_the_betas_are_never_opened_for_writing(cfg: Config, root: Path) -> None:
    """HDF5 refuses a second way of opening a file, so an open reader shows whether anybody asks to write."""
    with h5py.File(root / BETAS_FILE, "r"), h5py.File(root / "coco_images_224_float16.hdf5", "r"):
        prepare(cfg)


def test_opening_a_large_subject_reads_none_of_its_betas(tmp_path: Path) -> None:
    n_trials, n_voxels = 30_000, 15_724  # 1.9 GB, of which the disk keeps nothing
    with h5py.File(tmp_path / "betas.hdf5", "w") as handle:
        allocate(handle, "betas", (n_trials, n_voxels), np.dtype(np.float32))
    zeros = np.zeros(n_trials, np.int32)
    table = SubjectTable(
        image_id=zeros, session=zeros, repeat=zeros, trial=zeros, held_out=zeros > 0,
        ijk=np.full((n_voxels, 3), -1, np.int16), rois={"V1": np.ones(n_voxels, bool)},
        attributes={"linked_bytes": (tmp_path / "betas.hdf5").stat().st_size},
    )  # fmt: skip
    with h5py.File(tmp_path / "subj01.h5", "w") as handle:
        write_table(handle, "subj01", table)
        handle["voxels"] = h5py.ExternalLink(str(tmp_path / "betas.hdf5"), "betas")
    tracemalloc.start()
    start = time.process_time()
    assert Subject(tmp_path / "subj01.h5").n_voxels == n_voxels
    assert time.process_time() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


# ---- tars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train/0.tar", "train/1.tar", "new_test/0.tar"])
def test_a_missing_tar_is_named(cfg: Config, root: Path, name: str) -> None:
    (root / "wds/subj01" / name).unlink()
    refused(cfg, rf"wds/subj01/{name} is missing \(1 of the 3 tars of subj01\)\. Fetch what is missing")


def test_the_old_test_set_does_not_serve(cfg: Config, root: Path) -> None:
    (root / "wds/subj01/new_test").rename(root / "wds/subj01/test")
    refused(cfg, r"new_test/0.tar is missing .*wds/subj01/test/0.tar is not read: it is the test set of fewer sessions")


def test_tars_of_another_subject_are_missing(cfg: Config) -> None:
    cfg.data.subjects = ["subj01", "subj07"]
    refused(cfg, r"wds/subj07/train/0.tar is missing \(3 of .*or leave subj07 out of data.subjects")


@pytest.mark.parametrize(("cut", "at"), [(700, "sample000000000.behav.npy"), (100, "its start"), (0, "its start")])
def test_a_tar_cut_short_is_named(cfg: Config, root: Path, cut: int, at: str) -> None:
    path = root / "wds/subj01/train/1.tar"
    path.write_bytes(path.read_bytes()[:cut])
    refused(cfg, rf"train/1.tar is damaged or cut short at .*{at} .*Fetch that tar again")


def test_a_tar_cut_between_members_shows_in_its_trials(cfg: Config, root: Path) -> None:
    path = root / "wds/subj01/train/0.tar"
    content = path.read_bytes()
    second = content.index(b"sample000000001.behav.npy")
    path.write_bytes(content[:second])
    refused(
        cfg,
        r"no tar holds trial 2 of subj01 \(3 of its 12 trials are missing\): is wds/subj01/train/0.tar or "
        r"wds/subj01/new_test/0.tar cut short\? Fetch both again",
    )


def test_a_file_that_is_no_tar(cfg: Config, root: Path) -> None:
    (root / "wds/subj01/train/0.tar").write_bytes(b"<html>not found</html>" * 100)
    refused(cfg, r"train/0.tar is damaged or cut short at its start")


@pytest.mark.parametrize(
    ("values", "pickled", "message"),
    [
        (np.zeros((1, 16)), False, r"it holds float64 \(1, 16\), wanted float64 \(1, 17\)"),
        (np.zeros(17), False, r"it holds float64 \(17,\)"),
        (np.array([["a"] * 17]), False, r"it holds <U1 \(1, 17\)"),
        (np.array([[None] * 17]), True, r"allow_pickle=False"),
    ],
)
def test_a_member_of_another_form_is_named(cfg: Config, root: Path, values: Any, pickled: bool, message: str) -> None:
    with tarfile.open(root / "wds/subj01/train/0.tar", "w") as archive:
        member(archive, "sample7.behav.npy", values, pickled)
    refused(cfg, rf"train/0.tar is damaged or cut short at member sample7.behav.npy \(.*{message}")


def test_a_tar_of_other_things(cfg: Config, root: Path) -> None:
    with tarfile.open(root / "wds/subj01/train/0.tar", "w") as archive:
        member(archive, "sample0.past_behav.npy", np.zeros((15, 17)))
    refused(cfg, r"train/0.tar holds no member \*.behav.npy but sample0.past_behav.npy")


def test_tars_that_may_not_be_read(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tarfile, "open", forbidden)
    refused(cfg, r"train/0.tar cannot be read: permission denied. Check the file's owner and mode")
    monkeypatch.setattr(trials_module, "simulated", lambda root: False)
    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(
        UserError, match=r"train/0.tar cannot be looked at: permission denied.*owner and mode of its folders"
    ):
        read_trials(Path(cfg.data.root), "subj01")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, r"the image \(column 0\) is nan; wanted a whole number from 0 to 72999"),
        (0, 73000, "the image .* is 73000;"),
        (0, 1.5, "the image .* is 1.5;"),
        (0, -1, "the image .* is -1;"),
        (2, 0, r"the session \(column 2\) is 0; wanted a whole number from 1 to 2"),
        (2, 3, "the session .* is 3;"),
        (5, 12, r"the trial \(column 5\) is 12; wanted a whole number from 0 to 11"),
        (5, -1, "the trial .* is -1;"),
    ],
)
def test_a_column_out_of_range_is_named(cfg: Config, root: Path, column: int, value: float, message: str) -> None:
    rows = behaviour()
    keep = rows[3].copy()
    rows[3, column] = value
    write_tars(root, rows)
    if column == 2:  # it fell out of the tars of its session
        write_tar(root / "wds/subj01/train/0.tar", rows[[0, 2, 3, 5]])
    refused(cfg, rf"train/0.tar, sample000000002.behav.npy: {message}")
    rows[3] = keep
    write_tars(root, rows)
    assert prepare(cfg)


def test_a_trial_that_is_there_twice(cfg: Config, root: Path) -> None:
    (root / "wds/subj01/train/1.tar").write_bytes((root / "wds/subj01/train/0.tar").read_bytes())
    refused(cfg, r"trial 0 of subj01 is in .*train/0.tar, sample000000000.behav.npy and in .*train/1.tar, sample")


def test_column_16_and_the_tars_must_agree(cfg: Config, root: Path) -> None:
    rows = behaviour()
    rows[2, 16] = 1
    write_tars(root, rows, in_test=SHARED)
    refused(cfg, r"train/0.tar, sample000000001.behav.npy: its image is shared .column 16., but new_test/0.tar alone")
    rows[2, 16], rows[11, 16] = 0, 0
    write_tars(root, rows, in_test=SHARED)
    refused(cfg, r"new_test/0.tar, sample000000000.behav.npy: its image is not shared .*\(1 trials are elsewhere\)")


def test_no_image_is_in_training_and_test(cfg: Config, root: Path) -> None:
    image = IMAGE.copy()
    image[9] = 7
    write_tars(root, behaviour(image=image))
    refused(cfg, r"image 7 is of the test, but .*train/1.tar, sample000000001.behav.npy shows it too \(1 such images\)")


def test_sessions_follow_each_other(cfg: Config, root: Path) -> None:
    session = SESSION.copy()
    session[[3, 7]] = 1, 0
    write_tars(root, behaviour(session=session))
    refused(cfg, r"trial 4 of subj01 is of session 1, but trial 3 of session 2")


# ---- betas -----------------------------------------------------------------------------------------------------------


def test_betas_are_missing_or_something_else(cfg: Config, root: Path) -> None:
    path = root / BETAS_FILE
    content = path.read_bytes()
    path.unlink()
    refused(cfg, rf"{BETAS_FILE} is missing. `nd doctor data=mindeye2` lists")
    path.write_bytes(content[:-50])
    refused(cfg, rf"{BETAS_FILE} is not a whole HDF5 file .*truncated")
    write_betas(root, key="voxels")
    refused(cfg, rf"{BETAS_FILE} holds no 'betas' but voxels")
    write_betas(root, np.zeros((12, 5, 2), np.float32))
    refused(cfg, r"betas is float32 \(12, 5, 2\); wanted floats \(trials, voxels\)")


def test_betas_that_may_not_be_read(cfg: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = h5py.File

    def forbidden(path: Any, *arguments: Any, **more: Any) -> Any:
        if Path(path).name == BETAS_FILE:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(h5py, "File", forbidden)
    refused(cfg, rf"{BETAS_FILE} cannot be read: permission denied. Check the file's owner and mode")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((12, 6), r"has 6 voxels, but nsdgeneral of subj01 has 5. Is it this subject's file"),
        ((11, 5), r"has betas of 11 trials, but the tars of subj01 hold 12"),
    ],
)
def test_betas_of_another_size(cfg: Config, root: Path, shape: tuple[int, int], message: str) -> None:
    write_betas(root, np.random.default_rng(0).normal(size=shape).astype(np.float32))
    refused(cfg, rf"{BETAS_FILE} {message}")


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunks", [None, (5, 2)])
def test_a_value_that_is_not_finite_is_named(cfg: Config, root: Path, chunks: Any, in_place: bool) -> None:
    values = BETAS.copy()
    values[8, 3] = np.nan
    write_betas(root, values, chunks)
    cfg.data.in_place = in_place
    refused(cfg, rf"{BETAS_FILE}: voxel 3 of trial 8 is nan; every beta must be finite")


@pytest.mark.parametrize("in_place", [True, False])
def test_voxels_that_never_vary(cfg: Config, root: Path, in_place: bool) -> None:
    values = BETAS.copy()
    values[:, 2], values[:, 4] = 0.25, 0
    write_betas(root, values)
    cfg.data.in_place = in_place
    refused(cfg, rf"{BETAS_FILE}: 2 voxels never vary \(first: voxel 2, .*Set data.constant_voxels=zero")
    cfg.data.constant_voxels = "zero"
    prepare(cfg)
    read = Subject(subject_path(cfg))
    assert read.attributes["n_constant_voxels"] == 2
    np.testing.assert_array_equal(read.voxels(np.arange(N_TRIALS)), values)


# ---- regions, images, settings -------------------------------------------------------------------------------------


def test_masks_of_another_length(cfg: Config, root: Path) -> None:
    write_masks(root, length=7)
    refused(cfg, r"brain_region_masks.hdf5: subj01/V1 has shape \(7,\), but the betas of subj01 have 5 voxels")


def test_masks_are_damaged_or_absent(cfg: Config, root: Path) -> None:
    path = root / "brain_region_masks.hdf5"
    path.write_bytes(path.read_bytes()[:-100])
    refused(cfg, r"brain_region_masks.hdf5 is not a whole HDF5 file")
    path.unlink()
    prepare(cfg)
    assert Subject(subject_path(cfg)).rois == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco_images_224_float16.hdf5", "the image file .*coco_images_224_float16.hdf5 is not there"),
        ("COCO_73k_annots_curated.npy", "COCO_73k_annots_curated.npy does not exist"),
    ],
)
def test_images_or_captions_are_missing(cfg: Config, root: Path, name: str, message: str) -> None:
    (root / name).unlink()
    refused(cfg, message)


def test_images_of_another_size(cfg: Config) -> None:
    cfg.data.image_size = 224
    refused(cfg, r"coco_images_224_float16.hdf5 holds images of 8 x 8 pixels, but data.image_size=224")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": ["subj02"]}, "unknown subject of data=mindeye2 'subj01'"),
        ({"root": ""}, r"data=mindeye2 needs data.root="),
        ({"root": "/no/such/folder"}, r"data.root=/no/such/folder is not a folder"),
    ],
)
def test_settings_that_cannot_be(cfg: Config, change: dict[str, Any], message: str) -> None:
    for name, value in change.items():
        setattr(cfg.data, name, value)
    with pytest.raises(UserError, match=message):
        prepare(cfg)


# ---- simulated trees -------------------------------------------------------------------------------------------------


def test_simulated_data_are_called_simulated(cfg: Config, root: Path) -> None:
    cfg.data.simulated = True
    refused(cfg, rf"data.simulated=true, but .*release has no {re.escape(SIMULATED_MARK)}")
    (root / SIMULATED_MARK).write_text("simulated", encoding="utf-8")
    cfg.data.simulated = False
    refused(cfg, r"was made from a simulated subject .*Set data.simulated=true")
    cfg.data.simulated = True
    prepare(cfg)
    assert Subject(subject_path(cfg)).attributes["simulated"]


def test_scenes_in_the_files_of_the_release(small_world: Config, tmp_path: Path) -> None:
    test_ids = split_of(small_world).test_ids
    people = [Subject(subject_path(small_world, name)) for name in ("subj01", "subj02")]
    images = Stimuli(stimuli_path(small_world))
    write_mindeye2(tmp_path / "tree", people, images, test_ids)
    cfg = Config(data=data_settings(name="again", source="mindeye2", split="nsd1000", n_val=10))
    cfg.data.subjects, cfg.data.root, cfg.paths.data = ["subj01", "subj02"], str(tmp_path / "tree"), str(tmp_path)
    cfg.subject.name, cfg.trainer.progress = "subj02", False
    prepare(cfg)
    read, given = Subject(subject_path(cfg)), people[1]
    rows = np.arange(len(given.image_id))
    np.testing.assert_array_equal(read.voxels(rows), given.voxels(rows))
    for column in ("image_id", "session", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(read, column), getattr(given, column))
    np.testing.assert_array_equal(read.held_out, np.isin(given.image_id, test_ids))
    np.testing.assert_array_equal(read.rois["hV4"], given.rois["hV4"])
    stimuli = Stimuli(stimuli_path(cfg))
    np.testing.assert_array_equal(stimuli.images(images.image_id), images.images(images.image_id))
    assert stimuli.captions(images.image_id) == images.captions(images.image_id)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(
            getattr(split_of(cfg).folds[0], part), getattr(split_of(small_world).folds[0], part)
        )


def test_a_simulated_tree_has_the_sessions_and_voxels_that_it_has(
    cfg: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(facts.PEOPLE, "subj01", facts.Person(40, 15724, (81, 104, 83), 10_000, 1000))
    refused(cfg, r"train/2.tar is missing \(38 of the 41 tars")
    (root / SIMULATED_MARK).write_text("simulated", encoding="utf-8")
    cfg.data.simulated = True
    prepare(cfg)
    read = Subject(subject_path(cfg))
    assert (read.n_sessions, read.n_voxels, read.attributes["sessions_scanned"]) == (2, N_VOXELS, 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "wds/subj01/train/0.tar").unlink(), r"train/0.tar is missing"),
        (lambda root: write_tars(root, behaviour()[:11]), r"betas of 12 trials, but the tars of subj01 hold 11"),
        (lambda root: write_tars(root, np.delete(behaviour(), 4, 0)), "no tar holds trial 4 of subj01 .1 of its 12"),
    ],
)
def test_a_simulated_tree_must_be_whole(cfg: Config, root: Path, spoil: Callable[[Path], None], message: str) -> None:
    (root / SIMULATED_MARK).write_text("simulated", encoding="utf-8")
    cfg.data.simulated = True
    spoil(root)
    refused(cfg, message)


# ---- moved, not quite whole, constant --------------------------------------------------------------------------------


def test_a_moved_release_is_read_from_its_new_place(cfg: Config, root: Path) -> None:
    prepare(cfg)
    root.rename(root.parent / "moved")
    with pytest.raises(UserError, match=r"reads images from .*release/coco_images.*data.root=<its new place>"):
        prepare(cfg)
    cfg.data.root = str(root.parent / "moved")
    assert prepare(cfg) == ["stimuli.h5", "subj01.h5"]
    np.testing.assert_array_equal(Subject(subject_path(cfg)).voxels(np.arange(N_TRIALS)), BETAS)
    np.testing.assert_array_equal(Stimuli(stimuli_path(cfg)).images(np.array([5, 10])), IMAGES[[5, 10]])
    assert prepare(cfg) == []


def test_other_betas_of_the_same_size_at_the_new_place(cfg: Config, root: Path) -> None:
    prepare(cfg)
    root.rename(root.parent / "moved")
    write_betas(root.parent / "moved", -BETAS)
    cfg.data.root = str(root.parent / "moved")
    with pytest.raises(UserError, match=r"moved/betas.* is not the file .*release/betas.* and the same content"):
        prepare(cfg)


def test_masks_that_are_not_quite_whole(cfg: Config, root: Path) -> None:
    with h5py.File(root / "brain_region_masks.hdf5", "r+") as handle:
        del handle["subj01/V1"]
        handle["subj01/V1"] = np.array([1.00003, 1.5e-5, 0, 1, 0])
    prepare(cfg)
    assert Subject(subject_path(cfg)).rois["V1"].tolist() == [True, False, False, True, False]
    with h5py.File(root / "brain_region_masks.hdf5", "r+") as handle:
        handle["subj01/V1"][2] = 0.4
    subject_path(cfg).unlink()
    with pytest.raises(UserError, match=r"brain_region_masks.hdf5: subj01/V1: entry 2 is 0.4"):
        prepare(cfg)


@pytest.mark.parametrize("rule", ["zero", "refuse"])
def test_voxels_that_are_all_constant(cfg: Config, root: Path, rule: str) -> None:
    write_betas(root, np.ones_like(BETAS))
    cfg.data.constant_voxels = rule
    refused(cfg, r"none of its 5 voxels ever varies")
