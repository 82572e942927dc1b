"""MATLAB files that SciPy would end the process over are refused, and whole ones of every kind are read."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from nd.data.mat import read_mat
from nd.errors import UserError

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
SINGLE, UNKNOWN = 7, 8  # types of elements


def read(path: Path, *names: str) -> dict[str, Any]:
    return read_mat(path, names or ("a",), "Fetch it again.")


def refused(path: Path, wanted: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(path))} is not a readable MATLAB 5 file \({wanted}\)\. Fetch"
    ):
        read(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose matrix lies in it unpacked, and another behind it."""
    savemat(tmp_path / "x.mat", {"a": VALUES, "b": np.arange(5.0)})
    return tmp_path / "x.mat"


def changed(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_whole_files_are_read(packed: bool, tmp_path: Path) -> None:
    sparse = csc_array(np.diag([1.0, 0.0, 3.0]))
    content = {"a": VALUES, "b": VALUES * 1j, "c": np.array([[7]], np.uint8), "d": np.zeros((0, 3)), "e": sparse,
               "f": VALUES > 3, "g": np.arange(3), "text": "no numbers", "cells": {"x": VALUES}}  # fmt: skip
    savemat(tmp_path / "x.mat", content, do_compression=packed)
    found = read(tmp_path / "x.mat", *"abcdefg")
    np.testing.assert_array_equal(found["e"], np.diag([1, 0, 3]))
    for name in "abcdfg":
        np.testing.assert_array_equal(found[name], np.atleast_2d(content[name]))


def test_numbers_in_the_other_order_of_bytes_are_read(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = [
        (6, struct.pack(">II", 7, 0)),
        (5, struct.pack(">ii", 4, 6)),
        (1, b"a"),
        (SINGLE, VALUES.T.astype(">f4").tobytes()),
    ]
    matrix = element(14, b"".join(element(*part) for part in parts))
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + matrix)
    np.testing.assert_array_equal(read(tmp_path / "x.mat")["a"], VALUES)


def test_numbers_of_an_unknown_type_are_told(path: Path) -> None:
    old, new = (struct.pack("<II", kind, VALUES.nbytes) for kind in (SINGLE, UNKNOWN))
    refused(changed(path, old, new), "a matrix holds numbers of the unknown type 8")


def test_a_matrix_without_its_numbers_is_told(path: Path) -> None:
    """The element behind it would be taken for them."""
    content = path.read_bytes()
    place, size = content.index(struct.pack("<II", SINGLE, VALUES.nbytes)), 8 + VALUES.nbytes
    whole = int.from_bytes(content[132:136], "little")
    path.write_bytes(content[:132] + struct.pack("<I", whole - size) + content[136:place] + content[place + size :])
    refused(path, "a matrix lacks some of its parts")


def test_more_numbers_than_there_are_bytes_are_told(path: Path) -> None:
    old, new = (struct.pack("<II", SINGLE, n_bytes) for n_bytes in (VALUES.nbytes, 2**31 + 4))
    refused(changed(path, old, new), "an element claims more bytes than there are")


def test_sparse_numbers_outside_their_matrix_are_told(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"a": csc_array(np.diag([1.0, 0.0, 3.0]))})
    rows = struct.pack("<IIii", 5, 8, 0, 2)  # rows of the two numbers
    refused(changed(tmp_path / "x.mat", rows, rows[:-4] + struct.pack("<i", 2**30)), ".*ind.*")
