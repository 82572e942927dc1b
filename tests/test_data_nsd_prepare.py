"""NSD's reader on a small tree of a simulated subject: the same trials back, resumed after a kill, and bad trees."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from helpers_config import data_settings
from scipy.io import loadmat, savemat

import nd.data.nsd.prepare as prepare_module
import nd.scenes.world as world
from nd.config import Config, PathsConfig
from nd.data.nsd import tree
from nd.data.nsd.betas import read_session, scale_session
from nd.data.nsd.volumes import Mask, read_labels, read_mask, read_rois
from nd.data.pieces import make_pieces
from nd.data.prepared import Stimuli, Subject, open_subject, same_across, split_of, stimuli_path, subject_path
from nd.data.splits import get_split
from nd.errors import LeakError, UserError
from nd.prepare import prepare
from nd.runs.inputs import changed_files, describe
from nd.scenes.as_nsd import write_nsd

BETAS = "betas_fithrf_GLMdenoise_RR"
SCENES = data_settings(subjects=["subj01"], n_train=24, n_val=5, n_test=6, n_repeats=4, n_voxels=120)
N_SESSIONS = 4
PRECISION = 1e-3  # of z-scored voxels: int16 holds percent signal change in steps of 1/300


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A Scenes folder whose one subject has 120 trials in 4 sessions."""
    cfg = Config(data=SCENES, paths=PathsConfig(data=str(tmp_path_factory.mktemp("scenes"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "TRIALS_PER_SESSION", 30)
        prepare(cfg)
    return cfg


# Names under which a reader finds the areas of Scenes: labels of a volume merged (V1v + V1d) or plain, or, for floc
# volumes, all labels of the volume together.
ROI_IN_NSD = {
    "V1": "V1",
    "V2": "V2",
    "V3": "V3",
    "hV4": "hV4",
    "ventral": "ventral",
    "lateral": "lateral",
    "parietal": "parietal",
    "face_like": "floc-faces",
    "place_like": "floc-places",
    "nsdgeneral": "nsdgeneral",
}


def write_tree(scenes: Config, folder: Path, **options: Any) -> Path:
    test_ids = get_split(scenes.data).test_ids
    write_nsd(folder, Subject(subject_path(scenes)), Stimuli(stimuli_path(scenes)), test_ids, **options)
    keep_images_of_subj01(folder / tree.STIM_INFO)
    return folder


def keep_images_of_subj01(path: Path) -> None:
    """Leave out of the list of all images those that are not shown here: it is read for every test."""
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    names = head.split(",")
    column = names.index("subject1") - len(names)  # from the right: a column further left holds commas
    kept = [row for row in rows if row.split(",")[column] == "1"]
    assert 0 < len(kept) < len(rows)
    path.write_text("\n".join([head, *kept, ""]), encoding="utf-8")


@pytest.fixture(scope="module")
def made(scenes: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree; read only."""
    return write_tree(scenes, tmp_path_factory.mktemp("nsd") / "tree")


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A tree that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "tree"))


def nsd(root: Path | str, folder: Path, **more: Any) -> Config:
    settings = {
        "name": "nsd", "source": "nsd", "split": "nsd1000", "subjects": ["subj01"], "n_val": 5, "image_size": 64,
        "root": str(root), **more,
    }  # fmt: skip
    return Config(data=data_settings(**settings), paths=PathsConfig(data=str(folder)))


def final_files(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def session_file(root: Path, session: int, form: str = "nii.gz") -> Path:
    return root / tree.betas_folder("subj01", BETAS) / f"betas_session{session:02d}.{form}"


@pytest.mark.parametrize("forms", [("nii.gz",), ("hdf5",), ("hdf5", "nii.gz")], ids="+".join)
def test_a_subject_comes_back_trial_by_trial(scenes: Config, tmp_path: Path, forms: tuple[str, ...]) -> None:
    cfg = nsd(write_tree(scenes, tmp_path / "tree", forms=forms), tmp_path / "data")
    prepare(cfg)
    original, found = Subject(subject_path(scenes)), open_subject(cfg)
    for column in ("image_id", "session", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(found, column), getattr(original, column), err_msg=column)
    rows = np.arange(len(original.image_id))
    np.testing.assert_allclose(found.voxels(rows), original.voxels(rows), atol=PRECISION, rtol=0)
    assert {ROI_IN_NSD[name] for name in original.rois} <= set(found.rois)
    for name, mask in original.rois.items():
        np.testing.assert_array_equal(found.rois[ROI_IN_NSD[name]], mask, err_msg=name)
    assert len(np.unique(found.ijk - original.ijk, axis=0)) == 1, "voxels lie where they lay, but for a margin"
    np.testing.assert_allclose(found.ncsnr, original.ncsnr, rtol=1e-6)


def test_splits_and_images_are_the_same(scenes: Config, made: Path, tmp_path: Path) -> None:
    cfg = nsd(made, tmp_path)
    prepare(cfg)
    (mine,), (theirs,) = split_of(cfg).folds, get_split(scenes.data).folds
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part), err_msg=part)
    a, b = Stimuli(stimuli_path(cfg)), Stimuli(stimuli_path(scenes))
    np.testing.assert_array_equal(a.image_id, b.image_id)
    np.testing.assert_array_equal(a.images(a.image_id), b.images(b.image_id))
    assert a.captions(a.image_id) == b.captions(b.image_id)


def raw_betas(root: Path, found: Subject) -> np.ndarray:
    """(T, V) percent signal change, read from the NIfTI files in plain steps."""
    sessions = [nibabel.load(session_file(root, k + 1)).get_fdata() for k in range(N_SESSIONS)]
    i, j, k = found.ijk.T
    return np.concatenate([values[i, j, k].T / 300 for values in sessions])


def test_raw_scaling_is_percent_signal_change(made: Path, tmp_path: Path) -> None:
    cfg = nsd(made, tmp_path, scaling="raw")
    prepare(cfg)
    found = open_subject(cfg)
    np.testing.assert_allclose(found.voxels(np.arange(120)), raw_betas(made, found), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", ["session", "session_train"])
def test_scaling_rules_equal_the_plain_formula(made: Path, tmp_path: Path, rule: str) -> None:
    cfg = nsd(made, tmp_path, scaling=rule, variant="released")
    prepare(cfg)
    found = open_subject(cfg)
    raw = raw_betas(made, found)
    for session in range(N_SESSIONS):
        rows = np.flatnonzero(found.session == session)
        fit = rows if rule == "session" else rows[~found.held_out[rows]]
        wanted = (raw[rows] - raw[fit].mean(0)) / raw[fit].std(0)
        np.testing.assert_allclose(found.voxels(rows), wanted, atol=1e-5)
    assert bool(found.attributes["transductive"]) == (rule == "session")
    manifest = json.loads((subject_path(cfg).parent / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"]["subj01.h5"]["transductive"] == (rule == "session")


def test_changed_test_trials_change_no_other_voxel(made: Path, root: Path, tmp_path: Path) -> None:
    """The betas of all trials that show a test image are replaced: every other row stays as it was."""
    first = nsd(made, tmp_path / "a")
    prepare(first)
    subject = open_subject(first)
    for k in range(N_SESSIONS):
        image = nibabel.load(session_file(root, k + 1))
        values = np.asanyarray(image.dataobj).copy()
        held = subject.held_out[subject.session == k]
        values[..., held] = np.where(values[..., held] != 0, 7, 0)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), session_file(root, k + 1))
    second = nsd(root, tmp_path / "b")
    prepare(second)
    seen = np.flatnonzero(~subject.held_out)
    np.testing.assert_array_equal(open_subject(second).voxels(seen), subject.voxels(seen))
    tests = np.flatnonzero(subject.held_out)
    assert not np.allclose(open_subject(second).voxels(tests), subject.voxels(tests))


def test_the_first_sessions_alone(made: Path, tmp_path: Path) -> None:
    cfg = nsd(made, tmp_path, sessions=2, split="nsd_partial")
    prepare(cfg)
    assert open_subject(cfg).n_sessions == 2
    with pytest.raises(UserError, match=r"uses all 4 sessions of subj01, but .* holds 2"):
        split_of(nsd(made, tmp_path, sessions=2))


def test_another_mask(scenes: Config, made: Path, tmp_path: Path) -> None:
    cfg = nsd(made, tmp_path, mask="streams")
    prepare(cfg)
    original, found = Subject(subject_path(scenes)), open_subject(cfg)
    inside = original.rois["V1"] | original.rois["V2"] | original.rois["V3"] | original.rois["hV4"]
    inside |= original.rois["ventral"] | original.rois["lateral"] | original.rois["parietal"]
    assert found.n_voxels == inside.sum()
    np.testing.assert_allclose(found.voxels(np.arange(9)), original.voxels(np.arange(9))[:, inside], atol=PRECISION)


def test_a_second_call_does_nothing_even_without_the_tree(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = nsd(root, tmp_path / "data", in_place=False)
    prepare(cfg)
    shutil.rmtree(root)
    for given in (str(root), ""):
        prepare(replace(cfg, data=replace(cfg.data, root=given)))
        assert "already prepared" in capsys.readouterr().out
    assert len(Stimuli(stimuli_path(cfg)).images(np.arange(30))) == 30


def test_other_settings_are_refused(made: Path, tmp_path: Path) -> None:
    prepare(nsd(made, tmp_path))
    with pytest.raises(UserError, match=r"subj01.h5 was prepared with other settings \(scaling: made with session_tr"):
        prepare(nsd(made, tmp_path, scaling="raw"))


KILLED = """
import os, signal, sys
import nd.data.nsd.prepare as module
from nd.config.application import compose
from nd.prepare import prepare
read, calls = module.read_session, []
def dying(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments)
module.read_session = dying
prepare(compose(sys.argv[1:]))
"""


def test_killed_on_the_way_and_resumed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cfg = nsd(made, tmp_path / "whole"), nsd(made, tmp_path / "killed")
    prepare(whole)
    overrides = [
        "data=nsd", f"data.root={made}", "data.subjects=[subj01]", "data.image_size=64", "data.n_val=5",
        "data.simulated=true", "protocol=scenes", f"paths.data={tmp_path / 'killed'}",
    ]  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", KILLED, *overrides], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert final_files(tmp_path / "killed") == {"stimuli.h5", "manifest.json"}
    read: list[Path] = []
    original = prepare_module.read_session
    monkeypatch.setattr(prepare_module, "read_session", lambda path, mask: read.append(path) or original(path, mask))
    prepare(cfg)
    assert [path.name for path in read] == ["betas_session03.nii.gz", "betas_session04.nii.gz"]
    rows = np.arange(120)
    np.testing.assert_array_equal(open_subject(cfg).voxels(rows), open_subject(whole).voxels(rows))
    assert "partial" not in "".join(p.name for p in (tmp_path / "killed").rglob("*"))


# ---- bad trees -------------------------------------------------------------------------------------------------------


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], dtype: Any = np.int16) -> None:
    image = nibabel.load(path)
    values = change(np.asanyarray(image.dataobj).astype(dtype))
    nibabel.save(nibabel.Nifti1Image(values.astype(dtype), image.affine), path)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        i, j, k = np.argwhere(values[..., 0] != 0)[0]
        values[i, j, k, 3] = value
        return values

    return change


def constant(root: Path) -> None:
    mask = np.asanyarray(nibabel.load(root / tree.roi_path("subj01", "nsdgeneral")).dataobj)
    i, j, k = np.argwhere(mask > 0)[7]

    def change(values: np.ndarray) -> np.ndarray:
        values[i, j, k] = 0
        return values

    rewrite(session_file(root, 2), change)


def inside(root: Path, value: float) -> None:
    """One kept voxel of one trial in session 3, stored as float32 as only floats can be NaN."""
    mask = np.asanyarray(nibabel.load(root / tree.roi_path("subj01", "nsdgeneral")).dataobj)
    i, j, k = np.argwhere(mask > 0)[5]

    def change(values: np.ndarray) -> np.ndarray:
        values[i, j, k, 4] = value
        return values

    rewrite(session_file(root, 3), change, np.float32)


def drop_captions(root: Path) -> None:
    for name in tree.COCO_CAPTIONS:
        content = json.loads((root / name).read_text(encoding="utf-8"))
        first = content["annotations"][0]["image_id"]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != first]
        (root / name).write_text(json.dumps(content), encoding="utf-8")


def repeat_image(root: Path) -> None:
    content = {k: v for k, v in loadmat(root / tree.DESIGN).items() if not k.startswith("__")}
    content["subjectim"][0, 10] = content["subjectim"][0, 11]
    savemat(root / tree.DESIGN, content)


def other_grid(root: Path) -> None:
    path = root / tree.roi_path("subj01", "nsdgeneral")
    rewrite(path, lambda values: np.pad(values, ((0, 1), (0, 0), (0, 0))))


def fewer_trials(root: Path) -> None:
    rewrite(session_file(root, 4), lambda values: values[..., :-1])


def empty_mask(root: Path) -> None:
    rewrite(root / tree.roi_path("subj01", "nsdgeneral"), lambda values: np.minimum(values, 0))


def without_mark(root: Path) -> None:
    (root / tree.SIMULATED_MARK).unlink()


BAD_TREES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing session": (
        lambda root: session_file(root, 3).unlink(),
        r"lacks the betas of 1 of 4 sessions \(first: betas_session03.nii.gz or .hdf5\).*data.sessions=2",
    ),
    "truncated NIfTI": (
        lambda root: truncate(session_file(root, 2)),
        r"betas_session02.nii.gz is truncated or damaged .*Fetch it again; what is finished is kept",
    ),
    "NIfTI cut in its header": (
        lambda root: truncate(session_file(root, 2), 0.0001),
        r"betas_session02.nii.gz is not a readable NIfTI file",
    ),
    "no NIfTI at all": (
        lambda root: session_file(root, 1).write_bytes(b"<html>access denied</html>"),
        r"betas_session01.nii.gz is not a readable NIfTI file",
    ),
    "trials missing": (
        fewer_trials,
        r"betas_session04.nii.gz has 29 trials, but the design has 30 in this session. Fetch it again",
    ),
    "mask of another shape": (other_grid, r"has a grid .*but the mask .*nsdgeneral.nii.gz lies on"),
    "ROI volume of another shape": (
        lambda root: rewrite(root / tree.roi_path("subj01", "streams"), lambda v: v[1:]),
        r"streams.nii.gz has shape .*, but the mask .* lies on a grid .*func1pt8mm",
    ),
    "truncated ROI volume": (
        lambda root: truncate(root / tree.roi_path("subj01", "floc-faces")),
        r"floc-faces.nii.gz is .*Fetch it again",
    ),
    "empty ROI": (empty_mask, r"nsdgeneral.nii.gz holds no voxel above 0.*Choose another data.mask"),
    "missing mask": (
        lambda root: (root / tree.roi_path("subj01", "nsdgeneral")).unlink(),
        r"data.mask=nsdgeneral: .*nsdgeneral.nii.gz does not exist.*ROI volumes there: Kastner2015, floc-bodies",
    ),
    "damaged label table": (
        lambda root: (root / tree.label_paths("subj01", "streams")[0]).write_text("early\n", encoding="utf-8"),
        r"streams.mgz.ctab is not a table of labels",
    ),
    "NaN": (lambda root: inside(root, np.nan), r"session03.nii.gz: the beta of voxel \(\d+, \d+, \d+\) .* is nan"),
    "infinite": (lambda root: inside(root, np.inf), r"session03.nii.gz: the beta of voxel .* is inf; every beta"),
    "zero-variance voxel": (
        constant,
        r"session02.nii.gz: voxel \(\d+, \d+, \d+\) has the same beta .*0 others.*data.constant_voxels=zero",
    ),
    "duplicate image ids": (repeat_image, r"subjectim lists 1 image ids of subj01 twice"),
    "captions missing for some": (drop_captions, r"\d of 30 images have no caption .*first: image \d+, COCO id"),
    "missing captions": (lambda root: shutil.rmtree(root / "annotations"), r"annotations does not exist"),
    "truncated captions": (lambda root: truncate(root / tree.COCO_CAPTIONS[0]), r"captions_train2017.json"),
    "missing images": (lambda root: (root / tree.STIMULI).unlink(), r"nsd_stimuli.hdf5 is .*nd doctor"),
    "truncated images": (lambda root: truncate(root / tree.STIMULI, 0.9), r"nsd_stimuli.hdf5 is not a whole HDF5"),
    "missing design": (lambda root: (root / tree.DESIGN).unlink(), r"nsd_expdesign.mat is missing"),
    "truncated design": (lambda root: truncate(root / tree.DESIGN), r"nsd_expdesign.mat is not a readable MATLAB"),
    "missing list of images": (lambda root: (root / tree.STIM_INFO).unlink(), r"nsd_stim_info_merged.csv is missing"),
    "simulated, but not said so": (without_mark, r"data.simulated=true, but .* has no SIMULATED.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TREES)
def test_bad_trees(root: Path, tmp_path: Path, case: str) -> None:
    damage, message = BAD_TREES[case]
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        prepare(nsd(root, tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert "subj01.h5" not in final_files(tmp_path / "data"), "no half-written subject"


def test_bad_hdf5_sessions(scenes: Config, tmp_path: Path) -> None:
    root = write_tree(scenes, tmp_path / "tree", forms=("hdf5",))
    good = session_file(root, 2, "hdf5").read_bytes()
    truncate(session_file(root, 2, "hdf5"))
    with pytest.raises(UserError, match=r"betas_session02.hdf5 is not a whole HDF5 file .*truncated"):
        prepare(nsd(root, tmp_path / "data"))
    session_file(root, 2, "hdf5").write_bytes(good)
    with h5py.File(session_file(root, 2, "hdf5"), "r+") as handle:
        handle.move("betas", "something")
    with pytest.raises(UserError, match=r"session02.hdf5 holds something; wanted numbers betas \(trials, Z, Y, X\)"):
        prepare(nsd(root, tmp_path / "data"))


def test_betas_stored_by_trial_are_read_too(scenes: Config, tmp_path: Path) -> None:
    """Neither the released chunks nor any other way of storing the dataset may change what is read."""
    root = write_tree(scenes, tmp_path / "tree", forms=("hdf5",))
    prepare(nsd(root, tmp_path / "a"))
    for session, chunks in enumerate([None, (1, 5, 5, 5), (7, 2, 2, 2), (30, 1, 1, 1)], start=1):
        with h5py.File(session_file(root, session, "hdf5"), "r+") as handle:
            values = handle["betas"][()]
            del handle["betas"]
            handle.create_dataset("betas", data=values, chunks=chunks)
    prepare(nsd(root, tmp_path / "b"))
    a, b = (open_subject(nsd(root, tmp_path / name)).voxels(np.arange(120)) for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_constant_voxels_can_be_set_to_zero(root: Path, tmp_path: Path) -> None:
    constant(root)
    cfg = nsd(root, tmp_path / "data", constant_voxels="zero")
    prepare(cfg)
    found = open_subject(cfg)
    second = found.voxels(np.flatnonzero(found.session == 1))
    assert (np.flatnonzero((second == 0).all(0)) == [7]).all()
    assert np.isfinite(second).all()
    assert found.voxels(np.flatnonzero(found.session == 0))[:, 7].std() > 0.1


def test_measured_trees_must_have_nsds_voxels_and_shared_images(root: Path, tmp_path: Path) -> None:
    without_mark(root)
    cfg = nsd(root, tmp_path / "data", simulated=False)
    with pytest.raises(UserError, match=r"shared images have COCO ids with hash"):
        prepare(cfg)
    pieces = [piece for piece in prepare_module.pieces_of(cfg) if piece.name == "subj01.h5"]
    with pytest.raises(UserError, match=r"nsdgeneral.nii.gz has \d+ voxels .* nsdgeneral of subj01 has 15724"):
        make_pieces(tmp_path / "data" / "nsd", pieces, {})


def test_simulated_trees_are_called_so(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made from a simulated subject .* Set data.simulated=true"):
        prepare(nsd(made, tmp_path, simulated=False))
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images of 64 pixels, but data.image_size=425"):
        prepare(nsd(made, tmp_path, image_size=425))


def test_no_root_and_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=nsd needs data.root=<folder.*nd doctor data=nsd"):
        prepare(nsd("", tmp_path))
    with pytest.raises(UserError, match=r"data.root=/nowhere is not a folder"):
        prepare(nsd(Path("/nowhere"), tmp_path))


def test_unreadable_permissions(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's refusal is acted."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nibabel, "load", refuse)
    with pytest.raises(UserError, match=r"nsdgeneral.nii.gz cannot be read: permission denied. Check the file's owner"):
        prepare(nsd(root, tmp_path / "data"))


DISK_FULL = """
import resource, signal, sys
from nd.prepare import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


@pytest.mark.parametrize(
    "limit", [9_000, 60_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (40_000, 105_000))]
)
def test_disk_full_during_prepare(made: Path, tmp_path: Path, limit: int) -> None:
    """The system lets no file grow beyond a limit, as a full disk would; HDF5 fails wherever it happens to be."""
    overrides = [
        "data=nsd", f"data.root={made}", "data.subjects=[subj01]", "data.image_size=64", "data.n_val=5",
        "data.simulated=true", "protocol=scenes", f"paths.data={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", DISK_FULL, str(limit), *overrides], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("nd prepare: ")]
    assert "cannot write" in said
    assert "Free some space or set paths.data to another folder" in said
    assert "slist" not in said
    assert "Traceback" not in done.stderr
    assert "subj01.h5" not in final_files(tmp_path)


def test_a_gzip_file_of_several_members_is_read(root: Path, tmp_path: Path) -> None:
    path = session_file(root, 1)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    prepare(nsd(root, tmp_path / "data"))
    assert np.isfinite(open_subject(nsd(root, tmp_path / "data")).voxels(np.arange(120))).all()


# ---- whole numbers that are not quite, names, and units --------------------------------------------------------------


def scaled(path: Path, values: np.ndarray) -> Path:
    """Values as a tool saves them that keeps floats as int16 with a slope: here 0 becomes 0.3 of a step."""
    slope = (np.abs(values).max() + 2) / 30_000
    image = nibabel.Nifti1Image(np.rint(values / slope - 0.3).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0.3 * slope)
    nibabel.save(image, path)
    return path


def test_a_mask_saved_again_with_a_slope_keeps_its_voxels(made: Path, tmp_path: Path) -> None:
    values = np.zeros((6, 7, 8))
    values.ravel()[:15] = 1
    path = scaled(tmp_path / "mask.nii.gz", values)
    stored = nibabel.load(path).get_fdata()
    assert (stored > 0).sum() > 15, "zeros have become small numbers"
    mask = read_mask(made, "subj01", str(path))
    np.testing.assert_array_equal(mask.ijk, np.argwhere(values))
    values[0, 0, 1] = 0.5
    write_nifti(path, values)
    with pytest.raises(UserError, match=r"mask.nii.gz: entry \(0, 0, 1\) is 0.5.*cut a map off at a threshold"):
        read_mask(made, "subj01", str(path))


def write_nifti(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def test_rois_of_volumes_saved_again_with_a_slope(root: Path) -> None:
    mask = read_mask(root, "subj01", "nsdgeneral")
    before = read_rois(root, "subj01", mask)
    for name in ("streams", "prf-visualrois", "nsdgeneral"):
        path = root / tree.roi_path("subj01", name)
        scaled(path, nibabel.load(path).get_fdata())
    np.testing.assert_array_equal(read_mask(root, "subj01", "nsdgeneral").ijk, mask.ijk)
    after = read_rois(root, "subj01", mask)
    assert before.keys() == after.keys()
    assert sum(inside.any() for inside in before.values()) > 5
    for name, inside in before.items():
        np.testing.assert_array_equal(after[name], inside, err_msg=name)


@pytest.mark.parametrize("head", ["# labels of streams\n", "\ufeff", "\ufeff# x\n\n"])
def test_label_tables_with_a_heading_or_a_byte_order_mark(tmp_path: Path, head: str) -> None:
    (tmp_path / "x.ctab").write_text(f"{head}0 Unknown 0 0 0 0\n  1  early\n2 mid/ventral 9\n", encoding="utf-8")
    assert read_labels(tmp_path / "x.ctab") == {0: "Unknown", 1: "early", 2: "mid_ventral"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1 V1\n2 V1\n", "x.ctab holds 'V1' twice"),
        ("1 V1\n1 V2\n", "x.ctab holds 1 twice"),
        ("1 a/b\n2 a_b\n", "'a_b'"),
    ],
)
def test_labels_that_would_take_each_others_voxels(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "x.ctab").write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "x.ctab")


def test_rois_of_one_name_in_two_volumes_and_empty_ones(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask, table = read_mask(root, "subj01", "nsdgeneral"), root / tree.label_paths("subj01", "streams")[0]
    table.write_text(table.read_text(encoding="utf-8") + "\n97 nobody\n", encoding="utf-8")
    assert not read_rois(root, "subj01", mask)["nobody"].any()
    assert re.search(r"subj01: no voxel that is kept lies in .*nobody.*; such ROIs cannot be chosen", caplog.text)
    table.write_text("1 V1v\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"streams.nii.gz: there are two ROIs 'V1v'. Give one of them another name"):
        read_rois(root, "subj01", mask)


def plain_mask(grid: tuple[int, int, int]) -> Mask:
    return Mask(Path("mask.nii"), grid, np.argwhere(np.ones(grid)).astype(np.int16))


def test_units_of_betas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same percent signal change as NSD keeps it, as floats, and as integers with a slope of any size."""
    grid, n_trials = (3, 4, 5), 6
    percent = np.round(np.random.default_rng(2).normal(0, 8, (*grid, n_trials)) * 300) / 300
    mask, wanted = plain_mask(grid), percent.reshape(-1, n_trials).T
    nibabel.save(nibabel.Nifti1Image((percent * 300).round().astype(np.int16), np.eye(4)), tmp_path / "nsd.nii.gz")
    write_nifti(tmp_path / "floats.nii.gz", percent.astype(np.float32))
    scaled(tmp_path / "slope.nii.gz", percent)
    unit = nibabel.Nifti1Image((percent * 300).round().astype(np.int16), np.eye(4))
    unit.header.set_slope_inter(1, 0)
    nibabel.save(unit, tmp_path / "unit.nii.gz")
    for name, tolerance in (("nsd", 1e-5), ("floats", 1e-5), ("slope", 1e-3), ("unit", 1e-5)):
        found = read_session(tmp_path / f"{name}.nii.gz", mask)
        np.testing.assert_allclose(found, wanted, atol=tolerance, err_msg=name)
    with h5py.File(tmp_path / "nsd.hdf5", "w") as handle:
        handle["betas"] = (percent * 300).round().astype(np.int16).transpose(3, 2, 1, 0)
    np.testing.assert_allclose(read_session(tmp_path / "nsd.hdf5", mask), wanted, atol=1e-5)
    assert "another unit" not in caplog.text
    with h5py.File(tmp_path / "nsd.hdf5", "r+") as handle:
        handle["betas"].attrs["scale_factor"] = 0.5
    with pytest.raises(UserError, match=r"nsd.hdf5: betas are scaled integers \(scale_factor\), whose"):
        read_session(tmp_path / "nsd.hdf5", mask)


@pytest.mark.parametrize("factor", [300, 1 / 300])
def test_betas_in_a_unit_that_no_brain_has_are_said(
    tmp_path: Path, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    grid = (3, 4, 5)
    values = (np.random.default_rng(2).normal(0, 2, (*grid, 6)) * factor).astype(np.float32)
    read_session(write_nifti(tmp_path / "x.nii.gz", values), plain_mask(grid))
    assert "x.nii.gz: half of its betas are beyond" in caplog.text
    assert "Are they in another unit?" in caplog.text


# ---- what could not be evaluated -------------------------------------------------------------------------------------


def test_a_session_without_any_variation() -> None:
    with pytest.raises(UserError, match=r"x 0 has the same beta in all trials of the session, and so have all others"):
        scale_session(np.ones((4, 3), np.float32), np.zeros(4, bool), "raw", "zero", lambda voxel: f"x {voxel}")


@pytest.mark.parametrize("rule", ["raw", "session", "session_train"])
def test_a_voxel_constant_in_a_session_becomes_zero_by_every_rule(rule: str) -> None:
    betas = np.random.default_rng(0).normal(2, 1, (6, 3)).astype(np.float32)
    betas[:, 1] = 5
    scaled = scale_session(betas.copy(), np.arange(6) == 0, rule, "zero", str)
    np.testing.assert_array_equal(scaled[:, 1], 0)
    assert rule != "raw" or np.array_equal(scaled[:, [0, 2]], betas[:, [0, 2]])


def test_splits_that_could_not_be_evaluated_are_refused_before_betas_are_read(made: Path, tmp_path: Path) -> None:
    for n_val in (1, 23):
        with pytest.raises(UserError, match=rf"data.n_val={n_val} does not fit split 'nsd1000': .* from 2 to 22"):
            prepare(nsd(made, tmp_path, n_val=n_val))
    assert final_files(tmp_path) == {"stimuli.h5", "manifest.json"}


def test_a_test_image_that_is_a_training_image(root: Path, tmp_path: Path) -> None:
    """Image 24 is the first for the test, 3 is seen in training."""
    with h5py.File(root / tree.STIMULI, "r+") as handle:
        handle[tree.STIMULI_KEY][24] = handle[tree.STIMULI_KEY][3]
    with pytest.raises(LeakError, match=r"1 test images of subj01 are training images .* \(image 3 is test image 24\)"):
        prepare(nsd(root, tmp_path / "data"))
    assert final_files(tmp_path / "data") == {"stimuli.h5", "manifest.json"}
    prepare(nsd(root, tmp_path / "data", same_images="allow"))
    assert same_across(nsd(root, tmp_path / "data", same_images="allow")).equal == [(3, 24)]


# ---- trees that have moved -------------------------------------------------------------------------------------------


def test_a_moved_tree_is_read_from_its_new_place(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = nsd(root, tmp_path / "data")
    prepare(cfg)
    images = Stimuli(stimuli_path(cfg)).images(np.arange(30))
    recorded = describe([stimuli_path(cfg)])
    shutil.move(root, tmp_path / "elsewhere")
    for given in ("", str(root)):
        with pytest.raises(UserError, match=r"reads images from .*tree/nsddata_stimuli.*data.root=<its new place>"):
            prepare(nsd(given, tmp_path / "data"))
    capsys.readouterr()
    prepare(nsd(tmp_path / "elsewhere", tmp_path / "data"))
    assert "wrote nsd: the stimuli" in capsys.readouterr().out
    np.testing.assert_array_equal(Stimuli(stimuli_path(cfg)).images(np.arange(30)), images)
    assert changed_files(recorded, [stimuli_path(cfg)]) == [], "runs made from it are still of it"
    prepare(nsd(tmp_path / "elsewhere", tmp_path / "data"))
    assert "nothing to do" in capsys.readouterr().out


def test_another_file_at_the_new_place(root: Path, tmp_path: Path) -> None:
    cfg = nsd(root, tmp_path / "data")
    prepare(cfg)
    shutil.move(root, tmp_path / "elsewhere")
    truncate(tmp_path / "elsewhere" / tree.STIMULI, 0.9)
    with pytest.raises(UserError, match=r"elsewhere.* is not the file .*tree.* that .*stimuli.h5 was prepared from"):
        prepare(nsd(tmp_path / "elsewhere", tmp_path / "data"))


# ---- what may change between two attempts ----------------------------------------------------------------------------


def put_mask(made: Path, path: Path, first: int, last: int) -> None:
    """Write a mask of one's own: some of the voxels of nsdgeneral, by their number there."""
    inside = read_mask(made, "subj01", "nsdgeneral")
    values = np.zeros(inside.grid, np.int16)
    values[tuple(inside.ijk[first:last].T)] = 1
    write_nifti(path, values)


@pytest.mark.parametrize("last", [40, 30], ids=["as many voxels", "fewer"])
def test_an_attempt_with_another_mask_is_not_gone_on_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    cfg = nsd(made, tmp_path / "data", mask=str(tmp_path / "mine.nii.gz"))
    put_mask(made, tmp_path / "mine.nii.gz", 0, 20)
    interrupt(cfg, monkeypatch)
    put_mask(made, tmp_path / "mine.nii.gz", 20, last)
    prepare(cfg)
    whole = nsd(made, tmp_path / "whole", mask=str(tmp_path / "mine.nii.gz"))
    prepare(whole)
    found, wanted = open_subject(cfg), open_subject(whole)
    np.testing.assert_array_equal(found.ijk, wanted.ijk)
    np.testing.assert_array_equal(found.voxels(np.arange(120)), wanted.voxels(np.arange(120)))


def interrupt(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare until two sessions are written."""
    original, calls = prepare_module._write_session, []

    def stopped(*given: Any) -> None:
        calls.append(given)
        if len(calls) > 2:
            raise KeyboardInterrupt
        original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_session", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(cfg)


def test_rois_fetched_after_an_interruption_are_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, atlas = nsd(root, tmp_path / "data"), root / tree.roi_path("subj01", "streams")
    atlas.rename(tmp_path / "later.nii.gz")
    interrupt(cfg, monkeypatch)
    (tmp_path / "later.nii.gz").rename(atlas)
    prepare(cfg)
    assert "streams" in open_subject(cfg).rois
    assert "was begun from another design, mask or ROIs" in caplog.text


def test_a_mask_of_ones_own_that_was_written_again_is_another(made: Path, tmp_path: Path) -> None:
    cfg = nsd(made, tmp_path / "data", mask=str(tmp_path / "mine.nii.gz"))
    put_mask(made, tmp_path / "mine.nii.gz", 0, 20)
    prepare(cfg)
    prepare(cfg)
    put_mask(made, tmp_path / "mine.nii.gz", 0, 30)
    with pytest.raises(UserError, match=r"prepared with other settings \(mask_sha256: made with \w{12}, asked for"):
        prepare(cfg)
    (tmp_path / "mine.nii.gz").unlink()
    prepare(cfg)  # nothing is there to be compared


def test_other_captions_for_images_that_are_prepared(made: Path, tmp_path: Path) -> None:
    prepare(nsd(made, tmp_path / "data"))
    prepare(nsd(made, tmp_path / "data", captions=str(made / "annotations")))  # those that were read
    np.save(tmp_path / "mine.npy", np.full((100, 1), "something else"))
    with pytest.raises(UserError, match=r"stimuli.h5 was prepared with other settings \(captions: made without, asked"):
        prepare(nsd(made, tmp_path / "data", captions=str(tmp_path / "mine.npy")))
    cfg = nsd(made, tmp_path / "other", captions=str(tmp_path / "mine.npy"))
    prepare(cfg)
    prepare(cfg)
    assert Stimuli(stimuli_path(cfg)).captions(np.array([3])) == [["something else"]]
