"""Files that were changed meanwhile: told by whoever reads them, or made again where that is as well."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_commands import nd
from helpers_config import data_settings

from nd.config import Config, PathsConfig
from nd.data.piece_records import check_piece
from nd.data.prepared import Stimuli, Subject, stimuli_path, subject_path
from nd.data.splits import CLUSTERS, read_clusters, write_clusters
from nd.doctor.deep import compare
from nd.errors import UserError
from nd.generate.parts import Parts
from nd.mappers.training.fit import record_state, whole_state
from nd.prepare import prepare
from nd.terminal import exit_with, refused_by_system

IDS, IMAGES = [3, 1, 4], np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of two subjects; read only."""
    root = tmp_path_factory.mktemp("world")
    prepare(config_below(root))
    return root


def config_below(root: Path) -> Config:
    data = data_settings(subjects=["subj01", "subj02"], n_train=40, n_test=10, n_val=5, n_voxels=40, n_repeats=2)
    paths = {name: str(root / name) for name in ("data", "cache", "runs", "results")}
    return Config(data=data, paths=PathsConfig(root=str(root), **paths))


@pytest.fixture
def cfg(world: Path, tmp_path: Path) -> Config:
    shutil.copytree(world / "data", tmp_path / "data")
    return config_below(tmp_path)


def read_all(cfg: Config) -> None:
    subject, stimuli = Subject(subject_path(cfg)), Stimuli(stimuli_path(cfg))
    subject.voxels(np.arange(len(subject.image_id)))
    stimuli.images(stimuli.image_id)
    stimuli.captions(stimuli.image_id)


@pytest.mark.parametrize(
    ("file", "dataset", "said"),
    [
        ("subj01.h5", "voxels", "row 2 of voxels changed"),
        ("subj01.h5", "image_id", "image_id changed"),
        ("subj01.h5", "rois/V1", "rois/V1 changed"),
        ("stimuli.h5", "images", "row 2 of images changed"),
        ("stimuli.h5", "image_id", "image_id changed"),
        ("stimuli.h5", "captions", "captions changed"),
    ],
)
def test_a_row_exchanged_in_prepared_data(cfg: Config, file: str, dataset: str, said: str) -> None:
    read_all(cfg)
    path = subject_path(cfg).with_name(file)
    with h5py.File(path, "r+") as handle:
        values = handle[dataset][()]
        differing = next(k for k in range(3, len(values)) if np.any(values[k] != values[2]))
        values[[2, differing]] = values[[differing, 2]]
        handle[dataset][...] = values
    with pytest.raises(UserError, match=rf"{file}: {said} since the file was written\. Remove it and write it again"):
        read_all(cfg)
    assert len(compare(cfg).problems) == 1


def test_a_whole_file_exchanged_in_prepared_data(cfg: Config) -> None:
    path = subject_path(cfg)
    check_piece(path)
    shutil.copyfile(path.with_name("subj02.h5"), path)
    with pytest.raises(UserError, match=r"subj01\.h5 is not the file that `nd prepare` wrote"):
        check_piece(path)
    with pytest.raises(UserError, match=r"subj01\.h5 (is not the file that `nd prepare` wrote|has \d+ bytes instead)"):
        prepare(cfg)


def test_data_of_ones_own_need_no_record(cfg: Config) -> None:
    path = Path(cfg.paths.data) / CLUSTERS
    write_clusters(path, ["sea", "town"])
    check_piece(path)
    assert read_clusters(path) == ["sea", "town"]


def test_doctor_reads_everything_when_asked_to(cfg: Config, tmp_path: Path) -> None:
    found = compare(cfg)
    assert found.problems == []
    assert found.n_files == 4  # two subjects, stimuli, and what is recorded of them
    assert found.n_bytes > 0.9 * sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.h5"))
    assert next(iter(found.lines())).endswith("all are as written")


# ---- what is made again ----------------------------------------------------------------------------------------------


def spoilt_image(handle: h5py.File) -> None:
    handle["images"][0, 0, 0, 0] = 255 - handle["images"][0, 0, 0, 0]


def spoilt_id(handle: h5py.File) -> None:
    handle["image_id"][0] = 9


def lost_images(handle: h5py.File) -> None:
    del handle["images"]


@pytest.mark.parametrize("spoil", [spoilt_image, spoilt_id, lost_images])
def test_a_damaged_part_is_computed_again(
    tmp_path: Path, spoil: Callable[[h5py.File], None], caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts(tmp_path / "parts")
    first = parts.write(IDS[:1], IMAGES[:1])
    parts.write(IDS[1:], IMAGES[1:])
    with h5py.File(first, "r+") as handle:
        spoil(handle)
    again = Parts(tmp_path / "parts")
    assert again.finished() == {1, 4}
    assert "Its images are computed again" in caplog.text
    again.write(IDS[:1], IMAGES[:1])
    again.merge([1, 3, 4], tmp_path / "images.h5", {"seed": 1})
    with h5py.File(tmp_path / "images.h5") as handle:
        np.testing.assert_array_equal(handle["images"][:], IMAGES[[1, 0, 2]])


def test_a_damaged_state_of_training_is_not_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, temporary = tmp_path / "last.ckpt", tmp_path / "new"
    assert whole_state(path) is None
    for content in (b"first", b"second"):
        temporary.write_bytes(content)
        record_state(path, temporary)
        assert whole_state(path) == (path if path.exists() else None)  # killed here, the state before counts
        temporary.replace(path)
        assert whole_state(path) == path
    path.write_bytes(b"secone")
    assert whole_state(path) is None
    assert "last.ckpt is damaged; the training begins anew" in caplog.text


# ---- what the system refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), r"nd train: there is not enough memory \(MemoryError\)\. Close other programs"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (OSError(36, "File name too long", "a/b"), r"at a/b: file name too long\. Give a shorter one"),
        (OSError(28, "No space left on device", "a/b"), r"the system refused to go on at a/b: no space left"),
        (OSError(30, "Read-only file system"), "read-only file system. Give another place"),
    ],
)
def test_what_a_machine_lacks_is_said(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(SystemExit) as left:
        exit_with("train", fail)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert re.search(said, message), message
    assert "the same command again resumes" in message


def test_errors_of_our_own_are_not_hidden() -> None:
    assert refused_by_system(ValueError("x")) == refused_by_system(OSError("x")) == ""
    with pytest.raises(ZeroDivisionError):
        exit_with("train", lambda: 1 // 0)


def test_a_debug_preset_says_that_it_looks_elsewhere(tmp_path: Path) -> None:
    plain = nd("prepare", "data=own", "method=ridge_pixels", cwd=tmp_path)
    assert plain.code == 2
    assert "looks" not in plain.err + plain.out
    assert "debug=" not in plain.err
    done = nd("run", "data=own", "method=ridge_pixels", "debug=fast", "table=", cwd=tmp_path)
    assert done.code == 2
    assert "debug=fast reads and writes below debug-runs/ and sees nothing that was prepared without it" in done.err
