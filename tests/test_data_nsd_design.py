"""NSD's design: index bases, the frozen splits of all eight subjects, and design files that are not NSD's."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_config import data_settings
from numpy.typing import NDArray
from scipy.io import savemat

from nd.data.nsd import facts
from nd.data.nsd.design import read_coco_ids, read_trials
from nd.data.nsd.facts import PEOPLE, SHARED_COCO_HASH, SHARED_HASH, check_split, number
from nd.data.nsd.tree import DESIGN, SIMULATED_MARK, STIM_INFO
from nd.data.splits import SESSIONS_OF, subject_split
from nd.data.subject import Subject
from nd.data.subject_file import repeats_of, write_subject
from nd.errors import UserError
from nd.files import sha256_json

N_TRIALS, PER_SESSION, N_SHARED = 30_000, 750, 1000


def full_size_order(rng: np.random.Generator) -> NDArray[np.int64]:
    """A made-up order (30,000,) of image positions 0..9999, each three times, in which as many images as in NSD's own
    order appear only after session 30, 32 or 37: 202 + 430 + 159, of which 23 + 52 + 18 are shared."""
    others = rng.permutation(np.arange(N_SHARED, 10_000))
    shared = rng.permutation(N_SHARED)
    late = {
        (38, 40): np.r_[shared[:18], others[:141]],
        (33, 37): np.r_[shared[18:70], others[141:519]],
        (31, 32): np.r_[shared[70:93], others[519:698]],
    }
    order = np.full(N_TRIALS, -1)
    for (first, last), images in late.items():
        slots = rng.permutation(np.arange((first - 1) * PER_SESSION, last * PER_SESSION))[: 3 * len(images)]
        order[slots] = np.repeat(images, 3)
    early = np.r_[shared[93:], others[698:]]
    free = np.flatnonzero(order < 0)
    order[free[: len(early)]] = rng.permutation(early)  # each once within the first sessions
    order[free[len(early) :]] = rng.permutation(np.repeat(early, 2))
    return order


def full_size_design(root: Path) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    shared = np.sort(rng.permutation(73_000)[:N_SHARED]) + 1
    rest = rng.permutation(np.setdiff1d(np.arange(1, 73_001), shared))[: 8 * 9000].reshape(8, 9000)
    pattern = np.zeros((40, 12, 75), np.uint8)
    for run in range(12):
        pattern[:, run, : 63 if run % 2 == 0 else 62] = 1  # odd runs have 63 trials, even ones 62
    content = {
        "masterordering": full_size_order(rng)[None] + 1.0,
        "subjectim": np.concatenate([np.tile(shared, (8, 1)), rest], 1).astype(np.float64),
        "sharedix": shared[None].astype(np.float64),
        "stimpattern": pattern,
    }
    write_design(root, content)
    return content


def write_design(root: Path, content: dict[str, NDArray[Any]]) -> None:
    (root / DESIGN).parent.mkdir(parents=True, exist_ok=True)
    savemat(root / DESIGN, content)


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, NDArray[Any]]]]:
    root = tmp_path_factory.mktemp("nsd")
    content = full_size_design(root)
    with pytest.MonkeyPatch.context() as patch:  # its shared images are made up too
        patch.setattr(facts, "SHARED_HASH", sha256_json((content["sharedix"][0].astype(int) - 1).tolist()))
        yield root, content


def small_design() -> dict[str, NDArray[Any]]:
    """12 images per subject (4 shared), 3 sessions of 10, 12 and 14 trials."""
    rng = np.random.default_rng(1)
    pattern = np.zeros((3, 12, 75), np.uint8)
    for session, n in enumerate((10, 12, 14)):
        pattern[session].ravel()[:n] = 1
    shared = np.array([3, 11, 40, 77])
    images = np.stack([np.r_[shared, 100 + s * 10 + np.arange(8)] for s in range(8)])
    order = rng.permutation(np.repeat(np.arange(1, 13), 3))
    return {
        "masterordering": order[None].astype(float),
        "subjectim": images.astype(float),
        "sharedix": shared[None].astype(float),
        "stimpattern": pattern,
    }


@pytest.mark.parametrize("name", PEOPLE)
def test_trials_of_all_subjects_equal_a_plain_loop(design: tuple[Path, dict[str, Any]], name: str) -> None:
    root, content = design
    trials, known = read_trials(root, name), PEOPLE[name]
    assert len(trials.image_id) == known.sessions * PER_SESSION
    for t in (0, 1, 749, 750, len(trials.image_id) - 1):
        position = int(content["masterordering"][0, t])  # 1-based, as MATLAB wrote it
        assert trials.image_id[t] + 1 == content["subjectim"][number(name) - 1, position - 1]
        assert trials.shared[t] == (position <= N_SHARED)
        assert trials.session[t] == t // PER_SESSION
    assert len(np.unique(trials.image_id)) == known.images
    assert len(np.unique(trials.image_id[trials.shared])) == known.shared
    assert trials.image_id.min() >= 0
    assert trials.image_id.max() < 73_000
    assert trials.planned == known.sessions


def test_presentations_equal_a_plain_count() -> None:
    ids = np.random.default_rng(2).integers(0, 7, 60)
    seen: dict[int, int] = {}
    wanted = []
    for i in ids.tolist():
        wanted.append(seen.get(i, 0))
        seen[i] = wanted[-1] + 1
    np.testing.assert_array_equal(repeats_of(ids), wanted)


def prepared(folder: Path, root: Path, name: str, **attributes: Any) -> Path:
    """A subject file with NSD's trials and two voxels of noise."""
    trials = read_trials(root, name)
    n, path = len(trials.image_id), folder / f"{name}.h5"
    facts = {"name": name, "source": "nsd", "simulated": False, "sessions_scanned": trials.planned, **attributes}
    write_subject(
        path, voxels=np.zeros((n, 2), np.float32), image_id=trials.image_id, session=trials.session,
        repeat=trials.repeat, trial=np.arange(n), held_out=trials.shared, rois={}, ijk=np.zeros((2, 3), np.int16),
        attributes=facts,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("split", ["nsd982", "nsd1000"])
def test_splits_of_all_subjects(design: tuple[Path, Any], tmp_path: Path, split: str, name: str) -> None:
    known, path = PEOPLE[name], prepared(tmp_path, design[0], name)
    if split == "nsd982" and known.sessions < 37:
        with pytest.raises(UserError, match=rf"holds {known.sessions} sessions, but 37 are asked for"):
            Subject(path, sessions=SESSIONS_OF[split])
        return
    subject = Subject(path, sessions=SESSIONS_OF.get(split, 0))
    check_split(split, subject)
    data = data_settings(name="nsd", source="nsd", split=split, n_val=300)
    (fold,) = subject_split(data, subject.image_id, subject.held_out).folds
    parts = [fold.train, fold.val, fold.test]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    n_test, n_images = (982, 9841) if split == "nsd982" else (known.shared, known.images)
    assert (len(fold.test), len(fold.val), len(together)) == (n_test, 300, n_images)
    everything = read_trials(design[0], name)
    shared = np.unique(everything.image_id[everything.shared])
    assert not np.isin(np.r_[fold.train, fold.val], shared).any(), "a shared image must never be trained on"
    assert np.isin(fold.test, shared).all()


def test_nsd982_is_the_same_for_its_four_subjects(design: tuple[Path, Any], tmp_path: Path) -> None:
    tests = []
    for name in ("subj01", "subj02", "subj05", "subj07"):
        subject = Subject(prepared(tmp_path, design[0], name), sessions=37)
        tests.append(np.unique(subject.image_id[subject.held_out]).tolist())
    assert all(one == tests[0] for one in tests)
    assert len(tests[0]) == 982


def test_the_hash_of_a_split_follows_its_images(design: tuple[Path, Any], tmp_path: Path) -> None:
    subject = Subject(prepared(tmp_path, design[0], "subj01"))
    data = data_settings(name="nsd", source="nsd", split="nsd1000", n_val=300)
    first = subject_split(data, subject.image_id, subject.held_out).hash
    assert first == subject_split(data, subject.image_id[::-1], subject.held_out[::-1]).hash, "order must not matter"
    other = subject.image_id + 1
    assert first != subject_split(data, other, subject.held_out).hash


def test_images_that_are_not_as_many_as_the_splits_name_says(design: tuple[Path, Any], tmp_path: Path) -> None:
    path = prepared(tmp_path, design[0], "subj01")
    subject = Subject(path)
    subject.held_out = subject.held_out & (subject.image_id != subject.image_id[subject.held_out][0])
    with pytest.raises(UserError, match=r"nsd1000 of subj01 has 1000 test images among 10000, but .* shows 999 among"):
        check_split("nsd1000", subject)


def test_nsd1000_is_known_by_its_73k_ids(design: tuple[Path, Any], tmp_path: Path) -> None:
    subject = Subject(prepared(tmp_path, design[0], "subj01"))
    check_split("nsd1000", subject)
    subject.image_id = subject.image_id + 1  # 1-based
    with pytest.raises(UserError, match=r"0-based 73k ids with hash \w+, NSD's shared1000 has \w+. Were 1-based ids"):
        check_split("nsd1000", subject)
    check_split("nsd982", Subject(prepared(tmp_path, design[0], "subj02"), sessions=37))


def test_the_hashes_are_those_of_nsds_own_ids(nsd_shared_ids: Path) -> None:
    with open(nsd_shared_ids, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    for column, pinned in (("nsd_id_0based", SHARED_HASH), ("coco_id", SHARED_COCO_HASH)):
        assert sha256_json(sorted(int(row[column]) for row in rows)) == pinned


def test_nsd1000_needs_every_session(design: tuple[Path, Any], tmp_path: Path) -> None:
    subject = Subject(prepared(tmp_path, design[0], "subj01"), sessions=12)
    with pytest.raises(UserError, match=r"uses all 40 sessions of subj01, but .*subj01.h5 holds 12.*nsd_partial"):
        check_split("nsd1000", subject)
    check_split("nsd_partial", subject)


def test_a_part_of_the_sessions(tmp_path: Path) -> None:
    content = small_design()
    write_design(tmp_path, content)
    trials = read_trials(tmp_path, "subj03", sessions=2)
    np.testing.assert_array_equal(trials.per_session, [10, 12])
    np.testing.assert_array_equal(trials.image_id, read_trials(tmp_path, "subj03").image_id[:22])
    assert trials.planned == 3
    with pytest.raises(UserError, match=r"data.sessions=9, but subj03 has 3 sessions"):
        read_trials(tmp_path, "subj03", sessions=9)


def with_change(key: str, value: Any) -> dict[str, Any]:
    return small_design() | {key: value}


BROKEN = {
    "lacks sharedix; it is not NSD's design": {k: v for k, v in small_design().items() if k != "sharedix"},
    r"the first 4 images of subj01 in subjectim are not those of sharedix": with_change(
        "sharedix", np.array([[3.0, 11, 40, 78]])
    ),
    "subjectim lists 1 image ids of subj01 twice": with_change(
        "subjectim", np.where(small_design()["subjectim"] == 101, 100, small_design()["subjectim"])
    ),
    "masterordering does not give 36 trials of images 1..12": with_change("masterordering", np.full((1, 36), 13.0)),
    "masterordering does not give 36 trials": with_change("masterordering", np.ones((1, 30))),
    r"subjectim has shape \(1, 12\) and no row for subj01|no row": with_change("subjectim", np.ones((0, 12))),
    r"stimpattern has shape \(2, 3\)": with_change("stimpattern", np.ones((2, 3))),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_design_that_contradicts_itself(tmp_path: Path, message: str) -> None:
    write_design(tmp_path, BROKEN[message])
    with pytest.raises(UserError, match=message):
        read_trials(tmp_path, "subj01")


def test_missing_and_damaged_design(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nsd_expdesign.mat is missing. `nd doctor data=nsd`"):
        read_trials(tmp_path, "subj01")
    write_design(tmp_path, small_design())
    path = tmp_path / DESIGN
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"nsd_expdesign.mat is not a readable MATLAB 5 file"):
        read_trials(tmp_path, "subj01")


def write_list(root: Path, coco: dict[int, int]) -> None:
    (root / STIM_INFO).parent.mkdir(parents=True, exist_ok=True)
    lines = [",cocoId,cocoSplit,nsdId", *(f"{i},{coco_id},train2017,{i}" for i, coco_id in coco.items())]
    (root / STIM_INFO).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_coco_ids_by_0_based_id(tmp_path: Path) -> None:
    write_list(tmp_path, {i: 500 + i for i in range(10)})
    (tmp_path / SIMULATED_MARK).write_text("made up", encoding="utf-8")
    np.testing.assert_array_equal(read_coco_ids(tmp_path, np.array([7, 0]), np.array([3])), [507, 500])
    with pytest.raises(UserError, match=r"nsd_stim_info_merged.csv lists no image 10"):
        read_coco_ids(tmp_path, np.array([10]), np.array([3]))


def test_shared_images_that_are_not_nsds(tmp_path: Path) -> None:
    write_list(tmp_path, {i: 500 + i for i in range(10)})
    with pytest.raises(UserError, match=rf"have COCO ids with hash \w+ .* shared1000 has {SHARED_COCO_HASH}"):
        read_coco_ids(tmp_path, np.array([1]), np.array([3]))


@pytest.mark.nsd
def test_the_pinned_hash_is_that_of_nsds_shared_images(coco_ids_file: Path, tmp_path: Path) -> None:
    """The first 1,000 COCO ids of subjects 1, 2, 5 and 7 are the shared images: their hash is the pinned one."""
    import io
    import zipfile

    with zipfile.ZipFile(coco_ids_file) as archive:
        for subject in (1, 2, 5, 7):
            ids = np.load(io.BytesIO(archive.read(f"cocoID/cocoId_correct_sub{subject}.npy")))
            write_list(tmp_path, dict(enumerate(ids[:N_SHARED].tolist())))
            found = read_coco_ids(tmp_path, np.arange(3), np.arange(N_SHARED))
            np.testing.assert_array_equal(found, ids[:3])


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",cocoId,nsdId\n0,x,1\n"])
def test_a_list_of_images_that_is_none(tmp_path: Path, text: str) -> None:
    write_list(tmp_path, {})
    (tmp_path / STIM_INFO).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"is not NSD's list of images"):
        read_coco_ids(tmp_path, np.array([1]), np.array([1]))
