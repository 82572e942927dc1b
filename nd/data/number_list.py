"""A list of whole numbers of people's own, as a .npy or as text with one number a line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.data.npy import open_npy
from nd.errors import UserError

LARGEST = 2**31 - 1  # the prepared format keeps int32


def read_numbers(path: Path) -> NDArray[np.int64]:
    """(n,) whole numbers from 0 on: .npy of integers, or any text file, whose first line may be a heading.

    Raises UserError for a missing or unreadable file, other content, and numbers below 0 or beyond int32.
    """
    numbers = _from_npy(path) if path.suffix == ".npy" else _from_text(path)
    wrong = np.flatnonzero((numbers < 0) | (numbers > LARGEST))
    if wrong.size:
        raise UserError(f"{path}: entry {wrong[0]} is {numbers[wrong[0]]}; wanted whole numbers from 0 to {LARGEST}.")
    return numbers.astype(np.int64)


def _from_npy(path: Path) -> NDArray[np.integer]:
    numbers = open_npy(path, "int")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise UserError(
            f"{path} is {numbers.dtype} {numbers.shape}; wanted whole numbers (n,): "
            "np.save(path, numbers.reshape(-1).astype(int))."
        )
    return np.array(numbers)


def _from_text(path: Path) -> NDArray[np.integer]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. Check its owner and mode.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text. Wanted one whole number a line, or a .npy of them.") from None
    heading = int(bool(lines) and bool(re.match(r"[\s\"']*[^\W\d]", lines[0])))  # a heading begins with a letter
    for number, line in enumerate(lines[heading:], start=1 + heading):
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", line, re.ASCII):
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} is not a whole number; wanted one a line.")
    # A number too long for 64 bits is beyond the largest all the same.
    return np.array([min(int(line), LARGEST + 1) for line in lines[heading:]], np.int64)
