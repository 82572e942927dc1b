"""Captions and ROIs that come later: one command adds them, and what was made before stays of use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_commands import nd, succeed
from test_data_own import Lab, T, V, put_mask, put_volume

from nd.data import pieces
from nd.data.piece_records import MANIFEST, added_to, recorded_hash
from nd.data.prepared import Stimuli, open_subject, stimuli_path
from nd.errors import UserError
from nd.files import read_json, sha256_file
from nd.prepare import prepare
from nd.runs.inputs import changed_files, describe


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def prepared(lab: Lab) -> Lab:
    """Prepared without captions and ROIs; from then on no file of it is given any more."""
    prepare(lab.cfg())
    return lab.without("voxels", "image_ids", "images")


def put_captions(lab: Lab, word: str = "a cat") -> None:
    text = json.dumps({str(i): [f"{word} {i}"] for i in lab.ids})
    (lab.root / "captions.json").write_text(text, encoding="utf-8")
    lab.file("captions", "captions.json")


def read_by_a_run(lab: Lab) -> dict[str, Any]:
    folder = lab.root / "data" / "mylab"
    return describe([folder / "stimuli.h5", folder / "subj01.h5"])


def changed(lab: Lab, recorded: dict[str, Any]) -> list[str]:
    return changed_files(recorded, [Path(name) for name in recorded])


def test_captions_are_added_by_one_command(prepared: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    before, images = read_by_a_run(prepared), Stimuli(stimuli_path(prepared.cfg())).images(prepared.ids)
    put_captions(prepared)
    prepare(prepared.cfg())
    assert "wrote mylab: the stimuli," in capsys.readouterr().out
    stimuli = Stimuli(stimuli_path(prepared.cfg()))
    assert stimuli.captions(np.array([9, 3])) == [["a cat 9"], ["a cat 3"]]
    np.testing.assert_array_equal(stimuli.images(prepared.ids), images)
    assert changed(prepared, before) == []
    assert stimuli.hash_of("images") == stimuli.hash == open_subject(prepared.cfg()).attributes["stimuli_hash"]
    assert stimuli.hash_of("captions") != stimuli.hash
    prepare(prepared.cfg())
    prepare(prepared.without("captions").cfg())
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_rois_are_added_one_after_another(prepared: Lab) -> None:
    before = read_by_a_run(prepared)
    put_mask(prepared, "V1", np.arange(V) < 3)
    prepare(prepared.cfg())
    between = read_by_a_run(prepared)
    put_mask(prepared, "V4", np.arange(V) > 4)
    prepare(prepared.cfg())
    subject = open_subject(prepared.cfg())
    assert {name: np.flatnonzero(mask).tolist() for name, mask in subject.rois.items()} == {
        "V1": [0, 1, 2],
        "V4": [5, 6],
    }
    np.testing.assert_array_equal(subject.voxels(np.arange(T)), prepared.voxels)
    assert changed(prepared, before) == changed(prepared, between) == []
    assert list(added_to(prepared.root / "data" / "mylab" / "subj01.h5")) == ["rois/V1", "rois/V4"]


def test_volumes_of_rois_are_added_to_a_volume_that_was_given(lab: Lab) -> None:
    volume = np.zeros((2, 2, 2), np.int16)
    volume.reshape(-1)[:V] = 1
    put_volume(lab.file("volume", "mask.nii.gz"), volume)
    prepare(lab.cfg())
    put_volume(lab.root / "areas" / "V1.nii.gz", np.arange(8).reshape(2, 2, 2) < 2)
    lab.file("roi_volumes", "areas")
    prepare(lab.without("voxels", "image_ids", "images").cfg())
    assert np.flatnonzero(open_subject(lab.cfg()).rois["V1"]).tolist() == [0, 1]


def test_what_was_added_is_not_exchanged(prepared: Lab) -> None:
    put_captions(prepared)
    put_mask(prepared, "V1", np.arange(V) < 3)
    prepare(prepared.cfg())
    put_captions(prepared, "a dog")
    with pytest.raises(
        UserError, match=r"stimuli.h5 was prepared with other settings \(captions: made with \w+, asked"
    ):
        prepare(prepared.cfg())
    put_captions(prepared)
    put_mask(prepared, "V1", np.arange(V) < 4)
    with pytest.raises(UserError, match=r"subj01.h5 was prepared with other settings \(rois/V1: made with \w+, asked"):
        prepare(prepared.cfg())


@pytest.mark.parametrize("kind", ["captions", "rois"])
def test_a_run_knows_what_was_added_before_it(kind: str, lab: Lab) -> None:
    """A run that read the first version of what was added does not pass for one of another version."""

    def added(second: bool) -> dict[str, Any]:
        shutil.rmtree(lab.root / "data", ignore_errors=True)
        prepare(replace_without(lab))
        put_captions(lab, "a dog" if second and kind == "captions" else "a cat")
        put_mask(lab, "V1", np.arange(V) < (4 if second and kind == "rois" else 3))
        prepare(lab.cfg())
        return read_by_a_run(lab)

    first, second = added(second=False), added(second=True)
    assert [state["sha256"] for state in first.values()] == [state["sha256"] for state in second.values()]
    (said,) = changed(lab, first)
    assert ("stimuli.h5" if kind == "captions" else "subj01.h5") in said


def replace_without(lab: Lab) -> Any:
    cfg = lab.cfg()
    return replace(cfg, data=replace(cfg.data, captions="", rois=""))


def test_what_cannot_be_added_leaves_everything_as_it_was(prepared: Lab) -> None:
    folder = prepared.root / "data" / "mylab"
    before = {path: path.read_bytes() for path in folder.glob("[!.]*")}
    (prepared.root / "captions.json").write_text('{"3": ["a cat"]}', encoding="utf-8")
    prepared.file("captions", "captions.json")
    with pytest.raises(UserError, match="11 of 12 images have no caption"):
        prepare(prepared.cfg())
    prepared.without("captions")
    put_mask(prepared, "V1", np.ones(V + 1))
    with pytest.raises(UserError, match=r"V1.npy has shape \(8,\), but data.voxels has 7 columns"):
        prepare(prepared.cfg())
    assert {path: path.read_bytes() for path in folder.glob("[!.]*")} == before


def test_a_process_killed_before_the_copy_takes_its_place(prepared: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest then speaks of a file that is not there yet, and still knows the one that is."""
    put_captions(prepared)
    plain = pieces.record_piece

    def killed(*given: Any) -> None:
        plain(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "record_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(prepared.cfg())
    monkeypatch.undo()
    path = stimuli_path(prepared.cfg())
    assert "added" in read_json(path.parent / MANIFEST)["files"]["stimuli.h5"]
    assert (added_to(path), recorded_hash(path)) == ({}, sha256_file(path))
    prepare(prepared.cfg())
    assert Stimuli(path).has_captions
    assert list(added_to(path)) == ["captions"]


def test_a_copied_folder_stays_what_earlier_runs_read(prepared: Lab) -> None:
    """Copied without its times, as many programs do."""
    before = read_by_a_run(prepared)
    put_captions(prepared)
    prepare(prepared.cfg())
    later = read_by_a_run(prepared)
    for path in (prepared.root / "data" / "mylab").glob("*.h5"):
        path.touch()
    assert changed(prepared, before) == changed(prepared, later) == []


WORDS = [
    "data=own", "data.voxels=voxels.npy", "data.image_ids=image_ids.npy", "data.images=images", "data.n_val=2",
    "data.n_test=3", "data.image_size=64", "backbone=scenes", "trainer.accelerator=cpu",
    "trainer.progress=false", "protocol.n_boot=10",
]  # fmt: skip
LATER = [word for word in WORDS if word.partition("=")[0] not in ("data.voxels", "data.image_ids", "data.images")]


@pytest.mark.slow
def test_runs_made_before_go_on_and_new_ones_read_what_was_added(lab: Lab) -> None:
    succeed("prepare", *WORDS, cwd=lab.root)
    refused = nd("run", *LATER, "method=vae", "subject.roi=V9", cwd=lab.root)
    assert "unknown ROI of subj01.h5 'V9'" in refused.err
    assert not (lab.root / "cache").exists()  # said before any feature is extracted
    succeed("run", *LATER, "method=vae", cwd=lab.root)
    refused = nd("extract", *LATER, "target=c", cwd=lab.root)
    assert refused.code == 2
    assert "data.captions=<file>" in refused.err
    put_captions(lab)
    put_mask(lab, "early", np.arange(V) < 5)
    added = succeed("prepare", *LATER, "data.captions=captions.json", "data.rois=masks", cwd=lab.root)
    assert "wrote own: 1 subject and the stimuli" in added.out
    before = {path: path.stat().st_mtime_ns for path in (lab.root / "runs").rglob("*")}
    assert succeed("run", *LATER, "method=vae", cwd=lab.root).out.count("done already") == 1
    assert {path: path.stat().st_mtime_ns for path in (lab.root / "runs").rglob("*")} == before
    assert "nothing to do" in succeed("extract", *LATER, "target=z", cwd=lab.root).out
    succeed("extract", *LATER, "target=c", cwd=lab.root)
    succeed("run", *LATER, "method=vae", "subject.roi=early", cwd=lab.root)
