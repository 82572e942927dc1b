"""nd doctor: the terms first, every file there, missing or of no use, sizes, and an exit code that can be relied on."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from nd.backbone.loading import Backbone
from nd.backbone.weights import SHIPPED
from nd.config import Config
from nd.config.application import check, compose
from nd.data.mindeye2 import tree as mindeye2
from nd.data.nsd import tree
from nd.data.nsd.facts import PEOPLE
from nd.data.prepared import Stimuli, Subject, stimuli_path, subject_path
from nd.doctor import weights
from nd.doctor.extent import Extent, images_seen
from nd.doctor.memory import memory_estimate, store_bytes, target_numbers, target_shapes
from nd.doctor.need import byte_text
from nd.doctor.report import doctor
from nd.doctor.training import largest_training, stages, training_needs
from nd.doctor.whole import fault
from nd.mappers.arrays import LARGE_BYTES
from nd.mappers.base import FoldData, Group
from nd.mappers.components import build_mapper
from nd.prepare import prepare
from nd.scenes.as_mindeye2 import write_mindeye2
from nd.scenes.as_nsd import write_nsd
from nd.targets.components import build_extractor

VERSION = "betas_fithrf_GLMdenoise_RR"
BETAS = f"nsddata_betas/ppdata/subj01/func1pt8mm/{VERSION}"
MASK = tree.roi_path("subj01", "nsdgeneral")
GRID = PEOPLE["subj01"].grid
SESSION_BYTES = 2 * int(np.prod(GRID)) * 750

Capture = pytest.CaptureFixture[str]


class Said:
    """What the doctor printed and returned; sections of lines by their title."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text, self.lines = code, text, text.splitlines()
        self.flat = " ".join(text.split())

    def line(self, pattern: str) -> str:
        found = [line for line in self.lines if re.search(pattern, line)]
        assert len(found) == 1, f"{len(found)} lines with {pattern!r} in:\n{self.text}"
        return found[0]


@pytest.fixture
def ask(tmp_path: Path, capsys: Capture) -> Callable[..., Said]:
    """Run the doctor on some overrides in an empty folder, and make sure that it writes nothing."""

    def asked(*overrides: str) -> Said:
        cfg = compose([f"paths.root={tmp_path / 'work'}", *overrides])
        before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        code = doctor(cfg)
        said = Said(code, capsys.readouterr().out)
        assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert max(len(line) for line in said.lines if str(tmp_path) not in line) <= 118
        return said

    return asked


# ---- a tree with the sizes of the measured one -----------------------------------------------------------------------


def fake_nifti(shape: tuple[int, ...], n_bytes: int = 0) -> bytes:
    """A .nii.gz that says it holds int16 of that shape, and ends as if it did; its values are not there."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    unpacked = n_bytes or 352 + 2 * int(np.prod(shape))
    return gzip.compress(header.binaryblock + bytes(9999))[:-4] + struct.pack("<I", unpacked % 2**32)


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def stretch(path: Path, n_bytes: int) -> None:
    """Make a file as long as a released one; the rest of it takes no room."""
    with open(path, "r+b") as handle:
        handle.truncate(n_bytes)


def design() -> dict[str, np.ndarray]:
    lists = np.tile(np.arange(1, 10_001), (8, 1))
    for k in range(1, 8):
        lists[k, 1000:] += 9000 * k
    pattern = np.zeros((40, 12, 75))
    pattern.reshape(40, -1)[:, :750] = 1
    order = np.tile(np.arange(1, 10_001), 3)
    return {"masterordering": order[None], "subjectim": lists, "sharedix": lists[:1, :1000], "stimpattern": pattern}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Files that look like all of NSD's for subj01 from outside."""
    root = tmp_path / "nsd"
    (root / tree.DESIGN).parent.mkdir(parents=True)
    savemat(root / tree.DESIGN, design(), do_compression=True)
    put(root / tree.STIM_INFO, "nsdId,cocoId\n0,1\n")
    for name in tree.COCO_CAPTIONS:
        put(root / name, '{"annotations": []}\n')
    (root / tree.STIMULI).parent.mkdir(parents=True)
    with h5py.File(root / tree.STIMULI, "w") as handle:
        handle["imgBrick"] = np.zeros(3)
    stretch(root / tree.STIMULI, tree.IMAGE_BYTES)
    save_mask(root / MASK, PEOPLE["subj01"].voxels)
    for volume in tree.ROI_VOLUMES[1:]:
        put(root / tree.roi_path("subj01", volume), fake_nifti(GRID))
        put(root / tree.label_paths("subj01", volume)[1], "1 V1v\n")  # those of the template brain serve as well
    put(root / BETAS / "ncsnr.nii.gz", fake_nifti(GRID))
    for session in range(1, 41):
        put(root / BETAS / f"betas_session{session:02d}.nii.gz", fake_nifti((*GRID, 750)))
    return root


