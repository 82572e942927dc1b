"""An array in a .npy file, opened through a memory map: its values are read when they are asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import unreadable


def open_npy(path: Path, dtype: str) -> NDArray[Any]:
    """The array of a .npy file, read only and not in memory.

    Args:
        dtype: what a mended file would hold ("float32", "str"); said where this one holds Python objects.

    Raises:
        UserError: missing, unreadable, another kind of file, truncated, or a pickle of Python objects.
    """
    shape, fortran, found, offset = _header(path)
    if found.hasobject:
        raise UserError(
            f"{path} holds Python objects (a pickle), which are never loaded because loading them can run any code. "
            f"Where you trust the file, write it again as plain values: np.save(path, np.array(x.tolist(), "
            f"dtype={dtype}))."
        )
    size, wanted = path.stat().st_size, offset + math.prod(shape) * found.itemsize
    if min(shape, default=0) < 0:
        raise UserError(f"{path} is not a whole .npy file (shape {shape}). Write it with np.save.")
    if size < wanted:
        raise UserError(f"{path} is truncated: it has {size} bytes, but its header asks for {wanted}. Fetch it again.")
    if 0 in shape:  # nothing to map
        return np.empty(shape, found)
    return np.memmap(path, found, "r", offset, shape, "F" if fortran else "C")


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns come first, type, and where the values begin."""
    try:
        with open(path, "rb") as handle:
            version = npy_format.read_magic(handle)
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            return *read(handle), handle.tell()
    except OSError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # the header is a literal of Python, whose parser raises nearly everything
        hint = " An .npz archive? Save its array alone." if _is_zip(path) else ""
        raise UserError(f"{path} is not a whole .npy file ({error}).{hint} Write it with np.save.") from None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(2) == b"PK"
