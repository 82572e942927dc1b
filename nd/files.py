"""Files that are whole or absent: atomic writes, content hashes, HDF5 opened with a clear message.

Every artifact is written under a temporary name in its own folder, flushed to disk and renamed, so a killed
process or a full disk never leaves a half-written file under a final name. Work that can go on from what a killed
process left (prepared files, target stores) is written the same way, under a name that the next attempt finds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.errors import UserError

ADVICE = "Free some space or choose another folder."
PACKAGE = "package://"  # before the name of something that nd ships
SHIPPED = Path(__file__).parent / "weights"
PARTIAL = re.compile(r"\..+\.partial", re.DOTALL)  # as partial_path names files
HASH_CHARS = 12  # 48 bits: a collision among 100,000 artifacts has probability 2e-5


@contextmanager
def atomic_path(path: Path, *, alone: bool = False, resume: bool = False, advice: str = ADVICE) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed, on any error removed.

    Args:
        path: final name.
        alone: no other process writes it meanwhile (``nd.locks``). The temporary name is then ``partial_path(path)``,
            and what a killed attempt left there is removed.
        resume: keep what is there after an error, and find what an earlier attempt left; needs ``alone``.
        advice: what to do where the system refuses to write.

    Raises:
        UserError: the system refuses to write. Of a path that is itself the temporary one of an outer call, that call
            says so, by the name that the user knows and with its own advice.
    """
    temporary = partial_path(path) if alone else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with nullcontext() if PARTIAL.fullmatch(path.name) else system_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            temporary.unlink(missing_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            if not resume:
                temporary.unlink(missing_ok=True)


def located(text: str | Path) -> Path:
    """Return the place, there or not, that a path given by the user means.

    Args:
        text: 'package://<name>' of what nd ships, or a path, '~' for the home folder.
    """
    given = str(text)
    return SHIPPED / given.removeprefix(PACKAGE) if given.startswith(PACKAGE) else Path(given).expanduser()


def partial_path(path: Path) -> Path:
    """Return where a file lies that one process writes, until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def system_errors(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Say of what the system refuses in the body that ``path`` cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error)}. {advice}") from error


def _reason(error: OSError) -> str:
    """Return what the system said, in words."""
    # HDF5 puts the system's reason at the end of a long report; the number is kept only inside the text.
    text = str(error)
    if error.errno == errno.ENOSPC or f"errno = {errno.ENOSPC}" in text:
        return "no space left on the device"
    if error.errno == errno.EFBIG or f"errno = {errno.EFBIG}" in text:
        return "the file would be larger than this file system or user may write"
    return str(error.strerror or error)


def check_space(path: Path, n_bytes: float, advice: str) -> None:
    """Raise UserError where ``path``, whose folder is there, would need more bytes than are free."""
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise UserError(
            f"{path} needs {n_bytes / 1e9:.2f} GB more, but only {free / 1e9:.2f} GB are free there. {advice}"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented and with sorted keys so that files can be compared by eye and by hash.

    Args:
        path: of the file; its folder is made where it is missing.
        value: of JSON's types; others are written as text.

    Raises:
        UserError: the system refuses to write.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a ``UserError`` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Remove it and run its verb again.") from None


def unreadable(path: Path, error: OSError) -> UserError:
    """Return what is said of a file that cannot be read: what stands there, what was wanted, what to do."""
    if path.is_symlink() and not path.exists():
        return UserError(f"{path} is a link to {path.readlink()}, which is not there. Mend the link or remove it.")
    if path.is_dir():
        return UserError(f"{path} is a folder; wanted a file. Move it away, or give another path.")
    if error.errno == errno.ENOENT:
        return UserError(f"{path} does not exist.")
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "Check the file's owner and mode." if denied else "Try again, and look after the disk if it stays so."
    return UserError(f"{path} cannot be read: {reason}. {remedy}")


def sha256_file(path: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:HASH_CHARS]


def sha256_json(value: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


def sha256_array(values: np.ndarray) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:HASH_CHARS]


@contextmanager
def open_h5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, with ``options`` of h5py.File; what does not open is a ``UserError`` naming it."""
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{path} does not exist. Run the verb that writes it first (`nd prepare`, `nd extract`).")
    try:
        handle = h5py.File(path, "r", **options)
    except OSError as error:
        raise bad_h5(path, error) from None
    with handle:
        yield handle


def bad_h5(path: Path, error: OSError) -> UserError:
    """Return what is said of an HDF5 file that does not open: held by another process, out of reach, or damaged.

    HDF5 words all of these alike, so the reason is looked for in its text too.
    """
    text = str(error)
    if isinstance(error, BlockingIOError) or "is already open" in text or "unable to lock file, errno = 11" in text:
        return UserError(
            f"{path} is open for writing elsewhere (another process, a notebook, MATLAB), and need not be damaged. "
            "Close it there, or wait, and run this again. Where the program that wrote it was killed, `h5clear -s` "
            "opens it again."
        )
    if "unable to lock file" in text:
        return UserError(
            f"{path} lies on a file system without locks ({text}). Set HDF5_USE_FILE_LOCKING=FALSE, and let nobody "
            "write the file meanwhile."
        )
    if not path.is_file() or isinstance(error, PermissionError):
        return unreadable(path, error)
    return UserError(f"{path} is not a whole HDF5 file ({text}): truncated? Fetch or write it again.")


def allocate(handle: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """Add a contiguous dataset whose place in the file is fixed at once; return it.

    Filling it changes no structure, so a killed writer never leaves a broken file behind, and its rows can be read
    through a memory map. The disk gives room as rows are written.
    """
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)  # the same content gives the same bytes
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    h5py.h5d.create(handle.id, name.encode(), kind, h5py.h5s.create_simple(shape), settings)
    return handle[name]
