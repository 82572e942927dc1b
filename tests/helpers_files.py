"""Files changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from nd.files import read_json, write_json
from nd.runs.outputs import describe_outputs


@contextmanager
def edited(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file as whoever changes it on purpose: without the digests of what it held."""
    with h5py.File(path, "r+") as handle:
        if "digests" in handle:
            del handle["digests"]
        yield handle


def left_so(folder: Path) -> None:
    """Let a run's record say that the run has left its files as they are now."""
    path = folder / "manifest.json"
    write_json(path, read_json(path) | {"outputs": describe_outputs(folder)})
