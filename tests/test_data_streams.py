"""Streams of the visual system as ROIs: built in, given in YAML, and refused with the names there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nd.config import Config
from nd.config.application import compose
from nd.data.prepared import open_subject, subject_path
from nd.data.subject import Subject
from nd.data.subject_file import write_subject
from nd.errors import UserError
from nd.runs.identity import run_id


@pytest.fixture(scope="module")
def scenes(small_world: Config) -> Path:
    return subject_path(small_world)


def with_rois(path: Path, *names: str) -> Path:
    """A file of one voxel for each name, and one outside all."""
    masks = {name: np.arange(len(names) + 1) == k for k, name in enumerate(names)}
    one = dict.fromkeys(("image_id", "session", "repeat", "trial"), np.zeros(1, np.int32))
    places = np.zeros((len(names) + 1, 3), np.int16)
    write_subject(path, voxels=np.ones((1, len(places)), np.float32), rois=masks, ijk=places, attributes={}, **one)
    return path


def test_streams_of_scenes_are_its_areas_and_leave_nothing_out(scenes: Path) -> None:
    subject = Subject(scenes)
    masks = {name: subject.inside(f"{name}_stream") for name in ("early", "ventral", "lateral", "dorsal")}
    np.testing.assert_array_equal(masks["early"], subject.inside("V1+V2+V3+hV4"))
    np.testing.assert_array_equal(masks["ventral"], subject.inside("ventral+face_like+place_like"))
    np.testing.assert_array_equal(masks["dorsal"], subject.inside("parietal"))
    np.testing.assert_array_equal(np.sum(list(masks.values()), 0), np.ones(subject.n_voxels))
    assert Subject(scenes, "early_stream+dorsal_stream").n_voxels == (masks["early"] | masks["dorsal"]).sum()


def test_streams_of_the_atlas_are_its_labels(tmp_path: Path) -> None:
    """Where its own early label is there, the areas are not looked at."""
    names = ("early", "V1", "midventral", "ventral", "midlateral", "midparietal", "parietal", "other")
    subject = Subject(with_rois(tmp_path / "someone.h5", *names))
    found = {name: np.flatnonzero(subject.inside(f"{name}_stream")).tolist() for name in ("early", "ventral", "dorsal")}
    assert found == {"early": [0], "ventral": [2, 3], "dorsal": [5, 6]}
    assert np.flatnonzero(subject.inside("lateral_stream")).tolist() == [4]  # what there is of it


def test_an_roi_of_that_name_goes_before_a_stream(tmp_path: Path) -> None:
    path = with_rois(tmp_path / "someone.h5", "parietal", "dorsal_stream")
    assert np.flatnonzero(Subject(path).inside("dorsal_stream")).tolist() == [1]


@pytest.mark.parametrize(
    ("roi", "wanted"),
    [("ecc4", [0]), ("ecc4+", [1]), ("V1+ecc4+", [1, 2]), ("ecc4++V1", [1, 2]), ("ecc4+V1", [0, 2]), ("V1+V2", [3])],
)
def test_names_that_hold_a_plus_can_be_chosen(tmp_path: Path, roi: str, wanted: list[int]) -> None:
    """One of NSD's label tables calls a label ecc4+, and files of one's own may be called anything."""
    subject = Subject(with_rois(tmp_path / "someone.h5", "ecc4", "ecc4+", "V1", "V1+V2"), roi)
    assert np.flatnonzero(subject.mask_of(roi)).tolist() == wanted


def test_table_of_streams_in_yaml(small_world: Config, tmp_path: Path) -> None:
    """It replaces what is built in and may add streams; a mapper of a recipe then takes one."""
    sizes = {"n_train": 60, "n_val": 10, "n_test": 12, "n_repeats": 2, "n_voxels": 150}
    given = [f"data.{name}={value}" for name, value in sizes.items()]
    given += ["data.subjects=[subj01,subj02]", f"paths.data={small_world.paths.data}"]
    table = "data.streams={dorsal: [parietal, lateral], faces: [face_like]}"
    cfg = compose([*given, table, "subject.roi=dorsal_stream"])
    whole = open_subject(compose(given))
    assert open_subject(cfg).n_voxels == whole.inside("parietal+lateral").sum()
    faces = compose([*given, table, "method=takagi", "method.targets.c.roi=faces_stream"])
    assert open_subject(faces.with_target("c")).n_voxels == whole.inside("face_like").sum()
    cfgs = [compose([*given, *more, "subject.roi=dorsal_stream"]) for more in ([], [table])]
    assert run_id("train", cfgs[0]) != run_id("train", cfgs[1])


@pytest.mark.parametrize("value", ["{dorsal: V1}", "{dorsal: []}", "{dorsal: [1, 2]}"])
def test_table_of_another_form_is_refused(value: str) -> None:
    with pytest.raises(
        UserError, match=r"data.streams: dorsal is .*, wanted a list of ROIs: data.streams=\{dorsal: \["
    ):
        compose([f"data.streams={value}"])


@pytest.mark.parametrize(
    ("roi", "streams", "message"),
    [
        (
            "ventral_stream", {},
            r"someone.h5 has no ROI ventral, midventral, face_like, place_like, of which the ventral stream is made; it"
            r" has: IPS0, VO1\. Say which .*data.streams=\{ventral: \[IPS0, VO1\]\}",
        ),
        ("dorsal_stream", {"dorsal": ["IPS0", "IPS1"]}, r"has no ROI IPS1, of which the dorsal stream is made"),
        ("ventrall_stream", {}, r"unknown stream 'ventrall'\. Did you mean 'ventral'\? Allowed: dorsal, early, lat"),
        ("ips0", {}, r"unknown ROI of someone.h5 'ips0'"),
    ],
)  # fmt: skip
def test_roi_table_without_streams_is_said_with_its_names(
    tmp_path: Path, roi: str, streams: dict[str, Any], message: str
) -> None:
    path = with_rois(tmp_path / "someone.h5", "VO1", "IPS0")
    with pytest.raises(UserError, match=message):
        Subject(path, roi, streams=streams)
    given = Subject(path, "ventral_stream", streams={"ventral": ["VO1"]})
    assert given.n_voxels == 1
