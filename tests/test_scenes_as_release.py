"""Trees of NSD and of the MindEye2 release made from simulated subjects, opened with the plain libraries."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from helpers_config import data_settings
from scipy.io import loadmat

from nd.config import Config, PathsConfig
from nd.data.prepared import data_folder, write_subject
from nd.data.stimuli import Stimuli
from nd.data.subject import Subject
from nd.errors import UserError
from nd.prepare import prepare
from nd.scenes import as_release
from nd.scenes.as_mindeye2 import write_mindeye2
from nd.scenes.as_nsd import write_nsd
from nd.scenes.as_release import write_release
from nd.scenes.world import pieces_of

N_TRAIN, N_TEST = 130, 30
TEST_IDS = np.arange(N_TRAIN, N_TRAIN + N_TEST)
VERSION = "betas_fithrf"


@dataclass
class Made:
    """Where the trees are, and what the prepared files hold, read without nd."""

    nsd: Path
    mindeye2: Path
    source: Path
    subjects: dict[str, dict[str, np.ndarray]]
    images: np.ndarray
    captions: list[list[str]]

    def roi(self, volume: str) -> np.ndarray:
        path = self.nsd / f"nsddata/ppdata/subj02/func1pt8mm/roi/{volume}.nii.gz"
        return np.asanyarray(nibabel.load(path).dataobj)

    def betas(self, name: str) -> Path:
        return self.nsd / f"nsddata_betas/ppdata/subj02/func1pt8mm/{VERSION}/{name}"

    def design(self) -> dict[str, np.ndarray]:
        return loadmat(self.nsd / "nsddata/experiments/nsd/nsd_expdesign.mat")

    def info(self) -> list[dict[str, str]]:
        with open(
            self.nsd / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", encoding="utf-8", newline=""
        ) as handle:
            return list(csv.DictReader(handle))


def columns_of(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as handle:
        plain = {name: handle[name][()] for name in ("voxels", "image_id", "session", "repeat", "ijk", "ncsnr")}
        return plain | {f"roi {name}": mask[()] for name, mask in handle["rois"].items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two subjects of two sessions; subj02 as NSD, with both forms of betas, and both as MindEye2."""
    root = tmp_path_factory.mktemp("trees")
    data = data_settings(subjects=["subj02", "subj05"], n_train=N_TRAIN, n_test=N_TEST, n_repeats=3, n_voxels=90)
    (root / "source").mkdir()
    for piece in pieces_of(data):
        piece.write(root / "source" / piece.name)
    people = [Subject(root / "source" / f"{name}.h5") for name in data.subjects]
    stimuli = Stimuli(root / "source" / "stimuli.h5")
    write_nsd(root / "nsd", people[0], stimuli, TEST_IDS, betas=VERSION, forms=("nii.gz", "hdf5"))
    write_mindeye2(root / "mindeye2", people, stimuli, TEST_IDS)
    with h5py.File(stimuli.path) as handle:
        images, captions = handle["images"][()], handle["captions"].asstr()[()].tolist()
    subjects = {name: columns_of(root / "source" / f"{name}.h5") for name in data.subjects}
    assert {int(c["session"].max()) for c in subjects.values()} == {1}
    return Made(root / "nsd", root / "mindeye2", root / "source", subjects, images, captions)


def test_both_trees_say_that_they_are_simulated(made: Made) -> None:
    for tree, names in ((made.nsd, ["subj02"]), (made.mindeye2, ["subj02", "subj05"])):
        text = (tree / "SIMULATED.txt").read_text(encoding="utf-8")
        assert "Everything in this folder is SIMULATED" in text
        assert [f"Made from subject {name} of scenes (world_seed 7" in text for name in names] == [True] * len(names)


# ---- NSD: design and images


