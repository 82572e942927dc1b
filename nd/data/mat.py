"""Arrays of numbers in MATLAB 5 files; anything else in them is left unread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import parsed_by_others

NUMBERS = {
    "double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical", "sparse",
}  # fmt: skip
PACKED = 1100  # bytes that one byte of a file can stand for: deflate packs at most 1,032 to 1


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
        listed = {name: (shape, kind) for name, shape, kind in whosmat(str(path)) if name in names}
    for name, (shape, kind) in listed.items():
        if kind not in NUMBERS or math.prod(shape) > PACKED * path.stat().st_size:
            raise UserError(
                f"{named}: {name} is {kind} {tuple(shape)}; numbers that the file can hold are wanted. {advice}"
            )
    with parsed_by_others(path, f"{named} is not a readable MATLAB 5 file", advice):
        content = loadmat(str(path), variable_names=list(listed))
        found = {name: content[name] for name in listed}
        return {name: values.toarray() if issparse(values) else np.asarray(values) for name, values in found.items()}