def save_mask(path: Path, n_voxels: int) -> None:
    values = np.zeros(GRID, np.int16)
    values.reshape(-1)[:n_voxels] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def test_without_a_root_the_terms_and_the_whole_tree(ask: Callable[..., Said]) -> None:
    said = ask("data=nsd", "backbone=sd14")
    assert said.code == 1
    assert said.lines[0] == "terms"
    assert said.lines[1].startswith(
        "  1. Sign the NSD Data Access Agreement before anything is fetched: https://natural"
    )
    assert said.flat.index("Pass on neither the data") < said.flat.index("aws s3 cp")
    assert "cocodataset.org" in said.text
    said.line(r"MISSING    small  nsd_expdesign\.mat +order of the trials")
    said.line(r"MISSING  39\.6 GB  nsd_stimuli\.hdf5")
    said.line(r"MISSING  42\.0 GB  all 40 betas_session\*\.nii\.gz \(or \.hdf5\) +single-trial betas")
    said.line(r"MISSING    small  captions_\{train2017,val2017\}\.json")
    said.line(r"absent     small  all 8 \*\.nii\.gz +ROIs \(optional\)")
    said.line(r"nothing is there; to download: 63 files, at most 81\.5 GB")
    said.line(r"below data\.root \(not given\)")
    assert "MISSING raw files data.root is not given (46 of 63 missing, at most 81.5 GB; listed above)" in said.flat
    assert said.lines[-1] == (
        "cannot run yet, missing: prepared data, raw files (46 of 63 missing, at most 81.5 GB), backbone, image tower"
    )
    assert "40: subj01, subj02, subj05, subj07; 32: subj03, subj06; 30: subj04, subj08" in said.flat


@pytest.mark.parametrize("root", ["absent", "~nobody_of_that_name/absent"])
def test_a_root_that_is_no_folder(root: str, ask: Callable[..., Said]) -> None:
    said = ask("data=nsd", f"data.root={root}")
    assert said.code == 1
    assert f"{root} is not a folder. Give the folder that holds the downloaded files" in said.flat
    assert "all 40 betas_session" in said.text


def test_a_whole_tree_can_be_prepared(ask: Callable[..., Said], measured: Path) -> None:
    said = ask("data=nsd", f"data.root={measured}")
    assert said.code == 0, said.text
    said.line(r"to make prepared data .*data/nsd|to make prepared data")
    assert "`nd prepare` writes stimuli.h5, subj01.h5)" in said.flat
    said.line(r"ok +\d+\.\d kB  all 40 betas_session\*\.nii\.gz")
    said.line(r"ok +39\.6 GB  nsd_stimuli\.hdf5")
    assert "there: 63 of 63 files, 39.6 GB" in said.text
    assert "aws s3" not in said.text
    assert said.lines[-1] == "ready to run"
    assert "prepared voxels of subj01: 30,000 trials x 15,724 voxels" in said.text
    assert "target z: 70,566 images" in said.text


def test_missing_sessions_are_one_line_with_few_names(ask: Callable[..., Said], measured: Path) -> None:
    for session in (5, 17, 40):
        (measured / BETAS / f"betas_session{session:02d}.nii.gz").unlink()
    said = ask("data=nsd", f"data.root={measured}")
    assert said.code == 1
    said.line(r"MISSING   3\.1 GB  3 of 40 betas_session\*\.nii\.gz \(or \.hdf5\): 05, 17, 40  single-trial betas")
    said.line(r"ok .* 37 of 40 betas_session\*\.nii\.gz")
    assert "there: 60 of 63 files, 39.6 GB; to download: 3 files, at most 3.1 GB" in said.text
    assert f"aws s3 sync s3://natural-scenes-dataset/$FOLDER {measured}/$FOLDER" in said.text
    assert said.lines[-1].endswith("raw files (3 of 63 missing, at most 3.1 GB)")
    for session in range(6, 15):
        (measured / BETAS / f"betas_session{session:02d}.nii.gz").unlink()
    assert "12 of 40 betas_session*.nii.gz (or .hdf5): 05, 06, 07, 08, 09, 10, 6 more" in ask(
        "data=nsd", f"data.root={measured}"
    ).flat.replace("( ", "(")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def as_hdf5(path: Path, n_bytes: int) -> None:
    path.unlink()
    other = path.with_name(path.name.replace(".nii.gz", ".hdf5"))
    with h5py.File(other, "w") as handle:
        handle["betas"] = np.zeros((1, 1, 1, 1), np.int16)
    stretch(other, n_bytes)


SPOILERS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut": (
        f"{BETAS}/betas_session12.nii.gz",
        cut,
        r"betas_session12\.nii\.gz: cut short or damaged: by its last bytes",
    ),
    "fewer trials": (
        f"{BETAS}/betas_session12.nii.gz",
        lambda path: put(path, fake_nifti((*GRID, 749))),
        r"unpacks to 1,047,389,968 bytes, NSD's have 1,048,788,352",
    ),
    "empty": (f"{BETAS}/betas_session12.nii.gz", lambda path: put(path, b""), "it is empty"),
    "no gzip": (f"{BETAS}/betas_session12.nii.gz", lambda path: put(path, b"x" * 999), "is not a readable NIfTI file"),
    "small hdf5": (
        f"{BETAS}/betas_session12.nii.gz",
        lambda path: as_hdf5(path, SESSION_BYTES - 1),
        r"betas_session12\.hdf5: it has 1,048,787,999 bytes; the released file has at least 1,048,788,000",
    ),
    "images cut": (tree.STIMULI, lambda path: stretch(path, 10**9), "it has 1,000,000,000 bytes; the released file"),
    "no hdf5": (
        tree.STIMULI,
        lambda path: (put(path, b"x"), stretch(path, tree.IMAGE_BYTES))[0],
        r"nsd_stimuli\.hdf5: is not a whole HDF5 file",
    ),
    "captions cut": (tree.COCO_CAPTIONS[0], lambda path: put(path, '{"annotations": [{"im'), "it does not end as JSON"),
    "design": (tree.DESIGN, lambda path: put(path, b"x" * 999), "is not a readable MATLAB 5 file"),
    "mask": (MASK, lambda path: save_mask(path, 99), "has 99 voxels on a grid .* but nsdgeneral of subj01 has 15724"),
    "mask cut": (MASK, cut, r"nsdgeneral\.nii\.gz: cut short or damaged"),
    "rois cut": (tree.roi_path("subj01", "streams"), cut, r"streams\.nii\.gz: cut short"),
}