def test_design(made: Made) -> None:
    mine, design = made.subjects["subj02"], made.design()
    order, lists, shared = design["masterordering"], design["subjectim"], design["sharedix"]
    assert (order.shape, lists.shape, shared.shape) == ((1, 480), (8, 160), (1, N_TEST))
    assert (order.dtype, lists.dtype, shared.dtype) == (np.uint16, np.int32, np.int32)
    assert order.min() == 1  # 1-based
    np.testing.assert_array_equal(lists[1, order[0] - 1] - 1, mine["image_id"])
    np.testing.assert_array_equal(shared[0], TEST_IDS + 1)
    np.testing.assert_array_equal(order[0] <= N_TEST, mine["image_id"] >= N_TRAIN)
    for k, images in enumerate(lists):
        np.testing.assert_array_equal(images[:N_TEST], lists[1, :N_TEST])
        assert len(np.unique(images)) == 160
        assert k == 1 or images[N_TEST:].min() > 160  # a reader of the wrong row finds no image
    assert not np.array_equal(np.sort(lists[1, :N_TEST]), lists[1, :N_TEST])  # a list's order is not that of the ids


def test_stimulus_pattern_counts_the_trials_of_every_session(made: Made) -> None:
    pattern = made.design()["stimpattern"]
    assert (pattern.shape, pattern.dtype) == ((2, 12, 75), np.uint8)
    assert set(np.unique(pattern)) == {0, 1}
    np.testing.assert_array_equal(pattern.sum((1, 2)), np.bincount(made.subjects["subj02"]["session"]))
    assert (pattern.sum(2) == 20).all()


def test_stimulus_information(made: Made) -> None:
    rows, mine = made.info(), made.subjects["subj02"]
    head = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    head += [f"subject{k}" for k in range(1, 9)] + [f"subject{k}_rep{r}" for k in range(1, 9) for r in range(3)]
    assert list(rows[0]) == head
    assert len(rows) == 73000
    assert [int(row["nsdId"]) for row in rows] == list(range(73000)) == [int(row[""]) for row in rows]
    assert len({row["cocoId"] for row in rows}) == 73000
    assert {row["cocoSplit"] for row in rows} == {"train2017", "val2017"}
    assert [i for i, row in enumerate(rows) if row["shared1000"] == "True"] == TEST_IDS.tolist()
    assert {row["shared1000"] for row in rows} == {"True", "False"}
    seen = [i for i, row in enumerate(rows) if row["subject2"] == "1"]
    assert seen == list(range(160))
    for i in seen:
        trials = [int(rows[i][f"subject2_rep{r}"]) - 1 for r in range(3)]
        assert trials == np.flatnonzero(mine["image_id"] == i).tolist()
    assert {rows[500][f"subject2_rep{r}"] for r in range(3)} == {"0"}
    others = [i for i, row in enumerate(rows) if row["subject7"] == "1"]
    assert sorted(made.design()["subjectim"][6] - 1) == others
    assert rows[140]["subject7_rep2"] == rows[140]["subject2_rep2"] != "0"  # one order for everybody


def test_images(made: Made) -> None:
    path = made.nsd / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with h5py.File(path) as handle:
        assert list(handle) == ["imgBrick"]
        bricks = handle["imgBrick"]
        assert (bricks.shape, bricks.dtype) == ((73000, 64, 64, 3), np.uint8)
        np.testing.assert_array_equal(bricks[:160], made.images)
        assert not bricks[160:170].any()
    assert path.stat().st_size < 1.2 * made.images.nbytes


def test_captions_are_found_by_coco_id_and_split(made: Made) -> None:
    rows, numbers = made.info(), []
    for split, n_images in (("train2017", 128), ("val2017", 32)):
        notes = json.loads((made.nsd / f"annotations/captions_{split}.json").read_text(encoding="utf-8"))
        assert "simulated" in notes["info"]["description"]
        assert len(notes["images"]) == n_images
        numbers += [note["id"] for note in notes["annotations"]]
        found: dict[int, list[str]] = {}
        for note in notes["annotations"]:
            found.setdefault(note["image_id"], []).append(note["caption"])
        ids = [i for i in range(160) if rows[i]["cocoSplit"] == split]
        assert found == {int(rows[i]["cocoId"]): made.captions[i] for i in ids}
    assert len(set(numbers)) == len(numbers) == 160 * 5


# ---- NSD: the brain


