"""Digests: what is recorded of content when it is written, and compared when it is read.

They tell damage, exchange and another order, not forgery. XXH3 digests some ten times as fast as SHA-256, so that
comparing costs less than reading. Names of runs and stores stay what they are: SHA-256.

N rows.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

T = TypeVar("T")
BLOCK_BYTES = 1 << 22
SHA256_CHARS = 12  # of the digests that earlier versions recorded
REMEMBERED = 256  # files
Version = tuple[str, int, int, int, int]


class PerVersion(Generic[T]):
    """What is known of files, forgotten when a file is written again; told by place, size and times of change."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: OrderedDict[Version, T] = OrderedDict()

    def get(self, path: Path) -> T | None:
        """Return what is known of a file as it is now."""
        return self._known.get(_version(path))

    def put(self, path: Path, value: T) -> T:
        """Remember what was found of a file as it is now; the oldest of many files is forgotten."""
        self._known[_version(path)] = value
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return value


def _version(path: Path) -> Version:
    state = path.stat()  # programs that copy files may set the time of change, but not that of its being set
    return os.fspath(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


_FILES: PerVersion[str] = PerVersion()


def digest_bytes(*parts: bytes) -> str:
    """Return 16 hexadecimal digits of some bytes, one after another."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def digest_array(values: NDArray[Any]) -> str:
    """Return 16 hexadecimal digits of an array's type, shape and numbers."""
    digest = xxhash.xxh3_64(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_rows(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a digest of each row.

    Args:
        values: (N, ...) numbers.

    Returns:
        (N,) uint64, of the bytes of each row in C order.
    """
    if not values.size:
        return np.zeros(len(values), np.uint64)
    rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return np.fromiter((xxhash.xxh3_64_intdigest(row.data) for row in rows), np.uint64, len(rows))


def digest_file(path: Path) -> str:
    """Return 16 hexadecimal digits of a file's bytes, read once per process as long as the file stays as it is.

    Raises:
        OSError: the file cannot be read.
    """
    known = _FILES.get(path)
    if known is not None:
        return known
    digest = xxhash.xxh3_64()
    with open(path, "rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            digest.update(block)
    return _FILES.put(path, digest.hexdigest())


def is_content(path: Path, recorded: str) -> bool:
    """Say whether a file has the content whose digest was recorded; earlier versions recorded SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    if len(recorded) != SHA256_CHARS:
        return digest_file(path) == recorded
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:SHA256_CHARS] == recorded
