"""Arrays of numbers in MATLAB 5 files; anything else in them is left unread.

SciPy trusts what the elements of a file say of themselves: numbers of a type that does not exist, or another element
where they are lacking, end the whole process. So they are gone through before (MathWorks, MAT-File Format, Level 5).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import parsed_by_others

NUMBERS = {
    "double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical", "sparse",
}  # fmt: skip
PACKED = 1100  # bytes that one byte of a file can stand for: deflate packs at most 1,032 to 1
HEADER = 128  # bytes; the last two say in which order the bytes of numbers are
MATRIX, COMPRESSED = 14, 15  # types of elements
NUMERIC = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}  # types of elements that hold whole or floating-point numbers
SPARSE, CLASSES = 5, range(5, 16)  # classes of matrices: sparse, and all of numbers
Order = Literal["little", "big"]  # of the bytes of a number
COMPLEX = 0x800  # flag of a matrix that has imaginary parts too


def read_mat(path: Path, names: Sequence[str], advice: str, named: str = "") -> dict[str, NDArray[Any]]:
    """Return those arrays of a file that are there, by name.

    Args:
        path: of a file that exists.
        names: wanted.
        advice: what to do about a file of no use, for messages.
        named: what messages call the file; default: its path.

    Raises:
        UserError: it cannot be read, or one of the arrays holds no numbers or claims more than the file can hold.
    """
    from scipy.io import loadmat, whosmat
    from scipy.sparse import issparse

    named = named or str(path)
    with parsed_by_others(path, f"{named} is not a readable MATLAB 5 file", advice):
        _check_elements(path.read_bytes())
        listed = {name: (shape, kind) for name, shape, kind in whosmat(str(path)) if name in names}
    for name, (shape, kind) in listed.items():
        if kind not in NUMBERS or math.prod(shape) > PACKED * path.stat().st_size:
            raise UserError(
                f"{named}: {name} is {kind} {tuple(shape)}; numbers that the file can hold are wanted. {advice}"
            )
    with parsed_by_others(path, f"{named} is not a readable MATLAB 5 file", advice):
        content = loadmat(str(path), variable_names=list(listed))
        found = {name: content[name] for name in listed}
        return {name: _dense(values) if issparse(values) else np.asarray(values) for name, values in found.items()}


def _dense(values: Any) -> NDArray[Any]:
    from scipy.sparse import csc_array

    columns = csc_array(values)
    columns.check_format(full_check=True)  # SciPy would write wherever an index leads
    return np.asarray(columns.toarray())


def _check_elements(content: bytes) -> None:
    """Raise ValueError where a matrix of numbers is not what SciPy takes it for."""
    if 0 in content[:4]:  # MATLAB 4 has no elements
        return
    order: Order = "little" if content[HEADER - 2 : HEADER] == b"IM" else "big"
    for kind, element in _elements(content[HEADER:], order):
        inside = [(kind, element)]
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(element, PACKED * len(content))
            inside = list(_elements(unpacked, order))
        for inner, matrix in inside:
            if inner == MATRIX:
                _check_matrix(matrix, order)


def _check_matrix(matrix: bytes, order: Order) -> None:
    """Go through flags, sides, name and numbers of a matrix; one of another class is not read."""
    flags = int.from_bytes(matrix[8:12], order)
    if (flags & 0xFF) not in CLASSES:
        return
    parts = list(_elements(matrix, order))
    wanted = 3 + (3 if flags & 0xFF == SPARSE else 1) + bool(flags & COMPLEX)
    if len(parts) < wanted or len(parts[0][1]) != 8:
        raise ValueError("a matrix lacks some of its parts")
    for kind, _ in parts[3:wanted]:
        if kind not in NUMERIC:
            raise ValueError(f"a matrix holds numbers of the unknown type {kind}")


def _elements(content: bytes, order: Order) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of each element; of up to four bytes, type and size may share one number."""
    place = 0
    while place + 8 <= len(content):
        kind, size = (int.from_bytes(content[place + k : place + k + 4], order) for k in (0, 4))
        begin, step = place + 8, 8 + size
        if kind >> 16:
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        if size > len(content) - begin or (step == 8 and size > 4):
            raise ValueError("an element claims more bytes than there are")
        yield kind, content[begin : begin + size]
        place += step + (0 if kind == COMPRESSED else -step % 8)