@pytest.mark.parametrize("case", SPOILERS)
def test_files_of_no_use_are_found_without_reading_them(case: str, ask: Callable[..., Said], measured: Path) -> None:
    name, spoil, wanted = SPOILERS[case]
    spoil(measured / name)
    said = ask("data=nsd", f"data.root={measured}")
    assert said.code == 1
    assert re.search(wanted, said.flat), said.text
    assert len([line for line in said.lines if line.startswith("    WRONG ")]) == 1, said.text
    assert said.lines[-1] == "cannot run yet, missing: prepared data; wrong: raw files (1 of no use)"


def test_betas_in_hdf5_serve_as_well(ask: Callable[..., Said], measured: Path) -> None:
    as_hdf5(measured / BETAS / "betas_session12.nii.gz", SESSION_BYTES)
    said = ask("data=nsd", f"data.root={measured}")
    assert said.code == 0
    said.line(r"ok +1\.0 GB  all 40 betas_session")


def test_many_faults_are_explained_once(ask: Callable[..., Said], measured: Path) -> None:
    for session in range(1, 9):
        cut(measured / BETAS / f"betas_session{session:02d}.nii.gz")
    said = ask("data=nsd", f"data.root={measured}")
    said.line(r"WRONG .* 8 of 40 betas_session\*\.nii\.gz \(or \.hdf5\): 01, 02, 03, 04, 05, 06, 2 more")
    assert said.text.count("cut short or damaged") == 3
    said.line("and 5 more like these")


def test_only_what_the_configuration_reads_is_asked_for(
    ask: Callable[..., Said], measured: Path, tmp_path: Path
) -> None:
    shutil.rmtree(measured / "annotations")
    (measured / MASK).unlink()
    for session in range(3, 41):
        (measured / BETAS / f"betas_session{session:02d}.nii.gz").unlink()
    put(tmp_path / "captions.json", "{}")
    save_mask(tmp_path / "mine.nii.gz", 7)
    given = ["data=nsd", f"data.root={measured}", f"data.captions={tmp_path}/captions.json", "data.sessions=2"]
    said = ask(*given, f"data.mask={tmp_path}/mine.nii.gz", "data.split=nsd_partial", "data.subjects=[subj01,subj03]")
    assert said.code == 0, said.text
    assert "annotations/" not in said.text
    said.line(r"ok .* betas_session\{01,02\}\.nii\.gz")
    said.line(r"absent .* 1 of 9 \*\.nii\.gz: nsdgeneral  +ROIs \(optional\)")
    assert "1,500 trials x 7 voxels" in said.text
    assert "target z: 18,481 images" in said.text
    streams = ask(*given, "data.mask=streams", "data.split=nsd_partial")
    assert "WRONG" in streams.line(r"streams\.nii\.gz  +mask")  # it is there, but holds no values
    partial = ask(*given, "data.mask=nowhere")
    partial.line(r"MISSING    small  nowhere\.nii\.gz +mask")
    assert "split nsd1000 needs 40 sessions of subj01, but 2 will be prepared (data.sessions=2," in partial.flat
    assert "data.mask=./no.nii does not exist." in ask(*given, "data.mask=./no.nii").flat


def test_another_subject_and_a_split_that_it_cannot_have(ask: Callable[..., Said], measured: Path) -> None:
    said = ask("data=nsd", f"data.root={measured}", "subject=subj03", "data.split=nsd982")
    said.line(r"MISSING  33\.8 GB  all 32 betas_session")
    assert "split nsd982 needs 37 sessions of subj03, but 32 will be prepared" in said.flat
    assert "24,000 trials x 15,226 voxels" in said.text


def test_captions_of_another_place_must_be_captions(ask: Callable[..., Said], measured: Path, tmp_path: Path) -> None:
    said = ask("data=nsd", f"data.root={measured}", f"data.captions={tmp_path}")
    assert said.code == 1
    assert "data.captions: the folder" in said.flat
    assert said.lines[-1].endswith("wrong: raw files (see above)")


# ---- simulated trees -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(small_world: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NSD tree and a MindEye2 tree of simulated subjects. Read only."""
    root = tmp_path_factory.mktemp("simulated")
    stimuli, test_ids = Stimuli(stimuli_path(small_world)), np.arange(60, 72)
    subjects = [Subject(subject_path(small_world, name)) for name in ("subj01", "subj02")]
    write_nsd(root / "nsd", subjects[0], stimuli, test_ids)
    write_mindeye2(root / "mindeye2", subjects, stimuli, test_ids)
    return root


