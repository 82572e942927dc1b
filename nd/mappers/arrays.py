"""Arrays too large for memory: files read as memory maps, room on the disk, and whether memory suffices.

A file is in the safetensors format (https://huggingface.co/docs/safetensors: 8 bytes with the length of a JSON header,
the header, and the arrays' bytes), which any of its libraries reads. Those libraries write from memory and read into
it; arrays of several GB are passed through here instead.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from nd.errors import UserError
from nd.machine import free_bytes

PIECE_BYTES = 1 << 26  # written at a time
LARGE_BYTES = 1 << 28  # an array above this goes to a file where there is a folder for it
ALIGNMENT = 8  # of the first array; the format's libraries keep it, too
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file; memory maps among the arrays are never read whole.

    Raises:
        OSError: the file cannot be opened, or the disk is full.
    """
    # Widest numbers first, so that each array begins at a multiple of its numbers' size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    stop = 0
    for name in order:
        start, stop = stop, stop + arrays[name].nbytes
        kind = NAMES[arrays[name].dtype]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write(handle, arrays[name])


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of a safetensors file as a read-only memory map, read from the disk where it is used.

    Raises:
        SafetensorError: the header is not whole, or the file is shorter or longer than it says.
        OSError: the file cannot be opened.
    """
    with safe_open(path, framework="numpy"):  # checks the header and the length
        pass
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        whole = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))[8 + length :]
    return {name: _view(whole, **entry) for name, entry in header.items()}


@dataclass
class Scratch:
    """Room for arrays that are yet to be filled: in memory, or where large in files of `folder`, if there is one."""

    folder: Path | None = None
    _n_files: int = field(default=0, init=False)

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """Return an array of unknown content.

        Raises:
            UserError: the disk has no room for it.
        """
        if self.folder is None or math.prod(shape) * np.dtype(dtype).itemsize <= LARGE_BYTES:
            return np.empty(shape, dtype)
        self._n_files += 1
        path = self.folder / f"{self._n_files}.array"
        _reserve(path, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r+", shape=shape)

    def tensor(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return a float32 tensor of unknown content; other devices than the CPU have it in their memory."""
        return torch.from_numpy(self.array(shape)) if device.type == "cpu" else torch.empty(shape, device=device)


@contextmanager
def scratch_folder(run_folder: Path) -> Iterator[Path]:
    """Give a folder for large arrays of a fit, gone at the end; what a killed run left there goes first."""
    folder = run_folder / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reserve(path: Path, n_bytes: int) -> None:
    """A file whose bytes the disk has: writing to a map of a file that cannot grow would end the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as handle:
            handle.truncate(n_bytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, n_bytes)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot make {path} of {n_bytes / 1e9:.1f} GB: {reason}. Free some space or choose another paths.runs."
        ) from error


def _write(handle: BinaryIO, array: NDArray[Any]) -> None:
    """The bytes of an array in row order, some rows at a time."""
    rows = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(1, PIECE_BYTES // max(1, math.prod(rows.shape[1:]) * rows.itemsize))
    for start in range(0, len(rows), step):
        handle.write(np.ascontiguousarray(rows[start : start + step]).data)


def _view(whole: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[Any]:
    start, stop = data_offsets
    return np.frombuffer(whole[start:stop], TYPES[dtype]).reshape(shape)


def check_memory(wanted: float, device: torch.device, advice: str) -> None:
    """Check that a device has memory left.

    Args:
        wanted: bytes.
        advice: what takes them and what to do, for the message.

    Raises:
        UserError: `wanted` is more than is free.
    """
    free = free_bytes(device)
    if free is not None and wanted > free:
        raise UserError(f"about {wanted / 1e9:.1f} GB are needed on {device}, {free / 1e9:.1f} GB are free: {advice}.")