def test_mask_and_cortex(made: Made) -> None:
    mine, mask = made.subjects["subj02"], made.roi("nsdgeneral")
    assert mask.dtype == np.int16
    assert set(np.unique(mask)) == {-1, 0, 1}
    assert mask.shape == tuple(mine["ijk"].max(0) + 2)
    np.testing.assert_array_equal(np.argwhere(mask > 0), mine["ijk"])  # argwhere walks in C order


def labels(made: Made, volume: str) -> dict[str, int]:
    path = made.nsd / f"nsddata/freesurfer/subj02/label/{volume}.mgz.ctab"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == ["0", "Unknown"]
    assert [int(number) for number, _ in lines] == list(range(len(lines)))
    return {name: int(number) for number, name in lines}


def in_voxels(made: Made, volume: str) -> np.ndarray:
    values = made.roi(volume)
    assert values.shape == made.roi("nsdgeneral").shape
    np.testing.assert_array_equal(values < 0, made.roi("nsdgeneral") < 0)
    assert not values[made.roi("nsdgeneral") == 0].any()
    return values[made.roi("nsdgeneral") > 0]


@pytest.mark.parametrize("volume", ["prf-visualrois", "Kastner2015"])
def test_early_areas_are_cut_by_height(made: Made, volume: str) -> None:
    mine, values, names = made.subjects["subj02"], in_voxels(made, volume), labels(made, volume)
    for area in ("V1", "V2", "V3"):
        ventral, dorsal = values == names[f"{area}v"], values == names[f"{area}d"]
        np.testing.assert_array_equal(ventral | dorsal, mine[f"roi {area}"])
        assert mine["ijk"][ventral, 2].max() <= mine["ijk"][dorsal, 2].min()
        assert abs(int(ventral.sum()) - int(dorsal.sum())) <= 1
    np.testing.assert_array_equal(values == names["hV4"], mine["roi hV4"])


def test_other_labels(made: Made) -> None:
    mine = made.subjects["subj02"]
    values, names = in_voxels(made, "streams"), labels(made, "streams")
    early = np.any([mine[f"roi {area}"] for area in ("V1", "V2", "V3", "hV4")], axis=0)
    np.testing.assert_array_equal(values == names["early"], early)
    for area in ("ventral", "lateral", "parietal"):
        np.testing.assert_array_equal(values == names[area], mine[f"roi {area}"])
    assert [names[n] for n in ("midventral", "ventral", "lateral", "parietal")] == [2, 5, 6, 7]
    for volume, area in (("floc-faces", "face_like"), ("floc-places", "place_like")):
        np.testing.assert_array_equal(in_voxels(made, volume) > 0, mine[f"roi {area}"])
    assert not in_voxels(made, "floc-bodies").any()
    assert not in_voxels(made, "floc-words").any()
    depth = in_voxels(made, "prf-eccrois")
    np.testing.assert_array_equal(depth > 0, early)
    assert set(depth[mine["roi V1"]]) == {1, 2, 3, 4, 5}
    fifths = [mine["ijk"][mine["roi V1"] & (depth == k), 1] for k in range(1, 6)]
    assert all(near.max() <= far.min() for near, far in itertools.pairwise(fifths))
    assert list(labels(made, "prf-eccrois")) == ["Unknown", "ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"]


def test_noise_ceilings(made: Made) -> None:
    image = nibabel.load(made.betas("ncsnr.nii.gz"))
    values, inside = np.asanyarray(image.dataobj), made.roi("nsdgeneral") > 0
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(values[inside], made.subjects["subj02"]["ncsnr"])
    assert not values[~inside].any()


def session_volumes(made: Made) -> list[np.ndarray]:
    """Both sessions as (X, Y, Z, trials) int16."""
    assert sorted(p.name for p in made.betas("").iterdir() if "session" in p.name) == [
        "betas_session01.nii.gz",
        "betas_session02.hdf5",
    ]
    first = nibabel.load(made.betas("betas_session01.nii.gz"))
    assert first.get_data_dtype() == np.int16
    assert (first.dataobj.slope, first.dataobj.inter) == (1, 0)
    with h5py.File(made.betas("betas_session02.hdf5")) as handle:
        betas = handle["betas"]
        assert betas.dtype == np.int16
        assert betas.chunks == (240, 1, 1, 1)
        assert betas.compression is None
        return [np.asanyarray(first.dataobj), betas[()].transpose(3, 2, 1, 0)]


