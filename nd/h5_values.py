"""Datasets and attributes of HDF5 files, made sure when they are read to be of the kind wanted and what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.errors import UserError
from nd.files import PACKED, misfit
from nd.hdf5 import is_plain, names_in, open_h5, plain
from nd.sealed import ROWS, again, recorded_of, values_of


def dataset_of(handle: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of an open file.

    Raises:
        UserError: there is none of that name, or one without a shape or of neither numbers nor text.
    """
    path = Path(handle.filename)
    found = handle.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{path} holds no dataset {name}, but {names_in(handle)}. {again(path)}")
    if found.shape is None:
        raise UserError(f"{path}: its dataset {name} is empty. {again(path)}")
    if not is_plain(found.id):
        raise UserError(f"{path}: its dataset {name} holds neither numbers nor text. {again(path)}")
    return found


def check_size(path: Path, name: str, found: h5py.Dataset) -> None:
    """Refuse a dataset whose header claims more than its file can hold, before room is made for it."""
    if found.shape is None or found.size * max(1, found.dtype.itemsize) > PACKED * found.file.id.get_filesize():
        raise UserError(
            f"{path}: {name} claims to be {found.dtype} {found.shape}, more than the file can hold. {again(path)}"
        )


def read_whole(handle: h5py.File, name: str, kinds: str = "", shape: tuple[int | None, ...] | None = None) -> Any:
    """Return a dataset in memory, made sure to be what was written.

    Args:
        handle: of an open file.
        name: of the dataset.
        kinds: letters of the NumPy kinds that it may have, such as "iu"; empty: any.
        shape: that it must have, None for a side of any length; None: any.

    Returns:
        The values; of text, an array of strings.

    Raises:
        UserError: missing, of another type or shape, or changed since it was written.
    """
    path, found = Path(handle.filename), dataset_of(handle, name)
    check_size(path, name, found)  # rows alone may be read of a file with most rows left out, as of simulated NSD
    kind = "O" if h5py.check_string_dtype(found.dtype) else found.dtype.kind
    if (kinds and kind not in kinds) or not _fits(found.shape, shape):
        wanted = " ".join(filter(None, [_named(kinds), _sides(shape)]))
        raise UserError(f"{path}: {name} is {found.dtype} {found.shape}, wanted {wanted}. {again(path)}")
    values = values_of(found)
    recorded = recorded_of(path)
    recorded.check(name, values)
    if name in recorded.rows:
        recorded.check_rows(name, np.arange(len(values)), values)
    return values


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    if wanted is None:
        return True
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))


def _named(kinds: str) -> str:
    names = {"iu": "whole numbers", "f": "floats", "O": "text"}
    return " or ".join(word for letters, word in names.items() if set(letters) & set(kinds))


def _sides(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else f"({', '.join('any' if side is None else str(side) for side in shape)})"


def attribute(holder: h5py.File, name: str, kind: Any, default: Any = None) -> Any:
    """Return an attribute of an open file as a plain value.

    Args:
        holder: the open file.
        name: of the attribute.
        kind: ``str`` or ``int``; any other kind of ``nd.files.read_json`` is kept as JSON.
        default: where there is none; None: there must be one.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    path = Path(holder.filename)
    if name not in holder.attrs:
        if default is not None:
            return default
        raise UserError(f"{path} lacks its attribute {name}. {again(path)}")
    if not is_plain(holder.attrs.get_id(name)):
        raise UserError(f"{path}: its attribute {name} holds neither a number nor text. {again(path)}")
    value = plain(holder.attrs[name])
    if kind in (str, int):
        if isinstance(value, kind):
            return value
        raise UserError(f"{path}: its attribute {name} is {value!r:.60}, wanted {kind.__name__}. {again(path)}")
    try:
        content = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{path}: its attribute {name} is {value!r:.60}, wanted JSON. {again(path)}") from None
    if problem := misfit(content, kind):
        raise UserError(f"{path}: its attribute {name} does not hold what it should: {problem}. {again(path)}")
    return content


def check_all(path: Path, rows: bool = True) -> None:
    """Compare everything that a file holds with its digests.

    Args:
        path: of the file.
        rows: False: all but what is read by rows, which may lie in another file.

    Raises:
        UserError: something was changed, or cannot be read.
    """
    recorded = recorded_of(path)
    with open_h5(path) as handle:
        for name in recorded.of:
            if name and not name.startswith(f"{ROWS}/"):
                read_whole(handle, name)
        for name, digests in recorded.rows.items() if rows else ():
            recorded.check_before(name, np.arange(len(digests)), dataset_of(handle, name).__getitem__)
