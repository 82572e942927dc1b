"""Captions in the three forms people have: the right ones for every image, or a message that says what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nd.data.captions import COCO_FILES, captions_for
from nd.errors import UserError

TRAIN, VAL = COCO_FILES


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def annotations(*pairs: tuple[int, str]) -> dict[str, Any]:
    """A COCO file, with fields that are not read."""
    entries = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(pairs)]
    return {"info": {"year": 2017}, "annotations": entries}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write(tmp_path / TRAIN, annotations((900, " a cat \n"), (42, "a dog"), (900, "one cat"), (900, "  ")))
    write(tmp_path / VAL, annotations((7, "a train")))
    return tmp_path


def test_a_folder_of_coco_files(coco: Path) -> None:
    """In the order asked for, repeats included; captions in the order of the file, stripped, none blank."""
    found = captions_for(coco, [0, 1, 2, 3], [7, 900, 42, 900])
    assert found == [["a train"], ["a cat", "one cat"], ["a dog"], ["a cat", "one cat"]]
    found[1].append("mine")
    assert captions_for(coco, np.array([5]), np.array([900])) == [["a cat", "one cat"]]


def test_a_single_coco_file(coco: Path) -> None:
    assert captions_for(coco / VAL, [3], [7]) == [["a train"]]


def test_without_coco_ids_the_image_id_is_the_key(coco: Path) -> None:
    assert captions_for(coco, [42]) == [["a dog"]]


def test_a_table_by_coco_id_and_by_image_id(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", {"12": ["a cat", " "], "0007": "a dog ", "3": ["x"]})
    assert captions_for(path, [0, 1], [7, 12]) == [["a dog"], ["a cat"]]
    assert captions_for(path, [12, 3, 7]) == [["a cat"], ["x"], ["a dog"]]


def test_rows_of_an_array_whatever_the_coco_ids(tmp_path: Path) -> None:
    texts = np.array([["a", "b "], ["c", ""], [" ", "d"]], dtype=str)
    np.save(tmp_path / "captions.npy", texts)
    assert captions_for(tmp_path / "captions.npy", [2, 0, 1], [1, 1, 1]) == [["d"], ["a", "b"], ["c"]]


def test_images_without_caption(coco: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"2 of 3 images have no caption in .*{TRAIN} and .*{VAL} \(first: image 1, COCO id 8\)\. "
        "Its images are keyed by COCO id; add a caption for each",
    ):
        captions_for(coco, [0, 1, 2], [7, 8, 9])
    (coco / VAL).unlink()
    with pytest.raises(UserError, match=rf"1 of 1 images .*{TRAIN} \(first: image 4, COCO id 7\).*Fetch {VAL} into"):
        captions_for(coco, [4], [7])


def test_images_without_caption_in_other_forms(tmp_path: Path) -> None:
    table = write(tmp_path / "t.json", {"1": ["a"], "2": [" "]})
    with pytest.raises(
        UserError, match=r"2 of 3 images .*t.json \(first: image 2\)\. Its images are keyed by image id"
    ):
        captions_for(table, [1, 2, 3])
    np.save(tmp_path / "rows.npy", np.array([["a"], [""], ["z"]]))
    with pytest.raises(UserError, match=r"3 of 4 images .*rows.npy \(first: image 1\)\. Its row is the image id"):
        captions_for(tmp_path / "rows.npy", [0, 1, 3, -1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list at its top. Wanted COCO annotations"),
        ({"annotations": 5}, "its annotations are a int"),
        ({"annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 1}]}, r"annotation 1 has no image_id and capt"),
        ({"annotations": [{"image_id": "1", "caption": "a"}]}, r"annotation 0 has no .* but \{'image_id': '1'"),
        ({"annotations": ["a"]}, "annotation 0 has no image_id"),
        ({"cat": ["a"]}, "'cat' is not an image number"),
        ({"-1": ["a"]}, "'-1' is not an image number"),
        ({"1": [2]}, "image 1 has no list of texts"),
        ({"1": None}, "image 1 has no list of texts"),
    ],
)
def test_json_of_another_form(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "captions.json", content)
    with pytest.raises(UserError, match=rf"captions.json:? .*{message}|captions.json {message}"):
        captions_for(path, [1])


@pytest.mark.parametrize("content", [b"", b'{"1": ["a', b'{"1": ["\xff\xfe"]}'])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(UserError, match=r"captions.json is not valid JSON in UTF-8 .*truncated\? Fetch it again"):
        captions_for(tmp_path / "captions.json", [1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), r"is <U1 \(2,\); wanted text"),
        (np.zeros((2, 2)), r"is float64 \(2, 2\); wanted text"),
        (np.array([[["a"]]]), r"is <U1 \(1, 1, 1\); wanted text"),
        (np.array([[b"a"]]), r"is \|S1 \(1, 1\); wanted text"),
    ],
)
def test_arrays_of_another_form(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "captions.npy", array)
    with pytest.raises(UserError, match=rf"captions.npy {message} \(images, captions per image\)"):
        captions_for(tmp_path / "captions.npy", [0])


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "captions.npy", np.array([[Bomb()]], dtype=object))
    with pytest.raises(UserError, match=r"captions.npy holds Python objects .*np.array\(x.tolist\(\), dtype=str\)"):
        captions_for(tmp_path / "captions.npy", [0])
    assert not (tmp_path / "ran").exists()


def test_arrays_that_are_cut_short_or_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "captions.npy"
    np.save(path, np.array([["abc"] * 50]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=rf"is truncated: it has {len(whole) - 4} bytes, but its header asks for"):
        captions_for(path, [0])
    for content in (b"", whole[:40], b"some text that is no array"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"captions.npy is not a whole .npy file .*Write it with np.save"):
            captions_for(path, [0])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"nowhere does not exist. .*{TRAIN} and {VAL}.*JSON table.*\.npy"):
        captions_for(tmp_path / "nowhere", [0])
    with pytest.raises(UserError, match=rf"holds neither {TRAIN} nor {VAL}.*Fetch COCO's 2017 annotations"):
        captions_for(tmp_path, [0])


def test_files_that_may_not_be_read(tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    for name in ("captions.json", "captions.npy"):
        (tmp_path / name).touch()
        forbid(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} cannot be read: permission denied. Check the file's owner"):
            captions_for(tmp_path / name, [0])