def test_betas_are_the_voxels_after_scaling(made: Made) -> None:
    mine, mask = made.subjects["subj02"], made.roi("nsdgeneral")
    statistics = []
    for session, volume in enumerate(session_volumes(made)):
        rows = mine["session"] == session
        assert volume.shape == (*mask.shape, 240)
        assert not volume[mask < 0].any()
        assert volume[mask == 0].std() > 300  # voxels beside the mask would be noticed
        percent = volume[mask > 0].T / 300
        train = percent[mine["image_id"][rows] < N_TRAIN]
        statistics.append((train.mean(0), train.std(0)))
        scaled = (percent - train.mean(0)) / train.std(0)
        # Half a step of int16 over the smallest spread is 2e-4.
        np.testing.assert_allclose(scaled, mine["voxels"][rows], rtol=0, atol=4e-4)
        assert 7.99 < train.std(0).min() < train.std(0).max() < 12.01  # a step is 1/300 percent
        assert np.abs(train.mean(0)).max() < 2.1
    (mean_a, spread_a), (mean_b, spread_b) = statistics
    # Sessions differ, so that scaling over all of them at once does not give the voxels.
    assert np.abs(mean_a - mean_b).max() > 1
    assert np.abs(spread_a - spread_b).max() > 1


def nsd_of(made: Made, folder: Path, **more: Any) -> None:
    subject, stimuli = Subject(made.source / "subj02.h5"), Stimuli(made.source / "stimuli.h5")
    write_nsd(folder, subject, stimuli, TEST_IDS, **{"betas": VERSION, "forms": ("nii.gz", "hdf5"), **more})


def test_the_same_input_gives_the_same_files(made: Made, tmp_path: Path) -> None:
    nsd_of(made, tmp_path / "again")
    first = {p.relative_to(made.nsd): p for p in made.nsd.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()} == set(first)
    for name, path in first.items():
        if name.suffix == ".mat":  # its header tells the time
            again = loadmat(tmp_path / "again" / name)
            assert all(np.array_equal(again[k], v) for k, v in loadmat(path).items() if k[0] != "_")
        else:
            assert (tmp_path / "again" / name).read_bytes() == path.read_bytes(), name


