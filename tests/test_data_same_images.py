"""The same image under two ids: found by content, nearly the same by a small copy, and never on both sides unseen."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import data_settings
from helpers_files import edited
from PIL import Image

from nd.config import Config, PathsConfig
from nd.data.prepared import Stimuli, same_across, split_of, stimuli_path, write_stimuli
from nd.data.same_images import NEAR, Across, Prints, across, check_across, named
from nd.errors import LeakError
from nd.evaluate import same_images
from nd.evaluation.scores import RunScores, Score
from nd.prepare import prepare
from nd.runs.folder import RunFolder
from nd.scenes.world import World
from nd.tables.rows import TableRow
from nd.tables.sanity_checks import sanity_checks
from nd.tables.specs import Column, Entry, Row

RNG = np.random.default_rng(3)
SCENES = World(data_settings(n_train=40, n_test=20)).images


def prints_of(images: Any, ids: Any = None) -> Prints:
    return Prints.of(np.arange(len(images)) if ids is None else np.array(ids), enumerate(images))


def as_jpeg(image: Any, quality: int = 75) -> Any:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


def test_pairs_are_those_of_a_plain_comparison() -> None:
    """Small images, so that some are near by chance; compared one by one in double precision."""
    images = RNG.integers(0, 4, (60, 8, 8, 3), dtype=np.uint8) * RNG.choice([1, 20], (60, 1, 1, 1)).astype(np.uint8)
    images[50:55] = images[:5]
    ids = RNG.permutation(1000)[:60]
    seen, test = ids[:40], ids[40:]
    found = across(prints_of(images, ids), seen, test)
    equal, near = set(), set()
    for a in range(40):
        for b in range(40, 60):
            distance = np.sqrt(np.mean((images[a].astype(float) - images[b]) ** 2))
            if (images[a] == images[b]).all():
                equal.add((int(ids[a]), int(ids[b])))
            elif distance <= NEAR:
                near.add((int(ids[a]), int(ids[b])))
    assert len(equal) == 5
    assert near
    assert (set(found.equal), set(found.near)) == (equal, near)
    assert set(across(prints_of(images, ids), seen, test, near=False).equal) == equal


def test_other_images_are_not_near_and_copies_are() -> None:
    found = across(prints_of(SCENES), np.arange(40), np.arange(40, 60))
    assert found == Across()
    changed = SCENES.copy()
    changed[40] = as_jpeg(SCENES[3])
    changed[41] = np.asarray(Image.fromarray(SCENES[4]).resize((256, 256)).resize((64, 64)))
    changed[42] = SCENES[5]
    changed[43] = SCENES[6, :, ::-1]
    assert across(prints_of(changed), np.arange(40), np.arange(40, 60)) == Across([(5, 42)], [(3, 40), (4, 41)])


def test_doubles_are_named_whatever_they_are_for() -> None:
    images = SCENES[[0, 1, 0, 2, 0, 1]]
    assert prints_of(images, [9, 8, 7, 6, 5, 4]).doubles() == [(4, 8), (5, 7), (5, 9)]


def test_prints_of_a_file_are_those_of_its_images(tmp_path: Path) -> None:
    ids = np.arange(100, 100 + len(SCENES))
    write_stimuli(tmp_path / "s.h5", images=SCENES, captions=[["x"]] * len(ids), image_id=ids)
    kept = Stimuli(tmp_path / "s.h5").prints()
    with edited(tmp_path / "s.h5") as handle:
        del handle["prints"]
    again = Stimuli(tmp_path / "s.h5").prints()
    with pytest.raises(KeyError), h5py.File(tmp_path / "s.h5") as handle:
        handle["prints"]
    for name in ("image_id", "pixels", "small"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(again, name))


def test_equal_images_across_a_split_are_refused_or_said(caplog: pytest.LogCaptureFixture) -> None:
    found = Across([(1, 7), (2, 8), (3, 9), (4, 10)], [(5, 11)])
    with pytest.raises(
        LeakError, match=r"4 test images of anna are training images under another id \(image 1 is test "
    ):
        check_across(found, "anna", "refuse")
    with caplog.at_level(logging.WARNING):
        check_across(found, "anna", "allow")
    assert "data.same_images=allow keeps them" in caplog.text
    assert "1 test images of anna are nearly training images (image 5 is test image 11)" in caplog.text
    assert named(found.equal) == (
        "image 1 is test image 7, image 2 is test image 8, image 3 is test image 9 and 1 more"
    )


@pytest.fixture
def copied(tmp_path: Path) -> Config:
    """Scenes whose test images 40 and 41 are training images 0 and, as JPEG, 1."""
    cfg = Config(data=data_settings(n_train=40, n_test=20, n_val=5), paths=PathsConfig(data=str(tmp_path)))
    images = SCENES.copy()
    images[40], images[41] = images[0], as_jpeg(images[1])
    write_stimuli(stimuli_path(cfg), images=images, captions=[["x"]] * 60, image_id=np.arange(60))
    return cfg


def test_no_step_gets_a_split_with_an_image_on_both_sides(copied: Config) -> None:
    with pytest.raises(LeakError, match="image 0 is test image 40"):
        split_of(copied)
    copied.data.same_images = "allow"
    assert 40 in split_of(copied).test_ids
    assert same_across(copied) == Across([(0, 40)], [(1, 41)])


def test_images_that_were_changed_after_preparing(tmp_path: Path) -> None:
    data = data_settings(subjects=["subj01"], n_train=40, n_test=20, n_val=5, n_voxels=40, n_repeats=2)
    cfg = Config(data=data, paths=PathsConfig(data=str(tmp_path)))
    prepare(cfg)
    split_of(cfg)
    with edited(stimuli_path(cfg)) as handle:
        handle["images"][3] = handle["images"][45]
    with pytest.raises(LeakError, match="image 3 is test image 45"):
        split_of(cfg)


def test_the_checks_of_a_table_say_which_test_images_are_training_images(copied: Config) -> None:
    copied.data.same_images = "allow"
    found = same_images(copied)
    assert found == {"equal": "image 0 is test image 40", "near": "image 1 is test image 41"}

    def row(label: str, role: str, subject: str, same: dict[str, str]) -> TableRow:
        per_image = {"image_id": np.arange(8.0), "pixcorr": RNG.random(8)}
        mean = per_image["pixcorr"].mean()
        run = RunScores(
            path=Path("scores.json"), protocol="scenes v1", test_set="", scores={"pixcorr": Score(mean, mean, mean)},
            n_images=8, n_repeats=1, oracle=False, simulated=True, control="none", same_images=same,
        )  # fmt: skip
        entry = Entry(Row(label=label, role=role), subject, copied)
        return TableRow(entry, RunFolder("evaluate", Path("run"), "0"), run, per_image)

    rows = [
        row(label, role, subject, same)
        for subject, same in (("subj01", found), ("subj02", {}))
        for label, role in (("any", "method"), ("mean", "floor"))
    ]
    said = [one for one in sanity_checks(rows, [Column(metric="pixcorr")]).findings if one.label == "images"]
    assert [(one.subject, one.text) for one in said] == [
        ("subj01", "training images are test images (image 0 is test image 40): naming one of those scores for it"),
        (
            "subj01",
            "training images are nearly test images (image 1 is test image 41): naming one of those scores for it",
        ),
    ]