@pytest.fixture
def copied(simulated: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    return Path(shutil.copytree(simulated, tmp_path / "trees"))


def scenes_nsd(root: Path) -> list[str]:
    return ["data=scenes_nsd", f"data.root={root / 'nsd'}", "data.n_val=10"]


def test_a_simulated_tree_is_said_to_be_simulated(ask: Callable[..., Said], simulated: Path) -> None:
    said = ask(*scenes_nsd(simulated))
    assert said.code == 0, said.text
    assert "(a simulated tree: sizes are not held against NSD's)" in said.flat
    said.line(r"ok .* betas_session\{01,02\}\.nii\.gz +single-trial betas")  # as many sessions as its design has
    assert "there: 25 of 25 files" in said.text
    assert said.lines[1].startswith("  images and brains are drawn by nd itself")
    assert "Agreement" not in said.text
    assert "target z: 72 images" in said.text
    assert re.search(r"subj01: 144 trials x \d+ voxels", said.text)


def test_missing_and_broken_files_of_a_simulated_tree(ask: Callable[..., Said], copied: Path) -> None:
    (copied / "nsd" / tree.STIM_INFO).unlink()
    cut(copied / "nsd" / BETAS / "betas_session01.nii.gz")
    said = ask(*scenes_nsd(copied))
    assert said.code == 1
    said.line(r"MISSING    small  nsd_stim_info_merged\.csv")
    assert "betas_session01.nii.gz: cut short or damaged" in said.text
    assert "its header asks for" in said.flat
    assert said.lines[-1].endswith("raw files (1 of 25 missing, 1 of no use)")
    assert "GB" not in said.line("there: 24 of 25 files")


def test_a_simulated_tree_cannot_pass_for_measured(ask: Callable[..., Said], simulated: Path) -> None:
    said = ask("data=nsd", f"data.root={simulated / 'nsd'}")
    assert said.code == 1
    assert "SIMULATED.txt says so), but data.simulated=false. Set data.simulated=true" in said.flat
    absent = ask("data=scenes_nsd", "data.n_val=10")
    assert absent.code == 1
    assert "`nd prepare data=scenes layout=nsd` writes a simulated tree." in absent.flat


def test_prepared_data_need_no_root(ask: Callable[..., Said], copied: Path, tmp_path: Path) -> None:
    where = f"paths.root={tmp_path / 'work'}"
    prepare(compose([where, *scenes_nsd(copied), "trainer.progress=false"]))
    said = ask("data=scenes_nsd", "data.n_val=10", "data.root=")
    assert said.code == 0, said.text
    assert re.search(r"ok prepared data \S+ \(prepared, 0\.\d MB; reads \S+/nsd_stimuli\.hdf5, 0\.\d MB\)", said.flat)
    assert "raw files" not in said.text
    assert "prepared voxels" not in said.text
    assert ask("data=scenes_nsd", "data.n_val=10", "data.root=/absent").code == 0

    other = ask("data=scenes_nsd", "data.n_val=10", "data.scaling=raw")
    assert other.code == 1
    assert "was prepared with other settings (scaling: made with session_train, asked for raw)" in other.flat
    assert other.lines[-1] == "cannot run yet, wrong: prepared data"
    assert "unknown ROI of subj01.h5 'V9'" in ask("data=scenes_nsd", "data.n_val=10", "subject.roi=V9").flat
    assert "data.n_val=60 does not fit split" in ask("data=scenes_nsd", "data.n_val=60").flat

    (tmp_path / "work" / "data" / "scenes_nsd" / "subj01.h5").unlink()
    part = ask(*scenes_nsd(copied))
    assert part.code == 0
    assert "`nd prepare` writes subj01.h5)" in part.flat
    assert "captions_" not in part.text  # the stimuli are prepared
    assert "betas_session{01,02}" in part.text

    stretch(copied / "nsd" / tree.STIMULI, 10**6)
    assert "has 1000000 bytes, but had" in ask(*scenes_nsd(copied)).flat
    (copied / "nsd" / tree.STIMULI).unlink()
    gone = ask(*scenes_nsd(copied))
    assert gone.code == 1
    assert "nsd_stimuli.hdf5, which is not there or cannot be read" in gone.flat


# ---- MindEye2 --------------------------------------------------------------------------------------------------------


def test_the_mindeye2_release_without_a_root(ask: Callable[..., Said]) -> None:
    said = ask("data=mindeye2")
    assert said.code == 1
    assert "The MindEye2 release is made of NSD's data and images, so NSD's terms hold." in said.lines[1]
    said.line(r"MISSING   1\.9 GB  betas_all_subj01_fp32_renorm\.hdf5")
    said.line(r"MISSING  22\.0 GB  coco_images_224_float16\.hdf5")
    said.line(r"MISSING    small  all 40 \*\.tar +training trials")
    said.line(r"MISSING    small  all 251 subj\*\.tar +trials of other data\.subjects")
    assert "to download: 296 files, about 23.9 GB" in said.text
    assert "hf download pscotti/mindeyev2 --repo-type dataset --local-dir <root>" in said.text
    assert '--include "wds/*/train/*"' in said.text
    alone = ask("experiment=mindeye2")
    assert "to download: 45 files" in alone.text
    assert '--include "wds/subj01/new_test/*"' in alone.text
    assert "target g: 10,000 images x 230,400 numbers" in alone.text


def mindeye2_of(root: Path) -> list[str]:
    return ["data=scenes_mindeye2", f"data.root={root / 'mindeye2'}", "data.n_val=10", "data.subjects=[subj01,subj02]"]


def test_a_simulated_mindeye2_tree(ask: Callable[..., Said], simulated: Path) -> None:
    said = ask(*mindeye2_of(simulated))
    assert said.code == 0, said.text
    assert "a simulated tree" in said.flat
    assert "there: 10 of 10 files" in said.text  # two tars of training trials a subject


@pytest.mark.parametrize(
    ("name", "spoil", "wanted"),
    [
        (mindeye2.betas_file("subj01"), cut, "is not a whole HDF5 file"),
        (mindeye2.train_tar("subj02", 0), cut, "cut short: it does not end with a whole block"),
        (mindeye2.CAPTIONS, cut, "is truncated: it has"),
        (
            mindeye2.CAPTIONS,
            lambda path: np.save(path, np.array([{"a": 1}], object)),
            r"holds Python objects \(a pickle\), which are never loaded",
        ),
    ],
)
def test_broken_files_of_the_mindeye2_release(
    name: str, spoil: Callable[[Path], None], wanted: str, ask: Callable[..., Said], copied: Path
) -> None:
    spoil(copied / "mindeye2" / name)
    said = ask(*mindeye2_of(copied))
    assert said.code == 1
    assert re.search(wanted, said.flat), said.text
    assert said.lines[-1].endswith("wrong: raw files (1 of no use)")


def test_betas_of_another_subject_are_noticed(ask: Callable[..., Said], tmp_path: Path) -> None:
    root = tmp_path / "release"
    root.mkdir()
    with h5py.File(root / mindeye2.betas_file("subj01"), "w") as handle:
        handle.create_dataset("betas", (30_000, 14_278), np.float32)
    stretch(root / mindeye2.betas_file("subj01"), 4 * 30_000 * 15_724)
    said = ask("data=mindeye2", f"data.root={root}", "data.subjects=[subj01]")
    assert "has 14278 voxels, but nsdgeneral of subj01 has 15724" in said.flat


# ---- other data ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    """Own data of 60 trials and 30 images, as overrides."""
    rng = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "voxels.npy", rng.normal(size=(60, 11)).astype(np.float32))
    np.save(tmp_path / "own" / "ids.npy", np.arange(60) % 30)
    (tmp_path / "own" / "images").mkdir()
    for image in range(30):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / "images" / f"{image}.png")
    files = {"voxels": "voxels.npy", "image_ids": "ids.npy", "images": "images"}
    return ["data=own", "data.n_val=4", "data.n_test=5", *(f"data.{k}={tmp_path}/own/{v}" for k, v in files.items())]