def test_a_larger_grid_and_one_too_small(made: Made, tmp_path: Path) -> None:
    nsd_of(made, tmp_path / "large", grid=(40, 30, 20), forms=("hdf5",))
    folder = tmp_path / "large"
    mask = np.asanyarray(nibabel.load(folder / "nsddata/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj)
    assert mask.shape == (40, 30, 20)
    np.testing.assert_array_equal(np.argwhere(mask > 0), made.subjects["subj02"]["ijk"])
    with h5py.File(folder / f"nsddata_betas/ppdata/subj02/func1pt8mm/{VERSION}/betas_session01.hdf5") as handle:
        assert handle["betas"].shape == (240, 20, 30, 40)
        small = session_volumes(made)[0][made.roi("nsdgeneral") > 0]
        np.testing.assert_array_equal(handle["betas"][()].transpose(3, 2, 1, 0)[mask > 0], small)
    with pytest.raises(UserError, match=r"outside grid \(5, 5, 5\)"):
        nsd_of(made, tmp_path / "small", grid=(5, 5, 5))
    assert not (tmp_path / "small").exists()


# ---- MindEye2


def samples(path: Path) -> list[dict[str, np.ndarray]]:
    """Samples of a webdataset in the order of the file; members of a sample stand together."""
    out: dict[str, dict[str, np.ndarray]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, part = member.name.split(".", 1)
            out.setdefault(key, {})[part] = np.load(io.BytesIO(archive.extractfile(member).read()))  # type: ignore[union-attr]
            assert key == list(out)[-1]
    assert all(len(key) == len("sample000000000") for key in out)
    return [{"key": np.array(int(key[6:])), **parts} for key, parts in out.items()]


@pytest.mark.parametrize("name", ["subj02", "subj05"])
def test_release_betas_are_bit_for_bit(made: Made, name: str) -> None:
    with h5py.File(made.mindeye2 / f"betas_all_{name}_fp32_renorm.hdf5") as handle:
        assert list(handle) == ["betas"]
        assert handle["betas"].dtype == np.float32
        np.testing.assert_array_equal(handle["betas"][()], made.subjects[name]["voxels"])


@pytest.mark.parametrize("name", ["subj02", "subj05"])
def test_release_samples(made: Made, name: str) -> None:
    mine, wds = made.subjects[name], made.mindeye2 / "wds" / name
    assert sorted(str(p.relative_to(wds)) for p in wds.rglob("*.tar")) == [
        "new_test/0.tar", "test/0.tar", "train/0.tar", "train/1.tar"
    ]  # fmt: skip
    train = [samples(wds / f"train/{k}.tar") for k in range(2)]
    test = samples(wds / "new_test/0.tar")
    shapes = {"behav.npy": (1, 17), "past_behav.npy": (15, 17), "future_behav.npy": (15, 17), "olds_behav.npy": (3, 17)}
    for group, first in ((train[0], 0), (train[1], len(train[0])), (test, 0)):
        assert [int(s["key"]) for s in group] == list(range(first, first + len(group)))
        for sample in group:
            assert {part: a.shape for part, a in sample.items() if part != "key"} == shapes
            assert {a.dtype for part, a in sample.items() if part != "key"} == {np.dtype(np.float64)}
    shared = mine["image_id"] >= N_TRAIN
    trials = [[int(s["behav.npy"][0, 5]) for s in group] for group in (*train, test)]
    assert trials[0] == np.flatnonzero(~shared & (mine["session"] == 0)).tolist()
    assert trials[1] == np.flatnonzero(~shared & (mine["session"] == 1)).tolist()
    assert trials[2] == np.flatnonzero(shared).tolist()
    assert [int(s["behav.npy"][0, 5]) for s in samples(wds / "test/0.tar")] == trials[2]  # round(2 * 37 / 40) sessions
    check_columns(mine, [s for group in (*train, test) for s in group], int(name[-1]))


def check_columns(mine: dict[str, np.ndarray], everything: list[dict[str, np.ndarray]], person: int) -> None:
    rows = {int(s["behav.npy"][0, 5]): s["behav.npy"][0] for s in everything}
    image, session = mine["image_id"], mine["session"]
    for t, row in rows.items():
        within = t - 240 * session[t]
        known = [image[t], person, session[t] + 1, within // 20 + 1, within % 20 + 1, t]
        np.testing.assert_array_equal(row, [*known, *[-1] * 10, image[t] >= N_TRAIN])
    for sample in everything:
        t = int(sample["behav.npy"][0, 5])
        for k in range(15):
            for part, other in (("past_behav.npy", t - k - 1), ("future_behav.npy", t + k + 1)):
                there = other in rows and session[other] == session[t]
                np.testing.assert_array_equal(sample[part][k], rows[other] if there else -1)
        repeats = np.flatnonzero(image == image[t])
        for k, other in enumerate(repeats):
            np.testing.assert_array_equal(sample["olds_behav.npy"][k], -1 if other == t else rows[int(other)])


def test_the_old_test_set_and_first_sessions(made: Made, tmp_path: Path) -> None:
    stimuli, session = Stimuli(made.source / "stimuli.h5"), np.arange(480) // 60
    write_mindeye2(tmp_path / "a", [changed(made, tmp_path / "a.h5", session=session)], stimuli, TEST_IDS)
    shared = made.subjects["subj02"]["image_id"] >= N_TRAIN
    old = [int(s["behav.npy"][0, 5]) for s in samples(tmp_path / "a/wds/subj02/test/0.tar")]
    assert old == np.flatnonzero(shared & (session < 7)).tolist()  # round(8 * 37 / 40)
    assert len(samples(tmp_path / "a/wds/subj02/new_test/0.tar")) == 90 > len(old)
    write_mindeye2(tmp_path / "b", [Subject(tmp_path / "a.h5", sessions=3)], stimuli, TEST_IDS)
    assert {p.name for p in (tmp_path / "b/wds/subj02/train").iterdir()} == {"0.tar", "1.tar", "2.tar"}
    with h5py.File(tmp_path / "b/betas_all_subj02_fp32_renorm.hdf5") as handle:
        np.testing.assert_array_equal(handle["betas"][()], made.subjects["subj02"]["voxels"][:180])


def test_release_images_round_back(made: Made) -> None:
    path = made.mindeye2 / "coco_images_224_float16.hdf5"
    with h5py.File(path) as handle:
        images = handle["images"]
        assert (images.shape, images.dtype, images.chunks) == ((73000, 3, 64, 64), np.float16, (1, 3, 64, 64))
        read = images[:160]
        assert not images[160:170].any()
    assert 0 <= read.min() < 0.1
    assert 0.9 < read.max() <= 1
    np.testing.assert_array_equal(np.rint(read.astype(np.float32) * 255).transpose(0, 2, 3, 1), made.images)
    every = np.arange(256)
    np.testing.assert_array_equal(np.rint((every / 255).astype(np.float16).astype(np.float32) * 255), every)
    assert path.stat().st_size < 2.4 * made.images.nbytes


def test_release_captions(made: Made) -> None:
    path = made.mindeye2 / "COCO_73k_annots_curated.npy"
    texts = np.load(path, mmap_mode="r", allow_pickle=False)
    assert (texts.shape, texts.dtype.kind) == ((73000, 5), "U")
    assert texts[:160].tolist() == made.captions
    assert set(texts[160:].ravel().tolist()) == {""}


def test_release_masks(made: Made) -> None:
    with h5py.File(made.mindeye2 / "brain_region_masks.hdf5") as handle:
        assert list(handle) == ["subj02", "subj05"]
        for name, mine in made.subjects.items():
            masks = {roi: mask[()] for roi, mask in handle[name].items()}
            assert set(masks) == {"nsd_general", "V1", "V2", "V3", "V4", "higher_vis"}
            for roi, area in (("V1", "V1"), ("V2", "V2"), ("V3", "V3"), ("V4", "hV4"), ("nsd_general", "nsdgeneral")):
                np.testing.assert_array_equal(masks[roi], mine[f"roi {area}"])
            lower = mine["roi V1"] | mine["roi V2"] | mine["roi V3"] | mine["roi hV4"]
            np.testing.assert_array_equal(masks["higher_vis"], ~lower)


# ---- what is refused


def test_a_folder_in_use_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match=r"one trial order for all subjects.*an NSD tree holds one subject only"):
        nsd_of(made, tmp_path)
    with pytest.raises(UserError, match=r"is not an empty folder.*takes several, all in one call"):
        write_mindeye2(tmp_path, [Subject(made.source / "subj02.h5")], Stimuli(made.source / "stimuli.h5"), TEST_IDS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def changed(made: Made, path: Path, **more: Any) -> Subject:
    """subj02 with some columns or attributes changed."""
    source = Subject(made.source / "subj02.h5")
    attributes = {**source.attributes, **{k: v for k, v in more.items() if k in ("name", "simulated")}}
    n = more.get("repeats", 1)  # the whole experiment so many times
    columns = {name: np.tile(getattr(source, name), n) for name in ("image_id", "session", "repeat")}
    columns |= {"trial": np.arange(n * 480), "ijk": source.ijk, "ncsnr": source.ncsnr}
    columns |= {"voxels": np.tile(made.subjects["subj02"]["voxels"], (n, 1))}
    columns |= {name: values for name, values in more.items() if name in columns}
    write_subject(path, rois=source.rois, attributes=attributes, **columns)
    return Subject(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "anna"}, r"unknown NSD subject 'anna'.*subj01"),
        ({"simulated": False}, r"changed.h5 is not simulated"),
        ({"trial": np.arange(480)[::-1]}, r"needs all trials in order"),
        ({"session": np.repeat([0, 2], 240)}, r"in sessions 0, 1, 2, ... without a gap"),
        ({"image_id": np.arange(480)}, r"do not fit .*stimuli.h5: 320 image\(s\) are not there"),
    ],
)
def test_subjects_that_no_release_could_hold(made: Made, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    subject = changed(made, tmp_path / "changed.h5", **change)
    with pytest.raises(UserError, match=message):
        write_nsd(tmp_path / "tree", subject, Stimuli(made.source / "stimuli.h5"), TEST_IDS)
    assert not (tmp_path / "tree").exists()


def test_voxels_out_of_order_and_crowded_sessions(made: Made, tmp_path: Path) -> None:
    stimuli, ijk = Stimuli(made.source / "stimuli.h5"), made.subjects["subj02"]["ijk"]
    with pytest.raises(UserError, match=r"a.h5: voxels are not in C order of the grid"):
        write_nsd(tmp_path / "tree", changed(made, tmp_path / "a.h5", ijk=ijk[::-1]), stimuli, TEST_IDS)
    with pytest.raises(UserError, match=r"has voxels at \[-1 -1 -1\]"):
        write_nsd(tmp_path / "tree", changed(made, tmp_path / "b.h5", ijk=np.full_like(ijk, -1)), stimuli, TEST_IDS)
    many = changed(made, tmp_path / "c.h5", repeats=2, session=np.zeros(960, int))
    with pytest.raises(UserError, match=r"c.h5 has 960 trials in a session; a session of NSD has 900 slots"):
        write_nsd(tmp_path / "tree", many, stimuli, TEST_IDS)
    assert not (tmp_path / "tree").exists()


def test_betas_beyond_int16_are_never_clipped(made: Made, tmp_path: Path) -> None:
    voxels = made.subjects["subj02"]["voxels"].copy()
    voxels[7, 3] = 20  # still fits, with a smaller spread
    stimuli = Stimuli(made.source / "stimuli.h5")
    write_nsd(tmp_path / "fits", changed(made, tmp_path / "a.h5", voxels=voxels), stimuli, TEST_IDS, betas=VERSION)
    path = tmp_path / f"fits/nsddata_betas/ppdata/subj02/func1pt8mm/{VERSION}/betas_session01.nii.gz"
    values = np.asanyarray(nibabel.load(path).dataobj)[made.roi("nsdgeneral") > 0][3] / 300
    slope, offset = np.polyfit(voxels[:240, 3], values, 1)
    np.testing.assert_allclose((values - offset) / slope, voxels[:240, 3], atol=4e-4)
    assert values.max() > 100
    voxels[7, 3] = 40
    with pytest.raises(UserError, match=r"b.h5: voxel 3 reaches 40.0 standard deviations; int16 betas hold at most 27"):
        write_nsd(tmp_path / "not", changed(made, tmp_path / "b.h5", voxels=voxels), stimuli, TEST_IDS)
    assert not (tmp_path / "not").exists()


def test_other_arguments_that_are_refused(made: Made, tmp_path: Path) -> None:
    subject, stimuli = Subject(made.source / "subj02.h5"), Stimuli(made.source / "stimuli.h5")
    with pytest.raises(UserError, match=r"unknown form of the betas 'nii'. Did you mean 'nii.gz'\?"):
        nsd_of(made, tmp_path / "tree", forms=("nii",))
    with pytest.raises(UserError, match=r"at least one subject, each once; got subj02, subj02"):
        write_mindeye2(tmp_path / "tree", [subject, subject], stimuli, TEST_IDS)
    with pytest.raises(UserError, match=r"0 test images do not fit"):
        write_mindeye2(tmp_path / "tree", [subject], stimuli, np.empty(0, int))
    with pytest.raises(UserError, match=r"a release holds every voxel"):
        write_mindeye2(tmp_path / "tree", [Subject(subject.path, "V1")], stimuli, TEST_IDS)
    assert not (tmp_path / "tree").exists()


# ---- nd prepare layout=


def tiny(root: Path, layout: str, **more: Any) -> Config:
    settings = {"n_train": 20, "n_val": 5, "n_test": 5, "n_voxels": 40, "n_repeats": 2, **more}
    return Config(data=data_settings(**settings), paths=PathsConfig(data=str(root)), layout=layout)


def names(root: Path) -> set[str]:
    return {p.name for p in root.iterdir() if p.suffix != ".lock"}


@pytest.mark.parametrize("layout", ["nsd", "mindeye2"])
def test_a_tree_is_written_once(tmp_path: Path, layout: str) -> None:
    cfg = tiny(tmp_path / "data", layout)
    folder, written = write_release(cfg)
    assert (folder, written) == (tmp_path / "data" / f"scenes-{layout}", True)
    assert names(tmp_path / "data") == {folder.name}  # nothing else is left beside it
    assert json.loads((folder / "simulated.json").read_text(encoding="utf-8"))["subject"] == "subj01"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert write_release(cfg) == (folder, False)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_the_prepared_data_are_used_and_left_alone(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, "mindeye2")
    prepare(tiny(tmp_path, "prepared"))
    before = {p: p.stat().st_mtime_ns for p in data_folder(cfg).iterdir()}
    folder, _ = write_release(cfg)
    assert {p: p.stat().st_mtime_ns for p in data_folder(cfg).iterdir()} == before
    prepared = columns_of(data_folder(cfg) / "subj01.h5")
    with h5py.File(folder / "betas_all_subj01_fp32_renorm.hdf5") as handle:
        np.testing.assert_array_equal(handle["betas"][()], prepared["voxels"])
    alone, _ = write_release(tiny(tmp_path / "alone", "mindeye2"))  # made for the moment: the same
    betas = "betas_all_subj01_fp32_renorm.hdf5"
    assert (alone / betas).read_bytes() == (folder / betas).read_bytes()


def test_other_settings_subjects_and_folders_are_refused(tmp_path: Path) -> None:
    folder, _ = write_release(tiny(tmp_path, "nsd"))
    with pytest.raises(UserError, match=r"other settings \(world_seed: made with 7, asked for 8\).*paths.data"):
        write_release(tiny(tmp_path, "nsd", world_seed=8))
    cfg = tiny(tmp_path, "nsd")
    cfg.subject.name = "subj02"
    with pytest.raises(UserError, match=r"\(subject: made with subj01, asked for subj02\); a tree holds one subject"):
        write_release(cfg)
    (tmp_path / "scenes-mindeye2").mkdir()
    assert write_release(tiny(tmp_path, "mindeye2"))[1]  # an empty folder holds nothing of anybody's
    (folder / "simulated.json").unlink()
    with pytest.raises(UserError, match=r"scenes-nsd exists but holds no simulated.json.*Move it away"):
        write_release(tiny(tmp_path, "nsd"))


def test_settings_that_make_no_tree(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, "nsd")
    cfg.data.source = cfg.data.name = "own"
    with pytest.raises(UserError, match=r"layout=nsd writes simulated data: set data=scenes, not data=own"):
        write_release(cfg)
    cfg = tiny(tmp_path, "nsd")
    cfg.subject.name = "subj07"
    with pytest.raises(UserError, match=r"unknown subject of data=scenes 'subj07'"):
        write_release(cfg)
    with pytest.raises(UserError, match=r"unknown layout of a release 'nds'"):
        write_release(tiny(tmp_path, "nds"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_and_a_killed_attempt_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".scenes-nsd.partial" / "tree" / "nsddata"
    left.mkdir(parents=True)

    def fail(folder: Path, *args: Any, **more: Any) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(as_release, "write_nsd", fail)
        with pytest.raises(UserError, match=r"cannot write .*scenes-nsd: no space left on the device. Free some space"):
            write_release(tiny(tmp_path, "nsd"))
    assert names(tmp_path) == set()
    left.mkdir(parents=True)
    folder, _ = write_release(tiny(tmp_path, "nsd"))
    assert names(tmp_path) == {"scenes-nsd"}
    assert (folder / "nsddata_stimuli").is_dir()
