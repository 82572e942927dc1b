"""People's own fMRI: what was given is found again trial by trial, and nothing is written of what cannot be used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_config import data_settings
from numpy.typing import NDArray
from PIL import Image

from nd.config import Config, PathsConfig, SubjectConfig
from nd.config.application import compose, derive
from nd.data.own import pieces_of
from nd.data.prepared import Stimuli, Subject, open_subject, same_across, split_of, stimuli_path
from nd.errors import LeakError, UserError
from nd.files import partial_path, read_json
from nd.mappers.training.pretrained import others_of
from nd.prepare import prepare
from nd.tables.specs import expand, load_spec

T, V, N, SIDE = 60, 7, 12, 8


class Lab:
    """Files of a small study in ``root``: T trials of N images (ids 3, 6, ...), and the arrays behind them."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(5)
        self.root = root
        self.ids = np.arange(1, N + 1) * 3
        self.voxels = rng.normal(size=(T, V)).astype(np.float32)
        self.image_ids = rng.permutation(np.repeat(self.ids, T // N))
        self.images = {int(i): rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in self.ids}
        self.given: dict[str, Any] = {"n_test": 3, "n_val": 2, "image_size": SIDE}
        self.put("voxels", self.voxels)
        self.put("image_ids", self.image_ids)
        (root / "images").mkdir()
        self.given["images"] = str(root / "images")
        for i, image in self.images.items():
            Image.fromarray(image).save(root / "images" / f"{i:06d}.png")

    def put(self, key: str, array: Any) -> Path:
        """Save an array as <key>.npy and give it."""
        np.save(self.root / f"{key}.npy", np.asarray(array))
        return self.file(key, f"{key}.npy")

    def file(self, key: str, name: str) -> Path:
        self.given[key] = str(self.root / name)
        return self.root / name

    def text(self, key: str, content: str) -> Path:
        path = self.file(key, f"{key}.txt")
        path.write_text(content, encoding="utf-8")
        return path

    def cfg(self, subject: str = "subj01", **more: Any) -> Config:
        data = {"name": "mylab", "source": "own", "split": "own", "simulated": False, "subjects": [subject]}
        cfg = Config(data=data_settings(**(data | self.given | more)), subject=SubjectConfig(name=subject))
        cfg.paths = PathsConfig(data=str(self.root / "data"))
        cfg.trainer.progress = False
        return cfg

    def without(self, *keys: str) -> Lab:
        self.given = {key: value for key, value in self.given.items() if key not in keys}
        return self

    def check_refused(self, message: str, **more: Any) -> None:
        """Preparing says so, and leaves nothing behind."""
        with pytest.raises(UserError, match=message):
            prepare(self.cfg(**more))
        assert not (self.root / "data").exists()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def hash_order(ids: NDArray[Any]) -> list[int]:
    return sorted(map(int, ids), key=lambda i: hashlib.sha256(b"own-test:%d" % i).hexdigest())


def test_everything_given_is_found_again(lab: Lab) -> None:
    cfg = lab.cfg()
    assert prepare(cfg) == lab.root / "data" / "mylab"
    subject, stimuli = open_subject(cfg), Stimuli(stimuli_path(cfg))
    np.testing.assert_array_equal(subject.voxels(np.arange(T)), lab.voxels)
    np.testing.assert_array_equal(subject.image_id, lab.image_ids)
    np.testing.assert_array_equal(subject.trial, np.arange(T))
    np.testing.assert_array_equal(subject.session, np.zeros(T))
    seen: list[int] = []
    for trial, image in enumerate(lab.image_ids):
        assert subject.repeat[trial] == seen.count(image)
        seen.append(image)
    np.testing.assert_array_equal(stimuli.image_id, lab.ids)
    for i, image in lab.images.items():
        np.testing.assert_array_equal(stimuli.images(np.array([i]))[0], image)
    assert subject.rois == {}
    assert (subject.ijk == -1).all()


def test_the_file_says_what_it_was_made_from(lab: Lab) -> None:
    folder = prepare(lab.cfg())
    attributes = Subject(folder / "subj01.h5").attributes
    sha = hashlib.sha256((lab.root / "voxels.npy").read_bytes()).hexdigest()[:12]
    wanted = {"name": "subj01", "source": "own", "simulated": False, "scaling": "none (as given)", "constant_voxels": 0}
    wanted |= {"voxels_file": "voxels.npy", "voxels_sha256": sha, "image_ids_file": "image_ids.npy"}
    wanted |= {"stimuli_hash": Stimuli(folder / "stimuli.h5").hash}
    assert attributes.items() >= wanted.items()
    assert read_json(folder / "manifest.json")["files"]["subj01.h5"]["settings"]["voxels"] == sha
    assert not any(str(lab.root) in str(value) for value in attributes.values())


def test_test_images_are_the_first_by_hash_and_the_split_takes_them(lab: Lab) -> None:
    cfg = lab.cfg()
    prepare(cfg)
    subject, (fold,) = open_subject(cfg), split_of(cfg).folds
    test = hash_order(lab.ids)[:3]
    np.testing.assert_array_equal(subject.held_out, np.isin(lab.image_ids, test))
    np.testing.assert_array_equal(fold.test, np.sort(test))
    np.testing.assert_array_equal(np.union1d(fold.seen, test), lab.ids)
    assert len(fold.val) == 2


def test_test_images_and_sessions_as_named(lab: Lab) -> None:
    lab.text("test_ids", "image\n6\n9\n6\n")
    sessions = lab.put("session_ids", np.repeat([20, 4, 11], T // 3))
    cfg = lab.cfg()
    subject = Subject(prepare(cfg) / "subj01.h5")
    np.testing.assert_array_equal(subject.held_out, np.isin(lab.image_ids, [6, 9]))
    np.testing.assert_array_equal(subject.session, np.repeat([2, 0, 1], T // 3))
    assert subject.attributes["test_images"] == "named in test_ids"
    assert subject.attributes["session_ids_file"] == sessions.name


@pytest.mark.parametrize("dtype", ["float64", "float16", "int16", ">f4", "uint8"])
def test_other_number_types_become_float32(lab: Lab, dtype: str) -> None:
    given = (100 * np.abs(lab.voxels)).astype(dtype)
    lab.put("voxels", np.asfortranarray(given))
    np.testing.assert_array_equal(open_subject(_prepared(lab)).voxels(np.arange(T)), given.astype(np.float32))


def _prepared(lab: Lab) -> Config:
    cfg = lab.cfg()
    prepare(cfg)
    return cfg


@pytest.mark.parametrize("heading", ["", "image_id\n", '"image"\r\n', "\ufeff", "\ufeffBild\n"])
def test_image_ids_as_text(lab: Lab, heading: str) -> None:
    lab.text("image_ids", heading + "\n".join(map(str, lab.image_ids)) + "\n\n")
    np.testing.assert_array_equal(open_subject(_prepared(lab)).image_id, lab.image_ids)


def test_captions_by_image_id(lab: Lab) -> None:
    table = {str(i): [f"image {i}", "a image"] for i in lab.ids}
    lab.file("captions", "captions.json").write_text(json.dumps(table), encoding="utf-8")
    stimuli = Stimuli(stimuli_path(_prepared(lab)))
    assert stimuli.captions(np.array([9, 3])) == [["image 9", "a image"], ["image 3", "a image"]]


def test_images_without_a_caption(lab: Lab) -> None:
    lab.file("captions", "captions.json").write_text('{"3": ["x"]}', encoding="utf-8")
    lab.check_refused(r"11 of 12 images have no caption in .*captions.json \(first: image 6\)")


def test_no_captions_is_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cfg = _prepared(lab)
    assert "data.captions was not given, so targets made of captions (c, clip_text) cannot be extracted" in caplog.text
    with pytest.raises(UserError, match=r"stimuli.h5 holds no captions, of which targets c and clip_text are made"):
        Stimuli(stimuli_path(cfg)).captions(lab.ids)


def test_voxels_constant_in_training_are_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    voxels, test = lab.voxels.copy(), np.isin(lab.image_ids, hash_order(lab.ids)[:3])
    voxels[:, 2] = 4.5
    voxels[~test, 4] = 0  # varies in test trials alone, which must not count
    voxels[test, 5] = 0
    lab.put("voxels", voxels)
    with caplog.at_level(logging.WARNING):
        subject = open_subject(_prepared(lab))
    assert "2 of 7 voxels of subj01 never vary in its training trials" in caplog.text
    assert subject.attributes["constant_voxels"] == 2
    np.testing.assert_array_equal(subject.voxels(np.arange(T)), voxels)


def test_the_same_command_does_nothing_with_or_without_the_files(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(lab.cfg())
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    capsys.readouterr()
    prepare(lab.cfg())
    prepare(lab.without("voxels", "image_ids", "images").cfg())
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_a_second_subject_joins(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(lab.cfg())
    stimuli = (folder / "stimuli.h5").read_bytes()
    lab.put("voxels", lab.voxels[:20, :4] + 1)
    order = lab.put("image_ids", lab.image_ids[:20])
    lab.without("images")  # they are there already
    prepare(lab.cfg("other"))
    assert "wrote mylab: 1 subject," in capsys.readouterr().out
    np.testing.assert_array_equal(open_subject(lab.cfg("other")).voxels(np.arange(20)), lab.voxels[:20, :4] + 1)
    assert (folder / "stimuli.h5").read_bytes() == stimuli
    assert {p.name for p in folder.glob("[!.]*")} == {"manifest.json", "other.h5", "stimuli.h5", "subj01.h5"}
    np.save(order, np.full(20, 77))
    with pytest.raises(UserError, match=r"1 images .* \(first: image 77, in trial 0\) in .*stimuli.h5, which was prep"):
        prepare(lab.cfg("third"))


@pytest.mark.parametrize("key", ["voxels", "image_ids", "session_ids", "test_ids"])
def test_other_files_for_the_same_subject_are_refused(lab: Lab, key: str) -> None:
    lab.put("session_ids", np.zeros(T, int))
    lab.put("test_ids", lab.ids[:2])
    prepare(lab.cfg())
    content = np.load(lab.root / f"{key}.npy")
    content[0] = 18 if np.all(content[0] != 18) else 21
    lab.put(key, content)
    with pytest.raises(UserError, match=rf"subj01.h5 was prepared with other settings \({key}: made with \w+, asked"):
        prepare(lab.cfg())


def test_other_images_or_sizes_are_refused(lab: Lab) -> None:
    prepare(lab.cfg())
    with pytest.raises(UserError, match=r"stimuli.h5 was prepared with other settings \(image_size: made with 8"):
        prepare(lab.cfg(image_size=16))
    Image.fromarray(lab.images[6]).save(lab.root / "images" / "000003.png")
    with pytest.raises(UserError, match=r"stimuli.h5 was prepared with other settings \(images: made with"):
        prepare(lab.cfg())


def test_stimuli_that_were_removed_are_made_again_from_images_alone(lab: Lab) -> None:
    stimuli = prepare(lab.cfg()) / "stimuli.h5"
    before = Stimuli(stimuli).hash
    stimuli.unlink()
    prepare(lab.without("voxels", "image_ids").cfg())
    assert Stimuli(stimuli).hash == before == Subject(stimuli.parent / "subj01.h5").attributes["stimuli_hash"]


def test_an_image_that_was_shown_but_has_no_image(lab: Lab) -> None:
    for name in ("000006.png", "000009.png"):
        (lab.root / "images" / name).rename(lab.root / "images" / f"img_{name}")
    trial = min(np.flatnonzero(lab.image_ids == 6))
    lab.check_refused(
        rf"2 images that were shown have no image \(first: image 6, in trial {trial}\) in data.images=.*images. Name "
        "images by image id .* Not named so and ignored: 2, such as img_000006.png"
    )
    np.save(lab.root / "images.npy", np.zeros((5, SIDE, SIDE, 3), np.uint8))
    lab.check_refused(
        r"11 images that were shown .*images.npy. The row of the array is the image id",
        images=str(lab.root / "images.npy"),
    )


def test_all_that_lacks_is_said_at_once(lab: Lab) -> None:
    lab.without("voxels", "images")
    lab.check_refused(r"data=own lacks data.voxels, data.images. For example:\n  nd prepare data=own data.voxels=vox")
    lab.check_refused(
        "not there: data.voxels=/no/where.npy, data.captions=c.json", voxels="/no/where.npy", captions="c.json"
    )


@pytest.mark.parametrize("name", ["stimuli", "a/b", ".hidden", ""])
def test_names_that_no_subject_can_have(lab: Lab, name: str) -> None:
    lab.check_refused(rf"subject.name='{name}' names the subject's file", subject=name)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros(T), r"voxels.npy is float64 \(60,\); wanted numbers \(trials, voxels\)"),
        (np.zeros((T, 2, 2)), r"is float64 \(60, 2, 2\)"),
        (np.zeros((T, 0)), r"is float64 \(60, 0\)"),
        (np.zeros((T, 2), complex), "is complex128"),
        (np.full((T, 2), "a"), "is <U1"),
        (np.zeros((T, 2), bool), "is bool"),
        (np.full((T, 2), None), r"voxels.npy holds Python objects .*dtype=float32\)"),
        (np.zeros((V, T)), r"image_ids.npy has 60 entries, but .*voxels.npy has 7 trials.*Transpose it"),
        (np.zeros((T - 1, V)), r"has 60 entries, but data.voxels=.* has 59 trials \(rows\)"),
    ],
)
def test_voxels_of_another_form(lab: Lab, voxels: Any, message: str) -> None:
    lab.put("voxels", voxels)
    lab.check_refused(message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_voxel_that_is_not_finite(lab: Lab, value: float) -> None:
    voxels = lab.voxels.astype(np.float64)
    voxels[41, 6] = voxels[50, 0] = value
    lab.put("voxels", voxels)
    lab.check_refused(r"voxels.npy: voxel 6 of trial 41 is (nan|-?inf)")


def test_an_archive_or_a_file_cut_short(lab: Lab) -> None:
    np.savez(lab.root / "voxels.npz", voxels=lab.voxels)
    lab.check_refused(r"voxels.npz is not a whole .npy file .*An .npz archive\?", voxels=str(lab.root / "voxels.npz"))
    path = lab.root / "voxels.npy"
    path.write_bytes(path.read_bytes()[:-8])
    lab.check_refused(r"voxels.npy is truncated: it has \d+ bytes")


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("image_ids", "1\n2\nx3\n", r"image_ids.txt, line 3: 'x3' is not a whole number"),
        ("image_ids", "1.5\n2\n", r"line 1: '1.5' is not a whole number"),
        ("image_ids", "id,run\n1,2\n", r"line 2: '1,2' is not a whole number"),
        ("image_ids", "1\n\n2\n", r"line 2: '' is not a whole number"),
        ("image_ids", "id\n-1\n2\n", r"entry 0 is -1; wanted a whole number from 0"),
        ("image_ids", "1\n99999999999999999999\n", r"entry 1 is 1e\+20; wanted a whole number from 0 to 2147483647"),
        ("image_ids", "1\n2\n", r"data.image_ids=.* has 2 entries, but data.voxels=.* has 60 trials"),
        ("session_ids", "1\n2\n", r"data.session_ids=.* has 2 entries, but data.voxels=.* has 60 trials"),
        ("test_ids", "3\n77\n78\n", r"2 of 3 test images were never shown \(first: image 77\)"),
        ("test_ids", "", "test_ids.txt takes 0 of the 12 images that were shown"),
        (
            "test_ids",
            "\n".join(str(3 * k) for k in range(1, 13)),
            "takes 12 of the 12 images .* training and validation at least 4 others",
        ),
    ],
)
def test_lists_of_numbers_that_do_not_fit(lab: Lab, key: str, content: str, message: str) -> None:
    lab.text(key, content)
    lab.check_refused(message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(T, "3"), r"is <U1 \(60,\); wanted whole numbers \(n,\)"),
        (np.zeros((T, 1), int), r"is int64 \(60, 1\); wanted whole numbers"),
        (np.full(T, None), r"holds Python objects"),
        (np.full(T, -2), r"entry 0 is -2"),
        (np.full(T, 2**63, np.uint64), r"entry 0 is 9223372036854775808; wanted"),
    ],
)
def test_arrays_of_numbers_that_do_not_fit(lab: Lab, array: Any, message: str) -> None:
    lab.put("image_ids", array)
    lab.check_refused(rf"image_ids.npy:? {message}")


def test_a_list_that_is_no_text(lab: Lab) -> None:
    path = lab.text("image_ids", "")
    path.write_bytes(b"\xff\xfe\x00")
    lab.check_refused("image_ids.txt is not text")


@pytest.mark.parametrize(
    ("n_test", "message"), [(0, "takes 0 of the 12"), (12, "takes 12 of the 12"), (-1, "takes 0 of the 12")]
)
def test_too_many_or_too_few_test_images(lab: Lab, n_test: int, message: str) -> None:
    lab.check_refused(rf"data.n_test={n_test} {message} images that were shown", n_test=n_test)


@pytest.mark.parametrize("n_test", [1, 9])
def test_what_could_not_be_evaluated_is_refused_before_anything_is_written(lab: Lab, n_test: int) -> None:
    lab.check_refused(
        rf"data.n_test={n_test} takes {n_test} of the 12 .* at least 2 of them, since a single", n_test=n_test
    )


@pytest.mark.parametrize("n_val", [1, 8])
def test_validation_images_that_could_not_be_told_apart(lab: Lab, n_val: int) -> None:
    lab.check_refused(rf"data.n_val={n_val} does not fit split 'own': .* from 2 to 7", n_val=n_val)


def test_a_single_test_image_named(lab: Lab) -> None:
    lab.text("test_ids", "3\n3\n")
    lab.check_refused(r"data.test_ids=.* takes 1 of the 12 images")


def test_voxels_that_are_all_constant(lab: Lab) -> None:
    voxels = np.zeros((T, V), np.float32)
    voxels[np.isin(lab.image_ids, hash_order(lab.ids)[:3])] = lab.voxels[
        np.isin(lab.image_ids, hash_order(lab.ids)[:3])
    ]
    lab.put("voxels", voxels)
    lab.check_refused(r"voxels.npy: all 7 voxels are the same in all training trials")


# ---- the same image under two ids ------------------------------------------------------------------------------------


def copied(lab: Lab, n: int = 2) -> tuple[list[int], list[int]]:
    """Overwrite the images of some test ids by those of training ids, in other files; returns (training, test) ids."""
    order = hash_order(lab.ids)
    test, seen = order[:n], order[5 : 5 + n]
    for a, b in zip(seen, test, strict=True):
        Image.fromarray(lab.images[a]).save(lab.root / "images" / f"{b:06d}.png", compress_level=1)
    return seen, test


def test_a_test_image_that_is_a_training_image(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    seen, test = copied(lab)
    pair = min(zip(test, seen, strict=True))
    lab.check_refused(
        rf"2 test images of subj01 are training images under another id \(image {pair[1]} is test image {pair[0]}, "
        r".*data.same_images=allow"
    )
    cfg = lab.cfg(same_images="allow")
    prepare(cfg)
    assert "2 images are equal to an image of another id" in caplog.text
    assert set(same_across(cfg).equal) == set(zip(seen, test, strict=True))
    assert len(split_of(cfg).test_ids) == 3
    with pytest.raises(LeakError, match="2 test images of subj01 are training images"):
        split_of(lab.cfg())


def test_a_second_subject_whose_training_images_are_its_test_images(lab: Lab) -> None:
    """The stimuli are there: the first subject tested on both of two equal images."""
    Image.fromarray(lab.images[3]).save(lab.root / "images" / "000006.png")
    lab.text("test_ids", "3\n6\n")
    prepare(lab.cfg())
    lab.text("test_ids", "3\n9\n")
    with pytest.raises(LeakError, match=r"1 test images of other .* \(image 6 is test image 3\)"):
        prepare(lab.cfg("other"))


def test_what_others_saw_is_held_against_the_test_images_of_the_subject(lab: Lab) -> None:
    """Image 6 looks like test image 3 of subj01, who never saw it; the other subject trains on it."""
    Image.fromarray(lab.images[3]).save(lab.root / "images" / "000006.png")
    everything, kept = (lab.voxels, lab.image_ids), lab.image_ids != 6
    lab.put("voxels", lab.voxels[kept])
    lab.put("image_ids", lab.image_ids[kept])
    lab.text("test_ids", "3\n9\n")
    prepare(lab.cfg())
    lab.put("voxels", everything[0][lab.image_ids != 3])
    lab.put("image_ids", everything[1][lab.image_ids != 3])
    lab.text("test_ids", "9\n12\n")
    prepare(lab.cfg("other"))
    cfg = lab.cfg(subjects=["subj01", "other"])
    assert 3 in split_of(cfg).test_ids
    ((subject, fold),) = others_of(cfg, 0)
    assert subject.name == "other"
    assert 6 in split_of(lab.cfg("other")).folds[0].seen
    assert 6 not in fold.seen


# ---- ids that count from 1 -------------------------------------------------------------------------------------------


def test_ids_from_1_beside_an_array_from_0(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(1).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    lab.put("images", images)
    lab.put("image_ids", lab.image_ids // 3)
    lab.check_refused(
        r"1 images that were shown have no image \(first: image 12, .* in data.images=.*images.npy. The row of the "
        r"array is the image id. Do they count from 1\? Images count from 0: subtract 1."
    )
    lab.put("images", np.concatenate([images, images[:1] // 2]))
    with caplog.at_level(logging.WARNING):
        prepare(lab.cfg())
    assert "the smallest id is 1, and image 0 is never shown. If they count from 1, every trial gets its" in caplog.text


def test_ids_from_0_say_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.put("images", np.random.default_rng(1).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8))
    lab.put("image_ids", lab.image_ids // 3 - 1)
    with caplog.at_level(logging.WARNING):
        prepare(lab.cfg())
    assert "count from 1" not in caplog.text


def test_test_ids_from_1(lab: Lab) -> None:
    lab.put("images", np.random.default_rng(1).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8))
    lab.put("image_ids", lab.image_ids // 3 - 1)
    lab.text("test_ids", "4\n12\n")
    lab.check_refused(r"1 of 2 test images were never shown \(first: image 12\).* Do they count from 1\?")


# ---- text that cannot be stored --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "name"), [("\0", "U\\+0000"), ("\ud83d", "U\\+D83D"), ("\udc00", "U\\+DC00")])
def test_captions_that_no_file_can_keep(lab: Lab, bad: str, name: str) -> None:
    table = {str(i): ["fine \U0001f600 é 脑"] for i in lab.ids} | {"9": ["fine", f"not {bad} fine"]}
    lab.file("captions", "captions.json").write_text(json.dumps(table), encoding="utf-8")
    lab.check_refused(rf"a caption of image 9 holds {name} at character 5, which cannot be stored")


def test_names_of_files_that_are_no_text(lab: Lab) -> None:
    path = lab.root / os.fsdecode(b"voxels\xff.npy")
    np.save(path, lab.voxels)
    lab.given["voxels"] = str(path)
    assert open_subject(_prepared(lab)).attributes["voxels_file"] == "voxels\\udcff.npy"


def test_both_files_announce_their_size(lab: Lab) -> None:
    """So that a disk too small is noticed before writing."""
    sizes = {piece.name: piece.n_bytes for piece in pieces_of(lab.cfg())}
    assert sizes == {"stimuli.h5": N * SIDE * SIDE * 3, "subj01.h5": T * V * 4}


def test_failing_while_voxels_are_copied_leaves_the_stimuli_and_goes_on_from_there(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nd.data.own_trials.lay_out", full)
        with pytest.raises(
            UserError, match=r"cannot write .*mylab/subj01.h5: no space left on the device. Free some .* set paths.data"
        ):
            prepare(lab.cfg())
    folder = lab.root / "data" / "mylab"
    assert {p.name for p in folder.glob("[!.]*")} == {"manifest.json", "stimuli.h5"}
    assert not partial_path(folder / "subj01.h5").exists()
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]
    prepare(lab.cfg())
    assert "wrote mylab: 1 subject," in capsys.readouterr().out


MEASURE = """
import sys
from pathlib import Path
from nd.data.own import pieces_of
from nd.data.pieces import make_pieces
from nd.config.application import compose, derive

def resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

import threading, time
cfg = compose(sys.argv[2:])
make_pieces(Path(sys.argv[1], "warm"), pieces_of(compose([*sys.argv[2:], "data.voxels=small.npy"])), {})
before, most, done = resident(), 0, False
def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
make_pieces(Path(sys.argv[1], "large"), pieces_of(cfg), {})
done = True
thread.join()
print((most - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("order", ["C", pytest.param("F", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_voxels(lab: Lab, order: str) -> None:
    """120 MB of voxels; resident anonymous memory, after the same work on few voxels."""
    shape = (T, 500_000)
    np.save(lab.root / "small.npy", lab.voxels)
    large = np.lib.format.open_memmap(lab.root / "large.npy", "w+", np.float32, shape, fortran_order=order == "F")
    large[:] = np.linspace(0, 1, shape[1], dtype=np.float32)
    large[0] += 1
    large.flush()
    assert (lab.root / "large.npy").stat().st_size > 119e6
    lab.given["voxels"] = "large.npy"
    given = [f"data.{key}={value}" for key, value in lab.given.items()]
    command = [sys.executable, "-c", MEASURE, str(lab.root / "data"), "data=own", *given]
    grown = subprocess.run(command, cwd=lab.root, capture_output=True, text=True, check=True, env=os.environ)
    print(grown.stdout)
    assert float(grown.stdout) < 60
    subject = Subject(lab.root / "data" / "large" / "subj01.h5")
    np.testing.assert_array_equal(subject.voxels(np.array([T - 1]))[0], large[-1])


def test_the_command_of_the_configuration_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As conf/data/own.yaml says, in its folder, and later by name alone."""
    monkeypatch.chdir(lab.root)
    files = ["data.voxels=voxels.npy", "data.image_ids=image_ids.npy", "data.images=images/"]
    names = ["data=own", "data.name=mylab", "data.n_test=3", "data.n_val=2", "subject.name=anna"]
    prepare(compose([*names, *files]))
    cfg = compose(names)
    prepare(cfg)
    assert open_subject(cfg).name == "anna"
    assert Stimuli(stimuli_path(cfg)).shape == (256, 256, 3)
    assert len(split_of(cfg).test_ids) == 3


TABLE = """
title: mine
experiment: nsd
subjects: [sub-01, sub-02]
columns: [{metric: pixcorr}]
rows:
- {label: mean, overrides: [data=own, data.name=mylab, "data.subjects=[sub-01,sub-02]", method=mean_image]}
"""


@pytest.mark.parametrize(
    ("given", "wanted"), [([], ["sub-01", "sub-02"]), (["subject=sub-02"], ["sub-02"]), (["subject=subj01"], [])]
)
def test_tables_of_people_whose_names_are_ones_own(tmp_path: Path, given: list[str], wanted: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(TABLE, encoding="utf-8")
    cfg = compose(["data=own", "data.subjects=[subj01,sub-02]", *given, f"table={tmp_path}/mine.yaml"])
    spec = load_spec(cfg.table)
    if not wanted:
        with pytest.raises(UserError, match=r"subject: subj01 is not a subject of mylab.* Subjects: sub-01, sub-02"):
            expand(spec, cfg, derive)
        return
    entries = expand(spec, cfg, derive)
    assert [entry.subject for entry in entries] == [entry.cfg.subject.name for entry in entries] == wanted


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    notebook = read_json(Path(__file__).parent.parent / "notebooks" / "own_data.ipynb")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["correlation"] > 0.3


# ---- where the voxels lie ------------------------------------------------------------------------------------------


def put_volume(path: Path, values: Any) -> Path:
    import nibabel

    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, np.int16), np.eye(4)), path)
    return path


@pytest.fixture
def placed(lab: Lab) -> Lab:
    """With a mask of V voxels on a grid, and two ROIs of which the second has voxels outside it."""
    volume = np.zeros((3, 4, 2), np.int16)
    volume.reshape(-1)[[2, 3, 7, 11, 12, 20, 23]] = 5
    put_volume(lab.file("volume", "mask.nii.gz"), volume)
    inside, whole = np.zeros_like(volume), np.ones_like(volume)
    inside[0] = 1
    put_volume(lab.root / "rois" / "V1.nii.gz", inside)
    put_volume(lab.root / "rois" / "all.of.it.nii", whole)
    lab.file("roi_volumes", "rois")
    return lab


def test_volumes_say_where_voxels_lie(placed: Lab) -> None:
    """Columns are the mask's voxels in C order; without the files the prepared ones are still used."""
    prepare(placed.cfg())
    subject = open_subject(placed.cfg())
    flat = np.ravel_multi_index(tuple(subject.ijk.T.astype(int)), (3, 4, 2))
    assert flat.tolist() == [2, 3, 7, 11, 12, 20, 23]
    assert {name: mask.tolist() for name, mask in subject.rois.items()} == {
        "V1": [True] * 3 + [False] * 4, "all.of.it": [True] * 7,
    }  # fmt: skip
    assert "not known" not in subject.attributes["mask"]
    assert subject.attributes["volume_file"] == "mask.nii.gz"
    prepare(placed.without("volume", "roi_volumes").cfg())


def test_other_volumes_are_other_data(placed: Lab) -> None:
    """What was prepared is neither overwritten nor taken for what is asked for now."""
    prepare(placed.cfg())
    put_volume(placed.root / "rois" / "V1.nii.gz", np.ones((3, 4, 2)))
    with pytest.raises(UserError, match=r"prepared with other settings \(rois/V1: made with \w+, asked for \w+\)"):
        prepare(placed.cfg())


def put_mask(lab: Lab, name: str, values: Any) -> None:
    (lab.root / "masks").mkdir(exist_ok=True)
    np.save(lab.root / "masks" / f"{name}.npy", values)
    lab.file("rois", "masks")


def test_masks_over_the_columns_need_no_volume(lab: Lab) -> None:
    put_mask(lab, "V1", np.arange(V) < 3)
    put_mask(lab, "FFA", np.array([0, 0, 1, 1, 0, 0, 0.0]))
    prepare(lab.cfg())
    subject = Subject(lab.root / "data" / "mylab" / "subj01.h5", roi="V1+FFA")
    assert {name: np.flatnonzero(mask).tolist() for name, mask in subject.rois.items()} == {
        "V1": [0, 1, 2], "FFA": [2, 3],
    }  # fmt: skip
    np.testing.assert_array_equal(subject.voxels(np.arange(T)), lab.voxels[:, :4])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("V1", np.arange(3), r"V1.npy has shape \(3,\), but data.voxels has 7 columns.*mask\[columns\] = True"),
        ("V1", np.ones((V, 1)), r"V1.npy has shape \(7, 1\)"),
        ("V1", np.arange(V), r"V1.npy: a mask of an ROI"),
        ("V1", np.full(V, "x"), r"V1.npy: a mask of an ROI is <U1 \(7,\); wanted whole numbers"),
        ("all", np.ones(V, bool), r"an ROI cannot be named 'all'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(lab: Lab, name: str, values: Any, message: str) -> None:
    put_mask(lab, name, values)
    lab.check_refused(message)


def test_two_files_of_one_roi_are_refused(placed: Lab) -> None:
    put_mask(placed, "V1", np.ones(V, bool))
    placed.check_refused(r"V1.nii.gz and .*V1.npy are both named after ROI V1")


def test_volumes_that_do_not_fit_are_refused(placed: Lab) -> None:
    put_volume(placed.root / "rois" / "V1.nii.gz", np.ones((3, 4, 3)))
    placed.check_refused(r"V1.nii.gz has shape \(3, 4, 3\), but the mask .*mask.nii.gz lies on a grid \(3, 4, 2\)")
    placed.without("roi_volumes")
    put_volume(placed.root / "mask.nii.gz", np.ones((3, 4, 2)))
    placed.check_refused(r"data.volume=.* has 24 voxels above 0 on a grid \(3, 4, 2\), but data.voxels has 7 columns")
    (placed.root / "empty").mkdir()
    placed.check_refused(
        r"data.roi_volumes=.*empty is no folder with a NIfTI volume", roi_volumes=str(placed.root / "empty")
    )
    with pytest.raises(UserError, match=r"data.roi_volumes: ROIs lie on the grid of data.volume"):
        compose(["data=own", f"data.roi_volumes={placed.root / 'rois'}"])