def test_own_data_say_what_is_given_and_what_not(ask: Callable[..., Said], mine: list[str], tmp_path: Path) -> None:
    nothing = ask("data=own")
    assert nothing.code == 1
    nothing.line(r"MISSING data\.voxels +not given +\(responses \(trials, voxels\), \.npy\)")
    assert "example nd prepare data=own data.voxels=voxels.npy data.image_ids=image_ids.npy" in nothing.flat
    assert nothing.lines[-1].endswith("missing: prepared data, data.voxels, data.image_ids, data.images")
    said = ask(*mine)
    assert said.code == 0, said.text
    assert re.search(r"ok data\.voxels \S+voxels\.npy \(2\.8 kB\)", said.flat)
    assert "60 trials x 11 voxels" in said.text
    assert "target z: 30 images" in said.text
    prepare(compose([f"paths.root={tmp_path / 'work'}", *mine, "trainer.progress=false"]))
    again = ask("data=own", "data.n_val=4")
    assert again.code == 0, again.text
    assert "data.voxels" not in again.text
    assert ask("data=own", "data.n_val=4", "subject.name=other").lines[-1].endswith("data.voxels, data.image_ids")


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("ids.npy", np.arange(59), "has 59 entries, but data.voxels"),
        ("ids.npy", np.arange(60), r"30 images that were shown have no image \(first: image 30, in trial 30\)"),
        ("voxels.npy", np.zeros(60), r"wanted numbers \(trials, voxels\)"),
    ],
)
def test_own_data_that_do_not_fit(
    file: str, content: np.ndarray, wanted: str, ask: Callable[..., Said], mine: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "own" / file, content)
    said = ask(*mine)
    assert said.code == 1
    assert re.search(wanted, said.flat), said.text
    assert said.lines[-1] == "cannot run yet, missing: prepared data; wrong: own data"


def test_scenes_are_made_and_told_apart_from_other_scenes(ask: Callable[..., Said], tmp_path: Path) -> None:
    small = ["data.n_train=20", "data.n_val=5", "data.n_test=5", "data.n_voxels=40", "data.n_repeats=2"]
    said = ask(*small)
    assert said.code == 0
    assert "`nd prepare` writes stimuli.h5, subj01.h5, subj02.h5, subj03.h5, subj04.h5)" in said.flat
    assert "prepared voxels of 4 subjects: 50 trials x 40 voxels" in said.text
    prepare(compose([f"paths.root={tmp_path / 'work'}", *small]))
    assert ask(*small).line("ok      prepared data")
    other = ask(*small, "data.n_train=30")
    assert other.code == 1
    assert "prepared with other settings (n_train: made with 20, asked for 30)" in other.flat
    (tmp_path / "work" / "data" / "scenes" / "subj01.h5").write_bytes(b"short")
    assert "has 5 bytes instead of" in ask(*small).flat


