"""HDF5 files that hold digests of their own content: sealed when they are written, compared when they are read.

The digests lie in a group of their own, which is written last::

    digests/recorded       uint8    JSON: digest of each dataset by name, of the attributes (""), and what to do (again)
    digests/rows/<name>    (N,) uint64   of the rows of a dataset that is read by rows

Rows are compared once per process. Files of others hold no digests and are read as they are. Whoever changes a file by
hand takes its group ``digests`` out.

N rows, n rows asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.digests import PerVersion, digest_array, digest_bytes, digest_file, digest_rows
from nd.errors import UserError
from nd.files import misfit
from nd.hdf5 import WRITE_AGAIN, allocate, attributes_of, open_h5

DIGESTS, RECORDED, ROWS = "digests", "digests/recorded", "digests/rows"
ATTRIBUTES, AGAIN = "", "again"  # entries of RECORDED beside those of datasets
BY_HAND = "(Where it was changed on purpose, take its group 'digests' out.)"
BLOCK_BYTES = 64 << 20  # rows compared at a time


@dataclass
class Recorded:
    """What a file says of its own content, and which rows have been compared with it.

    Attributes:
        path: of the file.
        of: digest of each dataset that is read whole, by name.
        rows: digests (N,) of datasets that are read by rows.
        again: what to do where something differs.
        seal: digest of all digests; empty where the file holds none.
    """

    path: Path
    of: dict[str, str] = field(default_factory=dict)
    rows: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    again: str = WRITE_AGAIN
    seal: str = ""
    _seen: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def check(self, name: str, values: NDArray[Any]) -> None:
        """Compare a whole dataset. UserError: it was changed."""
        if name in self.of and name not in self._seen:
            if _digest(values) != self.of[name]:
                raise self._changed(name)
            self._seen[name] = np.ones(1, bool)

    def check_rows(self, name: str, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Compare rows of a dataset that have not been compared yet.

        Args:
            name: of the dataset.
            rows: (n,) their places.
            values: (n, ...) what was read there, whole rows.

        Raises:
            UserError: one was changed.
        """
        left = self._unseen(name, rows)
        if left.size and left.all():
            self._compare(name, rows, values)
        elif left.any():
            self._compare(name, rows[left], values[left])

    def check_before(self, name: str, rows: NDArray[Any], read: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Read and compare whole rows of which only a part is wanted, unless they have been compared.

        Args:
            name: of the dataset.
            rows: (n,) their places, in any order.
            read: gives whole rows (m, ...) at (m,) rising places.

        Raises:
            UserError: one was changed.
        """
        left = np.unique(rows[self._unseen(name, rows)])
        at_once = max(1, BLOCK_BYTES // max(1, read(left[:1]).nbytes)) if len(left) else 1
        for start in range(0, len(left), at_once):
            block = left[start : start + at_once]
            self._compare(name, block, read(block))

    def _unseen(self, name: str, rows: NDArray[Any]) -> NDArray[np.bool_]:
        if name not in self.rows or not len(rows):
            return np.zeros(len(rows), bool)  # nothing to compare
        if int(rows.max()) >= len(self.rows[name]):
            raise self._changed(name)
        seen = self._seen.setdefault(name, np.zeros(len(self.rows[name]), bool))
        return ~seen[rows]

    def _compare(self, name: str, rows: NDArray[Any], values: NDArray[Any]) -> None:
        other = digest_rows(values) != self.rows[name][rows]
        if other.any():
            raise self._changed(name, f"row {int(rows[int(other.argmax())])} of ")
        self._seen[name][rows] = True

    def _changed(self, name: str, part: str = "") -> UserError:
        what = f"{part}{name}" if name else "its attributes"
        return UserError(f"{self.path}: {what} changed since the file was written. {self.again} {BY_HAND}")


_RECORDED: PerVersion[Recorded] = PerVersion()


def recorded_of(path: Path) -> Recorded:
    """Return the digests that a file holds of its content, read once as long as it stays as it is.

    Raises:
        UserError: they do not fit each other, or the file's attributes do not fit them.
    """
    known = _RECORDED.get(path)
    if known is not None:
        return known
    with open_h5(path) as handle:
        if DIGESTS not in handle:
            return _RECORDED.put(path, Recorded(path))
        found, attributes = _recorded(path, handle), _digest_of_attributes(handle)
        lost = [name for name in found.of if name and name not in handle]
    if lost:
        raise found._changed(lost[0])
    if found.of.get(ATTRIBUTES) != attributes:
        raise found._changed("")
    return _RECORDED.put(path, found)


def _recorded(path: Path, handle: h5py.File) -> Recorded:
    """The digests of an open file, compared with their own."""
    broken = UserError(f"{path}: its group {DIGESTS!r} is damaged. {WRITE_AGAIN} {BY_HAND}")
    stored = handle.get(RECORDED)
    if not isinstance(stored, h5py.Dataset) or stored.dtype != np.uint8 or stored.ndim != 1:
        raise broken
    try:
        content = stored[()].tobytes()
        of = json.loads(content)
    except (ValueError, RecursionError):
        raise broken from None
    if misfit(of, dict[str, str]):
        raise broken
    rows: dict[str, NDArray[np.uint64]] = {}
    for name in [name for name in of if name.startswith(f"{ROWS}/")]:
        digests = handle.get(name)
        if not isinstance(digests, h5py.Dataset) or digests.dtype != np.uint64 or digests.ndim != 1:
            raise broken
        values: NDArray[Any] = digests[()]
        if _digest(values) != of[name]:
            raise broken
        rows[name.removeprefix(f"{ROWS}/")] = values
    return Recorded(path, of, rows, of.pop(AGAIN, WRITE_AGAIN), digest_bytes(content))


def again(path: Path) -> str:
    """Return what to do about a file of no use, as it says itself."""
    try:
        return recorded_of(path).again
    except UserError:
        return WRITE_AGAIN


def seal(handle: h5py.File, again: str, rows: Mapping[str, NDArray[np.uint64]] | None = None) -> None:
    """Record the digests of all that an open file holds; the last thing that is written to it.

    A file that is filled bit by bit is sealed when it is laid out too: sealing it once more then changes no structure.

    Args:
        handle: the file, open for writing. Row digests that were kept while it was filled lie in it already.
        again: what to do about the file where it is of no use.
        rows: digests (N,) of the rows of further datasets; what links lead to is covered by these alone.
    """
    for name, digests in (rows or {}).items():
        handle[f"{ROWS}/{name}"] = digests
    by_row = [name for name, _ in _datasets(handle) if name.startswith(f"{ROWS}/")]
    passed = {name.removeprefix(f"{ROWS}/") for name in by_row}
    passed |= {RECORDED}
    of = {name: _digest(values_of(found)) for name, found in _datasets(handle) if name not in passed}
    of |= {ATTRIBUTES: _digest_of_attributes(handle), AGAIN: again}
    content = np.frombuffer(json.dumps(of, sort_keys=True).encode(), np.uint8)
    if RECORDED in handle and handle[RECORDED].shape != content.shape:
        del handle[RECORDED]
    stored = handle[RECORDED] if RECORDED in handle else allocate(handle, RECORDED, content.shape, content.dtype)
    stored[:] = content


def _datasets(handle: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """All datasets that lie in a file itself, by name."""
    found: list[tuple[str, h5py.Dataset]] = []
    handle.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


def values_of(found: h5py.Dataset) -> NDArray[Any]:
    """Return what a dataset holds, text as an array of strings."""
    return np.asarray(found.asstr()[()] if h5py.check_string_dtype(found.dtype) is not None else found[()])


def _digest(values: NDArray[Any]) -> str:
    if values.dtype.kind == "O":
        return digest_bytes(json.dumps(values.tolist()).encode())
    return digest_array(values)


def _digest_of_attributes(handle: h5py.File) -> str:
    return digest_bytes(json.dumps(attributes_of(handle), sort_keys=True, default=str).encode())


def content_digest(path: Path) -> str:
    """Return a digest of a file's content: of an HDF5 file with digests of its own, that of these.

    Raises:
        OSError: the file cannot be read.
        UserError: it is a damaged HDF5 file.
    """
    if h5py.is_hdf5(path) and (seal := recorded_of(path).seal):
        return seal
    return digest_file(path)
