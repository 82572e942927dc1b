"""Rows of a large matrix in an HDF5 file, read without ever holding the whole of it.

A contiguous dataset is read through a memory map that lives for one call: nothing stays open or mapped between calls,
so a reader can be copied to worker processes, and memory never grows with the file. Chunked or compressed datasets (of
others' making) are read in blocks of rows. The dataset may lie in another file that the first one links to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.links import follow
from nd.errors import UserError
from nd.hdf5 import open_h5
from nd.sealed import recorded_of

LOG = logging.getLogger(__name__)
BLOCK_BYTES = 8 << 20  # rows are handed out in blocks of at most about 8 MiB


class RowFile:
    """The matrix (T, V) in dataset ``name`` of an HDF5 file, readable by rows.

    Attributes: ``path`` as given; ``file`` where the values lie (the target of a link); ``shape``; ``dtype``.
    """

    def __init__(self, path: Path, name: str = "voxels") -> None:
        """Look at the file without reading a value. UserError: missing, truncated, a broken link, not a matrix."""
        self.path, self.name = Path(path), name
        with open_h5(self.path) as handle:
            dataset = follow(handle, name, self.path)
            if dataset.ndim != 2 or dataset.dtype.kind != "f":
                raise UserError(
                    f"{self.path}: {name} is {dataset.dtype} {dataset.shape}; wanted floats (trials, voxels)."
                )
            self.file, self._inner = Path(dataset.file.filename), dataset.name
            self.shape: tuple[int, int] = dataset.shape
            self.dtype: np.dtype[Any] = dataset.dtype
            self._chunk_rows = dataset.chunks[0] if dataset.chunks else 1
            self._offset: int | None = dataset.id.get_offset() if dataset.chunks is None else None
        if self._offset is not None and self.file.stat().st_size < self._offset + self.nbytes:
            raise UserError(
                f"{self.file} is truncated: it ends before the last row of {name}. Fetch or write it again."
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def read(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return rows of the matrix, in the order asked for.

        Args:
            rows: (n,) whole numbers from 0 to T - 1, in any order and as often as wanted.

        Returns:
            (n, V) float32, all finite.

        Raises:
            UserError: rows that are not there, a damaged file, NaN or infinite values.
        """
        out = np.empty((len(rows), self.shape[1]), np.float32)
        for positions, values in self.blocks(rows):
            out[positions] = values
        return out

    def blocks(self, rows: NDArray[Any]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield (positions in ``rows``, their values float32) in file order.

        Raises:
            UserError: a value that is not finite, or that changed since the file was written.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise UserError(
                f"{self.path.name} has trials 0..{self.shape[0] - 1}; asked for {rows.min()}..{rows.max()}."
            )
        order, recorded = np.argsort(rows, kind="stable"), recorded_of(self.path)
        for positions in self._groups(rows, order):
            values = self._values(rows[positions])
            self._check_finite(rows[positions], values)
            recorded.check_rows(self.name, rows[positions], values)
            yield positions, values

    def _groups(self, rows: NDArray[np.int64], order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """``order`` cut so that no group is larger than a block and no chunk of the file is met by two groups."""
        n_rows = max(1, BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        if self._offset is not None:
            return np.array_split(order, range(n_rows, len(order), n_rows)) if len(order) else []
        # Neighbouring chunks are read together up to a block; chunks without a wanted row are passed over.
        chunk = rows[order] // self._chunk_rows
        together = max(1, n_rows // self._chunk_rows)
        ends = np.flatnonzero((np.diff(chunk) > 1) | (np.diff(chunk // together) > 0)) + 1
        return np.split(order, ends) if len(order) else []

    def _values(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values of sorted rows."""
        if self._offset is not None:
            return np.asarray(np.memmap(self.file, self.dtype, "r", self._offset, self.shape)[rows], np.float32)
        first, last = int(rows[0]), int(rows[-1]) + 1
        with open_h5(self.file) as handle:
            try:
                return np.asarray(handle[self._inner][first:last], np.float32)[rows - first]
            except OSError as error:
                LOG.debug("h5py fails on %s", self.file, exc_info=error)
                raise UserError(
                    f"{self.file} is damaged between trials {first} and {last - 1}. Fetch or write it again."
                ) from None

    def _check_finite(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Name the first trial and voxel that is NaN or infinite."""
        if np.isfinite(values).all():
            return
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise UserError(not_finite(self.file, int(rows[row]), int(column), float(values[row, column])))


def not_finite(path: Path, trial: int, voxel: int, value: float) -> str:
    """What is said of a beta that is NaN or infinite, whoever meets it."""
    return (
        f"{path}: voxel {voxel} of trial {trial} is {value}; every beta must be finite. "
        "Leave that voxel out of the mask or write the file again."
    )
