"""Images in an HDF5 dataset, read one by one as RGB bytes whatever form they were stored in.

The dataset may lie in another file that the first one links to. uint8 is taken as it is; floats in [0, 1] become
round(255 x). A contiguous dataset is read through a memory map that lives for one call; a chunked one with a cache that
holds the chunks of one image, so that images asked for in file order meet every chunk once. Nothing stays open
between calls, so a reader can be copied to worker processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.links import follow
from nd.errors import UserError
from nd.hdf5 import open_h5

LOG = logging.getLogger(__name__)
LAYOUTS = {"HWC": 3, "CHW": 1}  # channels last or first, and which axis of (N, ., ., .) they are
CACHE_BYTES = 256 << 20  # most that the chunks of one image may take
FEWEST_SLOTS = 521  # HDF5's own default


class ImageFile:
    """The images in dataset ``name`` of an HDF5 file: (N, H, W, 3) or (N, 3, H, W), uint8 or floats in [0, 1].

    Attributes: ``path`` as given; ``file`` where the pixels lie (the target of a link); ``layout`` "HWC" or "CHW";
    ``n_images`` N; ``shape`` (H, W, 3) of an image as it is handed out.
    """

    def __init__(self, path: Path, name: str = "images", layout: str = "") -> None:
        """Look at the file without reading a pixel; ``layout`` where it is known.

        UserError: missing, truncated, a broken link, not images.
        """
        self.path, self.name = Path(path), name
        with open_h5(self.path) as handle:
            dataset = follow(handle, name, self.path)
            self.file, self._inner = Path(dataset.file.filename), dataset.name
            self.layout = self._layout(dataset, [layout] if layout else list(LAYOUTS))
            sides = [side for axis, side in enumerate(dataset.shape) if axis not in (0, LAYOUTS[self.layout])]
            self.shape: tuple[int, ...] = (*sides, 3)
            self._stored, self._dtype, self._chunks = dataset.shape, dataset.dtype, dataset.chunks
            self._offset: int | None = dataset.id.get_offset() if dataset.chunks is None else None

    def _layout(self, dataset: h5py.Dataset, allowed: list[str]) -> str:
        """Where the channels are; channels last where both are possible."""
        found = [n for n in allowed if n in LAYOUTS and dataset.ndim == 4 and dataset.shape[LAYOUTS[n]] == 3]
        if not found or not (dataset.dtype == np.uint8 or dataset.dtype.kind == "f"):
            raise UserError(
                f"{self.file}: {self._inner} is {dataset.dtype} {dataset.shape}; wanted images (N, H, W, 3) or "
                "(N, 3, H, W), uint8 or floats in [0, 1]."
            )
        return found[0]

    @property
    def n_images(self) -> int:
        """How many images the dataset holds."""
        return int(self._stored[0])

    def each(self, rows: NDArray[Any], ids: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (position in ``rows``, its image (H, W, 3) uint8) in file order; ``ids`` name them in messages.

        Raises UserError where a file is damaged or floats leave [0, 1].
        """
        rows = np.asarray(rows, np.int64)
        order = np.argsort(rows, kind="stable")
        if self._offset is not None:
            pixels = np.memmap(self.file, self._dtype, "r", self._offset, self._stored)
            for position in order:
                yield int(position), self._bytes(np.asarray(pixels[rows[position]]), ids[position])
            return
        with self._open() as handle:
            dataset = handle[self._inner]  # opened once: the cache is the dataset's
            for position in order:
                yield int(position), self._bytes(self._read(dataset, int(rows[position]), ids[position]), ids[position])

    def _open(self) -> AbstractContextManager[h5py.File]:
        """The file with the pixels, its cache fit for the chunks that one image meets."""
        if self._chunks is None:
            return open_h5(self.file)
        sides = zip(self._stored[1:], self._chunks[1:], strict=True)
        n_chunks = int(np.prod([-(-side // chunk) for side, chunk in sides]))
        n_bytes = n_chunks * int(np.prod(self._chunks)) * self._dtype.itemsize
        slots = max(FEWEST_SLOTS, 10 * n_chunks)
        return open_h5(self.file, rdcc_nbytes=min(CACHE_BYTES, max(1 << 20, n_bytes)), rdcc_nslots=slots)

    def _read(self, dataset: h5py.Dataset, row: int, image: int) -> NDArray[Any]:
        try:
            return np.asarray(dataset[row])
        except OSError as error:
            LOG.debug("h5py fails on %s", self.file, exc_info=error)
            raise UserError(
                f"{self.file} is damaged at image {image}, image row {row}. "
                "Fetch it again, or write it again with `nd prepare` if that made it."
            ) from None

    def _bytes(self, values: NDArray[Any], image: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of a stored image."""
        if values.dtype != np.uint8:
            values = values.astype(np.float32)
            if not (values.min() >= 0 and values.max() <= 1):  # said this way NaN is met too
                raise UserError(
                    f"{self.file}: image {image} has values from {values.min()} to {values.max()}; floats must lie in "
                    "[0, 1] (uint8 otherwise). Fetch that file again or scale it."
                )
            values = np.rint(255 * values).astype(np.uint8)
        return values.transpose(1, 2, 0) if self.layout == "CHW" else values
