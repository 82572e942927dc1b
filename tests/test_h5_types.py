"""Types that are neither numbers nor texts: a damaged header can claim them, and some of them end the process."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from nd.errors import UserError
from nd.h5_values import attribute, check_all, read_whole
from nd.hdf5 import attributes_of, open_h5
from nd.sealed import seal

LISTS = h5py.vlen_dtype(np.int32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with every type that is read, and lists of any length, a reference and a record beside them."""
    path = tmp_path / "types.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"text": "é", "bytes": b"ab", "number": 3, "share": 0.5, "truth": True, "several": [1, 2]})
        file.attrs["texts"] = ["a", "b"]
        lists = np.empty(2, object)
        lists[:] = [np.arange(2, dtype=np.int32), np.arange(3, dtype=np.int32)]
        file.attrs.create("lists", lists, dtype=LISTS)
        file.attrs["reference"] = file.ref
        file.attrs.create("record", np.zeros((), [("a", "i4")]))
        file.create_dataset("lists", (2,), LISTS)
        file.create_dataset("references", data=[file.ref], dtype=h5py.ref_dtype)
        file.create_dataset("records", data=np.zeros(2, [("a", "i4")]))
        file["numbers"], file["truths"], file["words"] = [1, 2], [True, False], ["a", "b"]
    return path


def test_attributes_are_numbers_truths_and_texts(path: Path) -> None:
    wanted = {"text": "é", "bytes": "ab", "number": 3, "share": 0.5, "truth": True, "several": [1, 2]}
    with open_h5(path) as handle:
        assert attributes_of(handle) == wanted | {"texts": ["a", "b"]}
        assert attribute(handle, "text", str) == "é"
        for name in ("lists", "reference", "record"):
            with pytest.raises(UserError, match=rf"types\.h5: its attribute {name} holds neither a number nor text"):
                attribute(handle, name, str)


def test_datasets_are_numbers_truths_and_texts(path: Path) -> None:
    with open_h5(path) as handle:
        assert read_whole(handle, "numbers").tolist() == [1, 2]
        assert read_whole(handle, "truths").tolist() == [True, False]
        assert read_whole(handle, "words", "O").tolist() == ["a", "b"]
        for name in ("lists", "references", "records"):
            with pytest.raises(UserError, match=rf"types\.h5: its dataset {name} holds neither numbers nor text"):
                read_whole(handle, name)


def test_a_sealed_file_whose_text_became_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sealed.h5"
    with h5py.File(path, "w") as file:
        file.attrs["fingerprint"] = "abcdef"
        seal(file, "Write it again.")
    check_all(path)
    content, text_of_any_length = path.read_bytes(), bytes([0x19, 1])  # class 9 in version 1; 1: a text, 0: a list
    assert content.count(text_of_any_length) == 1
    path.write_bytes(content.replace(text_of_any_length, bytes([0x19, 0])))
    with pytest.raises(UserError, match=r"sealed\.h5: its attributes changed since the file was written"):
        check_all(path)
