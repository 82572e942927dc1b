"""Whole numbers of users' files: labels and masks, ids, sessions and trials, whatever type they were saved in.

A number that is not whole is refused and never cut off: every reader of such numbers comes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.npy import open_npy
from nd.errors import UserError
from nd.files import unreadable

LARGEST = 2**31 - 1  # the prepared format keeps int32
# By how much labels may miss their number. A volume that was loaded as floats and saved as int16 gets a slope, which
# makes 1.5e-5 of 0 and 1.00003 of 1.
RESAVED = 1e-3
FRACTIONS = (
    "Where fractions tell images apart (category.image), cutting them off would merge images: number the different "
    "ids instead, np.unique(ids, return_inverse=True)[1], and name the images by the same numbers."
)
NUMBER = re.compile(r"\s*[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s*", re.ASCII)


def whole_numbers(
    values: Any,
    what: str | Callable[[int], str],
    *,
    lowest: int = 0,
    highest: int = LARGEST,
    within: float = 0.0,
    advice: str = "",
) -> NDArray[np.int64]:
    """Return an array of numbers of any type as whole numbers of the same shape.

    Args:
        values: booleans, integers or floats of any shape.
        what: what they are and where they come from, for messages; or a function that names the n-th of them.
        lowest: smallest number allowed.
        highest: largest number allowed.
        within: by how much a float may miss a whole number: 0 for ids, ``RESAVED`` for labels of volumes.
        advice: what the user can do.

    Raises:
        UserError: something else than numbers, or one that is not whole, not finite or out of range; names the first.

    >>> whole_numbers([0.00002, 1.00003], "mask", within=RESAVED)
    array([0, 1])
    """
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise UserError(f"{_named(what, 0)} is {given.dtype} {given.shape}; wanted whole numbers. {advice}".rstrip())
    given = given.astype(np.uint8) if given.dtype.kind == "b" else given
    with np.errstate(invalid="ignore", over="ignore"):  # a bound beyond half precision is infinite there
        nearest = np.rint(given) if given.dtype.kind == "f" else given
        good = (np.abs(given - nearest) <= within) & (nearest >= lowest) & (nearest <= highest)  # false for NaN
        if given.dtype.kind == "f":
            good &= np.spacing(np.abs(nearest)) < 1  # beyond, single precision has merged neighbours
    if not good.all():
        n = int(np.flatnonzero(~good.ravel())[0])
        place = what(n) if callable(what) else f"{what}: entry {_index(n, given.shape)}"
        value = given.ravel()[n].item()
        found = int(value) if value == value // 1 and abs(value) < 1e15 else given.ravel()[n]
        raise UserError(f"{place} is {found}; wanted a whole number from {lowest} to {highest}. {advice}".rstrip())
    return nearest.astype(np.int64)


def _named(what: str | Callable[[int], str], n: int) -> str:
    return what(n) if callable(what) else what


def _index(n: int, shape: tuple[int, ...]) -> str:
    """Place of the n-th number: 3, or (1, 0, 2)."""
    index = tuple(int(i) for i in np.unravel_index(n, shape))
    return str(index[0]) if len(index) == 1 else str(index)


def read_numbers(path: Path) -> NDArray[np.int64]:
    """Return the whole numbers (n,) of a file, each from 0 on.

    Args:
        path: .npy of numbers (n,), or text with one number a line; a heading and lines that begin with # are passed
            over.

    Raises:
        UserError: a missing or unreadable file, other content, fractions, numbers below 0 or beyond int32.
    """
    numbers = _from_npy(path) if path.suffix == ".npy" else _from_text(path)
    fractions = numbers.dtype.kind == "f" and (numbers % 1 > 0).any()
    return whole_numbers(numbers, str(path), advice=FRACTIONS if fractions else "")


def _from_npy(path: Path) -> NDArray[Any]:
    numbers = open_npy(path, "int")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise UserError(
            f"{path} is {numbers.dtype} {numbers.shape}; wanted whole numbers (n,): np.save(path, numbers.reshape(-1))."
        )
    return np.array(numbers)


def _from_text(path: Path) -> NDArray[Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text. Wanted one whole number a line, or a .npy of them.") from None
    kept = [(number, line) for number, line in enumerate(lines, start=1) if not line.lstrip().startswith("#")]
    if kept and re.match(r"[\s\"']*[^\W\d]", kept[0][1]):  # a heading begins with a letter
        kept = kept[1:]
    for number, line in kept:
        if not NUMBER.fullmatch(line) or not float(line).is_integer():
            raise UserError(
                f"{path}, line {number}: {line.strip()[:60]!r} is not a whole number; wanted one a line."
                + (f" {FRACTIONS}" if NUMBER.fullmatch(line) else "")
            )
    return np.array([min(float(line), 1e300) for _, line in kept], np.float64)