def test_a_protocol_without_a_network_needs_none(ask: Callable[..., Said], tmp_path: Path) -> None:
    put(tmp_path / "digit69_28x28.mat", b"x")
    said = ask("experiment=digits69", "table=", f"data.file={tmp_path}/digit69_28x28.mat")
    assert said.code == 0, said.text
    assert "scoring network" not in said.text
    assert ask("experiment=digits69", "table=").lines[-1] == "cannot run yet, missing: prepared data, raw file"


def test_networks_that_are_not_here(ask: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EVAL_PACKAGES", {"efficientnet_lite0": "no-such-package"})
    shutil.copytree(SHIPPED / "scenes", tmp_path / "weights")
    (tmp_path / "weights" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("no-such-package")
    said = ask(f"backbone.weights={tmp_path}/weights", f"backbone.image_tower={tmp_path}/weights/unet")
    assert said.code == 1
    assert "no unet/diffusion_pytorch_model.safetensors there" in said.flat
    assert said.lines[-1] == "cannot run yet, missing: backbone, image tower, scoring network"
    assert "pip install no-such-package" in said.text


# ---- estimates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["scenes", "digits69"])
def test_shapes_are_those_of_the_targets(experiment: str) -> None:
    cfg = compose([f"experiment={experiment}"])
    backbone = Backbone(cfg.backbone)
    shapes = {name: build_extractor(name, cfg, backbone).shape for name in [*cfg.method.targets, "pixels", "z40"]}
    assert shapes.items() <= target_shapes(cfg).items()
    assert target_numbers(cfg) == {name: int(np.prod(shapes[name])) for name in cfg.method.targets}
    assert target_numbers(compose([f"experiment={experiment}", "method=mean_image"])) == {}


def test_sizes_of_stable_diffusion_targets_and_of_stores() -> None:
    cfg = compose(["experiment=nsd"])
    assert target_numbers(cfg) == {"z": 4 * 64 * 64, "c": 77 * 768, "g": 6 * 50 * 768}
    assert store_bytes(cfg, Extent(images=10_000))["g"] == 10_000 * 230_400 * 4
    assert store_bytes(compose(["experiment=nsd", "target.dtype=float16"]), Extent(images=3))["z"] == 3 * 16_384 * 2


class Noise:
    """Targets of noise, columns of a target without a file."""

    def __init__(self, n_images: int, size: int) -> None:
        self.size = size
        self.values = np.random.default_rng(1).normal(size=(n_images, size)).astype(np.float32)

    def columns(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        return self.values[ids, start:stop]


@pytest.mark.parametrize("mapper", ["ridge", "fastl2lir"])
@pytest.mark.parametrize(("voxels", "fitted", "numbers"), [(50, 40, 30), (50, 8, 4000), (10, 40, 300), (13, 40, 300)])
def test_memory_of_a_mapper_counts_the_arrays_it_ends_with(
    mapper: str, voxels: int, fitted: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["mapper.n_feat=5"] if mapper == "fastl2lir" else []
    cfg, ids = compose([f"mapper={mapper}", *few]), np.arange(fitted + 4, dtype=np.int32)
    x = np.random.default_rng(0).normal(size=(len(ids), voxels)).astype(np.float32)
    data = FoldData(
        x[:fitted], x[fitted:], ids[:fitted], ids[fitted:], Noise(len(ids), numbers), (Group("z", 0, numbers),)
    )
    fit = build_mapper(replace(cfg.mapper, refit=False), torch.device("cpu"))
    fit.fit(data)
    weights = ("weights", "directions", "coefficients", "voxels")
    ends = sum(array.nbytes for name, array in fit.state().items() if name in weights)

    def estimate(large: float) -> float:
        monkeypatch.setattr("nd.doctor.memory.LARGE_BYTES", large)
        return memory_estimate(cfg, Extent(voxels=voxels, fitted=fitted)).mapping

    monkeypatch.setattr("nd.doctor.memory.target_numbers", lambda cfg: {"c": 3, "z": numbers})
    kept, in_files = estimate(LARGE_BYTES), estimate(0)
    ends -= fit.state()["directions"].nbytes if "directions" in fit.state() else 0  # a factor of the voxels alone
    spare = 4 * numbers if "directions" in fit.state() else 0  # centred, n images may have n - 1 components
    assert ends <= kept - in_files <= ends + spare
    assert in_files > 2 * x[:fitted].nbytes


def test_memory_of_ridge_at_the_size_of_nsd() -> None:
    n, v = 9_000, 15_724
    responses, grams, factors = 2 * 4 * n * v, 3 * 8 * n * n, 4 * n * (n + v)
    blocks = 4 * 4 * n * 1856  # up to 64 MiB: whole columns of n images, a multiple of 16 of them
    ridge = compose(["experiment=nsd", "method=neuraldiffuser_ridge"])
    assert memory_estimate(ridge, Extent(voxels=v, fitted=n)).mapping == (
        responses + grams + factors + blocks
    )  # coefficients of g (8.3 GB) go through a file
    z = 4 * n * 16_384
    small = compose(["experiment=nsd", "method=vae"])
    assert list(small.method.targets) == ["z"]
    assert z > LARGE_BYTES
    assert memory_estimate(small, Extent(voxels=100, fitted=n)).mapping == pytest.approx(
        8 * n * 100 + 24 * 100**2 + 400 * (n + 100) + 400 * 16_384 + blocks
    )
    assert memory_estimate(compose(["mapper=two_stage"]), Extent(voxels=v, fitted=n)).mapping == 0


@pytest.mark.parametrize("mapper", ["ridge", "fastl2lir"])
def test_memory_of_a_mapper_of_single_trials_counts_trials(mapper: str) -> None:
    base, size = ["method=neuraldiffuser_ridge", f"mapper={mapper}"], Extent(voxels=4000, fitted=9000, trials=30_000)
    single = memory_estimate(compose([*base, "mapper.trials=single"]), size).mapping
    assert single == memory_estimate(compose(base), replace(size, fitted=30_000)).mapping
    assert single > memory_estimate(compose(base), size).mapping + 8 * 4000 * 21_000


# By hand, of network=nsd: h 4096, V 15,724 voxels, 4 blocks; c 77 x 768, g six layers of 50 x 768, z 4 x 64 x 64.
H, V, D = 4096, 15_724, 768


def linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + bias * n_out


def trunk_by_hand() -> int:
    return linear(V, H) + 4 * (2 * H + 2 * linear(H, H))


def tokens_by_hand(n_tokens: int) -> int:
    heads, width, inner = 14, 52, 4 * D
    attention = D + linear(D, heads * width, False) + linear(D, 2 * width, False) + 2 * width
    attention += linear(heads * width, D, False) + D
    feed_forward = D + linear(D, 2 * inner, False) + linear(inner, D, False)
    time = linear(D, 2 * D) + linear(2 * D, 2 * D) + linear(2 * D, D)
    prior = 3 * n_tokens * D + time + 32 * heads + 6 * (attention + feed_forward) + D + linear(D, D, False)
    return linear(H, n_tokens * D) + 3 * (2 * D + linear(D, D)) + prior


def latent_by_hand() -> int:
    def conv(n_in: int, n_out: int, side: int = 3) -> int:
        return n_in * n_out * side**2 + n_out

    def block(n_in: int, n_out: int) -> int:
        shortcut = conv(n_in, n_out, 1) if n_in != n_out else 0
        return 2 * n_in + conv(n_in, n_out) + 2 * n_out + conv(n_out, n_out) + shortcut

    middle = 2 * block(256, 256) + 2 * 256 + 4 * linear(256, 256)
    upwards = 2 * block(256, 256) + conv(256, 256) + block(256, 128) + block(128, 128) + conv(128, 128)
    upwards += block(128, 64) + block(64, 64)
    decoder = conv(64, 256) + middle + upwards + 2 * 64 + conv(64, 4)
    return linear(H, 64 * 16 * 16, False) + 2 * 64 + decoder


HEADS = {"c": [tokens_by_hand(77)], "g": 6 * [tokens_by_hand(50)], "z": [latent_by_hand()]}


@pytest.mark.parametrize("share", ["part", "target", "all"])
def test_networks_at_the_size_of_nsd_are_as_large_as_by_hand(share: str) -> None:
    cfg = compose(["experiment=nsd", "mapper=two_stage", f"network.share={share}", "training.ema=0.99"])
    found = {need.targets: need.estimate for need in training_needs(cfg, {"subj01": V})}
    n_trunks = {name: len(heads) if share == "part" else 1 for name, heads in HEADS.items()}
    by_hand = {(name,): n_trunks[name] * trunk_by_hand() + sum(heads) for name, heads in HEADS.items()}
    if share == "all":
        by_hand = {("z", "c", "g"): trunk_by_hand() + sum(sum(heads) for heads in HEADS.values())}
    assert {targets: estimate.parameters for targets, estimate in found.items()} == by_hand
    assert all(
        estimate.states == 20 * estimate.parameters for estimate in found.values()
    )  # 16 and the running mean's 4


def test_both_stages_are_estimated_with_the_layers_of_their_subjects() -> None:
    cfg = compose(["mapper=two_stage", "method=vae", "training.precision=bf16-mixed"])
    voxels = {"subj01": 100, "subj02": 300, "subj03": 500}
    first, second = training_needs(cfg, voxels)
    assert (first.stage, first.n_voxels) == ("pretraining", {"subj02": 300, "subj03": 500})
    assert (second.stage, second.n_voxels) == ("fine-tuning", {"subj01": 100})
    difference = first.estimate.parameters - second.estimate.parameters
    assert difference == (300 + 500 + 1 - 100) * cfg.network.hidden  # weights, and one bias more
    assert (first.n_samples, first.how["precision"]) == (256, "bf16-mixed")
    need, estimate = largest_training(cfg, voxels)
    assert (need, estimate) == (first, first.estimate)
    for given, wanted in [
        ("training.pretrain=false", ["fine-tuning"]),
        ("training.pretrained=/tmp", ["fine-tuning"]),
        ("training.stage=pretrain", ["pretraining"]),
    ]:
        assert list(stages(compose(["mapper=two_stage", given]), voxels)) == wanted
    assert list(stages(cfg, {"subj01": 100})) == ["fine-tuning"]


def test_heads_that_nothing_trains_take_no_memory_and_processes_share_a_step() -> None:
    given = ["mapper=two_stage", "target=c", "network.prior=true", "trainer.devices=2", "trainer.strategy=ddp"]
    whole, bare = (
        next(iter(training_needs(compose([*given, *more]), {"subj01": 100})))
        for more in ([], ["training.prior_weight=0", "training.contrast_weight=0"])
    )
    assert (bare.network.prior, bare.network.projector) == (False, False)
    assert whole.n_samples == 128
    auxiliary = ["training.aux_target=g", "training.aux_weight=1", "network.decoder_channels=[8,8]"]
    taught = compose([*given, *auxiliary, "method=vae"])
    need = next(iter(training_needs(taught, {"subj01": 100})))
    assert need.how["aux_width"] == target_shapes(taught)["g"][-1]


def test_of_one_target_alone_all_targets_are_not_advised() -> None:
    cfg = compose(["mapper=two_stage", "network.share=part", "network.hidden=2048"])
    advice = next(need.advice for need in training_needs(cfg, {"subj01": 100}) if need.targets == ("g",))
    assert "network.share=target" in advice
    assert "network.share=all" not in advice


def test_the_doctor_says_what_training_takes(ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    said = ask(
        "experiment=nsd", "mapper=two_stage", "data.subjects=[subj01,subj02,subj05]", "method=vae", "trainer=cpu"
    )
    line = said.line("training: ")
    assert "pretraining of z on 2 subjects: " in line
    assert "ridge mapper" not in said.text
    assert "too much for this device" not in line
    monkeypatch.setattr("nd.doctor.report._device_bytes", lambda cfg: 1e9)
    poor = ask("experiment=nsd", "mapper=two_stage", "method=vae", "trainer=cpu", "training.pretrain=false").flat
    assert "fine-tuning of z on subj01: " in poor
    assert re.search(r"too much for this device \(1\.0 GB\): Training takes about .* with network\.hidden=2048", poor)
    assert "training: " not in ask("mapper=two_stage", "features=oracle").text
    assert "training: " not in ask("mapper=ridge").text
    wrong = ask("mapper=two_stage", "method=vae", "network.decoder_channels=[8,8,8,8,8,8]").flat
    assert "training: network.decoder_channels=[8, 8, 8, 8, 8, 8] enlarges a map 32 times" in wrong


def test_preparing_holds_a_session_in_memory() -> None:
    assert memory_estimate(compose(["data=nsd"]), Extent(voxels=15_724)).preparing == 16 * 750 * 15_724
    assert memory_estimate(compose(), Extent(voxels=15_724)).preparing == 0


def test_images_seen_by_several_people() -> None:
    assert images_seen(["subj01"]) == 10_000
    assert images_seen(["subj03"]) == 9_411
    assert images_seen(["subj01", "subj02"]) == 19_000
    assert images_seen(list(PEOPLE)) == 70_566  # NSD Data Manual: distinct images shown to at least one subject


def test_samples_that_do_not_fit_say_what_would(ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.doctor.report._device_bytes", lambda cfg: 25e9)
    said = ask("experiment=nsd").flat
    assert "this device holds 2 of them, and takes so many at once" in said
    assert "computed again" not in said
    monkeypatch.setattr("nd.doctor.report._device_bytes", lambda cfg: 12e9)
    said = ask("experiment=nsd").flat
    assert "activations are then computed again" in said
    assert "backbone.dtype=bfloat16 and guidance.decoder=half take less than half each" in said
    monkeypatch.setattr("nd.doctor.report.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9e9, 0, 9e9))
    assert "too much for this disk (9.0 GB free): target.dtype=float16 takes half of it" in ask("experiment=nsd").flat
    assert "data.subjects=[subj01] takes fewer images," in ask("data=nsd").flat


# ---- single parts ----------------------------------------------------------------------------------------------------


def test_sizes_are_said_with_a_unit_that_fits() -> None:
    assert [byte_text(n) for n in (0, 1234, 2.5e6, 9.99e8, 39.6e9)] == [
        "0.0 kB",
        "1.2 kB",
        "2.5 MB",
        "999.0 MB",
        "39.6 GB",
    ]


def test_whole_files_have_no_fault(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with h5py.File(tmp_path / "a.hdf5", "w") as handle:
        handle["x"] = np.zeros(3)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.hdf5", "a.hdf5")
    np.save(tmp_path / "a.npy", np.array([["a", ""]]))
    put(tmp_path / "a.json", json.dumps({"a": [1]}) + "\n\n")
    put(tmp_path / "a.csv", "nothing is known of this kind")
    files = sorted(tmp_path.iterdir())
    assert [(file.name, fault(file)) for file in files] == [(file.name, "") for file in files]
    for file in files:
        if file.suffix != ".csv":
            cut(file)
    assert [file.name for file in files if not fault(file)] == ["a.csv"]
    assert fault(tmp_path / "absent.csv").startswith("it cannot be read: No such file")


@pytest.mark.parametrize("experiment", ["nsd", "mindeye2"])
def test_the_experiments_on_nsd_contradict_nothing(experiment: str, capsys: Capture, tmp_path: Path) -> None:
    check("doctor", [f"experiment={experiment}", f"data.root={tmp_path}"])
    assert capsys.readouterr().err == ""
    cfg = compose([f"experiment={experiment}"])
    assert (cfg.data.source, cfg.backbone.name, cfg.subject.name) == (experiment, "sd14", "subj01")
    assert (cfg.guidance.normalise, cfg.guidance.through_unet) == (True, True)
